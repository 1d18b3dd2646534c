"""params.yaml, section by section: frozen models, unknown keys refused, no default hidden in Python.

A generator family's own section is described beside its mathematics, in pipeline/generators/<family>.py; here only the
names of the families are known, so that a family's settings are that family's alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from pipeline.errors import ConfigError

FAMILIES = (
    "naive",
    "vae",
    "normalizing_flow",
    "autoregressive",
    "energy_based",
    "gan",
    "stylegan2",
    "diffusion",
    "flow_matching",
    "external",
)
ENSEMBLE = "ensemble"  # the accepted images of all generators, pooled
SELF_DISTILLATION = "self_distillation"  # the student of the best of the other real-only arms
REAL_ARMS = (
    "real",
    "oversample",
    "logit_adjustment",
    "augment",
    "augment+logit_adjustment",
    "augment+logit_adjustment_strong",
    "mixup",
    "cutmix",
    "cutmix+logit_adjustment",
    "class_balanced",
    "ldam_drw",
    "crt",
    "smote",
    SELF_DISTILLATION,
)

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


def _ascending(values: list[int]) -> list[int]:
    if any(a >= b for a, b in pairwise(values)):
        raise PydanticCustomError("ascending", "Input should be numbers in ascending order")
    return values


def _taught(arms: list[str]) -> list[str]:
    if set(arms) == {SELF_DISTILLATION}:
        raise PydanticCustomError("taught", "Input should be self_distillation and another arm, whose student it is")
    return arms


class Section(BaseModel):
    """A section of params.yaml. Frozen; unknown keys and mistyped values are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Data(Section):
    source: Literal["digits", "folder", "table", "idx", "torchvision"]
    path: str
    name: str
    table: str
    groups: str
    image_size: Annotated[int, Field(ge=4, le=1024)]
    channels: Literal[1, 3]
    resize: Literal["pad", "crop", "stretch"]
    flips: Literal["none", "horizontal", "both"]


class Split(Section):
    val: Annotated[float, Field(gt=0.0, lt=1.0)]
    test: Annotated[float, Field(gt=0.0, lt=1.0)]
    near_duplicate_levels: Annotated[float, Field(ge=0.0, le=255.0)]
    on_identical: Literal["error", "drop"]


class Drift(Section):
    test: Literal["mmd", "energy"]
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)]
    permutations: Count
    least_change_of_counts: Annotated[float, Field(gt=0.0)]
    retrain: Literal["when_drifted", "always"]


class Scarcity(Section):
    kind: Literal["as_is", "long_tail", "counts", "ids"]
    ratio: Annotated[float, Field(ge=1.0)]
    largest: Count
    counts: Mapping[str, Annotated[int, Field(ge=0)]]
    ids: str
    dropped: Literal["test", "discard"]


class Sample(Section):
    fill_to: Annotated[int, Field(ge=0)]
    surplus: Annotated[float, Field(ge=1.0)]
    shard_images: Count


class Judges(Section):
    folds: Annotated[int, Field(ge=2)]
    steps: Count
    batch_images: Count
    width: Annotated[int, Field(ge=8, multiple_of=8)]
    lr: Annotated[float, Field(gt=0.0)]
    weight_decay: Annotated[float, Field(ge=0.0)]
    ema: Annotated[float, Field(gt=0.0, lt=1.0)]


class Validate(Section):
    agreement: Share
    bayes: bool
    copy_quantile: Share
    copy_slack: Annotated[float, Field(ge=0.0)]
    outlier_quantile: Share
    outlier_slack: Annotated[float, Field(ge=0.0)]
    shrinkage: Annotated[float, Field(gt=0.0)]
    blank_std: Annotated[float, Field(ge=0.0)]
    largest_share: Share
    neighbours: Count
    bootstrap: Count


class Measure(Section):
    seeds: Count
    rows: Annotated[int, Field(ge=0)]


class Classifier(Section):
    network: Literal["auto", "small", "resnet18"]
    width: Count
    steps: Count
    batch_images: Count
    lr: Annotated[float, Field(gt=0.0)]
    weight_decay: Annotated[float, Field(ge=0.0)]
    augment: Literal["affine", "flip_affine", "trivial"]
    mixup_alpha: Annotated[float, Field(gt=0.0)]
    cutmix_alpha: Annotated[float, Field(gt=0.0)]
    tau: Annotated[float, Field(ge=0.0)]
    tau_strong: Annotated[float, Field(ge=0.0)]
    class_balanced_beta: Annotated[float, Field(ge=0.0, lt=1.0)]
    ldam_margin: Annotated[float, Field(ge=0.0)]
    cosine_scale: Annotated[float, Field(gt=0.0)]
    drw_share: Share
    crt_share: Annotated[float, Field(ge=0.0, lt=1.0)]
    smote_neighbours: Count
    distillation_share: Annotated[float, Field(gt=0.0, lt=1.0)]
    distillation_images: Count


class Arms(Section):
    seeds: Annotated[int, Field(ge=1)]
    selection_seeds: Annotated[int, Field(ge=1)]
    real: Annotated[list[Literal[REAL_ARMS]], Field(min_length=1), AfterValidator(_taught)]  # type: ignore[valid-type]
    synthetic_fractions: Annotated[list[Share], Field(min_length=1)]
    labels: Annotated[list[Literal["hard", "soft"]], Field(min_length=1)]
    ensemble: bool
    null_controls: bool
    curve: Annotated[list[Count], AfterValidator(_ascending)]


class Evaluate(Section):
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    bootstrap: Annotated[int, Field(ge=100)]
    tail: Share


class Fit(Section):
    processes: Count


class Engine(Section):
    """Where work is done, and so nothing that a result depends on: no stage has this section among its parameters."""

    kind: Literal["local", "ray"]
    workers: Annotated[int, Field(ge=0)]
    address: str


class Params(Section):
    """The whole of params.yaml. `families` holds each family's raw section."""

    seed: Annotated[int, Field(ge=0)]
    data: Data
    split: Split
    scarcity: Scarcity
    drift: Drift
    generators: Annotated[list[Literal[FAMILIES]], Field(min_length=1)]  # type: ignore[valid-type]
    fit: Fit
    sample: Sample
    judges: Judges
    validate_: Annotated[Validate, Field(alias="validate")]
    measure: Measure
    classifier: Classifier
    arms: Arms
    evaluate: Evaluate
    engine: Engine
    families: Mapping[str, Mapping[str, Any]]

    @property
    def pools(self) -> list[str]:
        """What arms are trained with: the families, and the ensemble of them where it is wanted and there are several."""
        several = len(set(self.generators)) > 1
        return [*dict.fromkeys(self.generators), *([ENSEMBLE] if self.arms.ensemble and several else [])]


S = TypeVar("S", bound=Section)


def parse(model: type[S], values: object, where: str) -> S:
    """`values` as `model`; raises ConfigError that names the key, its value and what was expected."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ([where] if where else []) + list(first["loc"])))
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"params.yaml: unknown parameter {place}", remedy=_nearest(model, first["loc"])) from None
        if first["type"] == "missing":
            lacking = [e["loc"] for e in error.errors() if e["type"] == "missing"]
            names = [".".join(map(str, ([where] if where else []) + list(location))) for location in lacking]
            raise ConfigError(
                f"params.yaml: {', '.join(names)} {'is' if len(names) == 1 else 'are'} missing",
                remedy="run `tailforge upgrade`, which adds the defaults of this version",
            ) from None
        expected = first["msg"].removeprefix("Input should be ")
        raise ConfigError(
            f"params.yaml: {place}={first['input']!r}", expected=expected, remedy=f"change {place} in params.yaml"
        ) from None


def read(path: Path = Path("params.yaml")) -> Params:
    """The settings in `path`, whole and checked. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path.absolute()} does not exist", expected="a project folder", remedy="run `tailforge init PATH --data FOLDER`"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {error}", expected="YAML", remedy=f"mend {path}") from None
    found = values(text, str(path))
    families = {name: found.pop(name) for name in FAMILIES if name in found}
    wanted = found.get("generators")
    for name in wanted if isinstance(wanted, list) else ():
        if name in FAMILIES and name not in families:
            raise ConfigError(
                f"params.yaml: section {name} is missing",
                remedy="run `tailforge upgrade`, which adds the defaults of this version",
            )
    return parse(Params, {**found, "families": families}, "")


def values(text: str, where: str = "params.yaml") -> dict[str, Any]:
    """The sections in `text`, unchecked. Raises ConfigError where it is no YAML or something else than sections."""
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise ConfigError(f"{where}: {error}", expected="YAML", remedy=f"mend {where}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: {type(found).__name__}", expected="sections of settings", remedy=f"mend {where}")
    return found


def _nearest(model: type[Section], location: tuple[int | str, ...]) -> str:
    from difflib import get_close_matches

    kind: Any = model
    for part in location[:-1]:
        field = getattr(kind, "model_fields", {}).get(str(part))
        kind = field.annotation if field else None
    close = get_close_matches(str(location[-1]), list(getattr(kind, "model_fields", {})), n=1)
    return f"did you mean {close[0]}?" if close else "remove it from params.yaml"
