"""The settings of a project: params.yaml, and the defaults of what it does not say.

Each section is a frozen model. Its fields carry their default and, as the string below them, the line that explains them;
params.yaml, `tailforge settings` and DVC's parameters are made from these (tailforge/settings.py, pipeline/stages/settings.py).
Unknown keys and mistyped values are refused.

A generator family's own section is described beside its mathematics, in the module that defines it. Here it stays as it was
read, and pipeline/generators/registry.py resolves it, so that settings are read without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from pipeline.errors import ConfigError
from pipeline.registry import ENCODERS, GENERATORS, METRICS, Registry

ENSEMBLE = "ensemble"  # the accepted images of all generators, pooled
SELF_DISTILLATION = "self_distillation"  # the student of the best of the other real-only arms
# What `arms.real` may name, and what the report says of it; the recipes are in pipeline/arms/recipes.py.
REAL_ARMS = {
    "real": "the train images as they are",
    "oversample": "rare classes drawn more often",
    "logit_adjustment": "loss shifted by the class shares",
    "augment": "train images varied at random",
    "augment+logit_adjustment": "random variation and shifted loss together",
    "augment+logit_adjustment_strong": "the same, the loss shifted further",
    "mixup": "mixed pairs of train images",
    "cutmix": "random variation, and a box of one image in another",
    "cutmix+logit_adjustment": "the same, and shifted loss",
    "class_balanced": "random variation, and a loss that weighs rare classes more",
    "ldam_drw": "margins for rare classes, which weigh more towards the end",
    "crt": "random variation; the last layer trained anew on even classes",
    "smote": "classes filled with points between their train images",
    SELF_DISTILLATION: "soft labels of the best recipe's runs, learned from varied train images",
}
# Keys of older versions and what they are called now; `tailforge upgrade` translates them.
RENAMED = {"arms.doses": "arms.synthetic_fractions", "external.path": "data.external"}
INTERPOLATED = ("generators", "data.path", "data.external")  # what dvc.yaml reads in params.yaml, so that it must stand there

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Mode = Literal["scratch", "frozen", "finetune"]  # how a classifier is trained


def _ascending(values: list[int]) -> list[int]:
    if any(a >= b for a, b in pairwise(values)):
        raise PydanticCustomError("ascending", "Input should be numbers in ascending order")
    return values


def _taught(arms: list[str]) -> list[str]:
    if set(arms) == {SELF_DISTILLATION}:
        raise PydanticCustomError("taught", "Input should be self_distillation and another arm, whose student it is")
    return arms


def _named(registry: Registry) -> AfterValidator:
    """A validator of names that `registry` knows."""

    def check(name: str) -> str:
        if name not in registry:
            raise PydanticCustomError("known", "Input should be {names}", {"names": registry.expected(name)})
        return name

    return AfterValidator(check)


class Section(BaseModel):
    """A section of params.yaml. Each field has a default, and a docstring that explains it and names its unit."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )  # fmt: skip


class Data(Section):
    source: Literal["digits", "folder", "table", "idx", "torchvision", "coco", "voc", "yolo", "labelme"] = "digits"
    """digits | folder | table | idx | torchvision; photographs with objects: coco | voc | yolo | labelme"""
    path: str = "data/raw"
    """folder with the images (digits needs none; torchvision downloads into it)"""
    external: str = "data/external"
    """folder with synthetic images made elsewhere, for the generator external: class folders, or Parquet"""
    name: str = ""
    """torchvision: the data set, e.g. CIFAR10"""
    table: str = ""
    """table: CSV or Parquet in `path`, columns path, label and optionally group, split"""
    leave_out: list[str] = []
    """classes whose images are not used"""
    groups: str = ""
    """JSON or CSV in `path` or beside it with id, group (same object, patient, board)"""
    unit: Literal["object", "photograph"] = "object"
    """object (each is cut out) | photograph (whole; its class is that of its rarest object)"""
    margin: Annotated[float, Field(ge=0.0)] = 0.15
    """object: share of its box's longer side that is added on each side"""
    backgrounds: Annotated[int, Field(ge=0)] = 0
    """crops of each photograph that touch no object, of class background"""
    regions: str = ""
    """masks of the objects, for the generator compose: a folder in `path`, or *_mask, *.png for those beside their images"""
    image_size: Annotated[int, Field(ge=4, le=1024)] = 8
    """pixels; every image is brought to image_size x image_size"""
    channels: Literal[1, 3] = 1
    """1 grey | 3 RGB"""
    resize: Literal["pad", "crop", "stretch"] = "pad"
    """pad | crop | stretch: how other aspect ratios are brought to a square"""
    flips: Literal["none", "horizontal", "both"] = "none"
    """none | horizontal | both: mirror images that keep their label"""


class Encoder(Section):
    name: str = "none"
    """none | a model of timm with its weights, e.g. tf_efficientnet_lite0.in1k"""
    weights: str = ""
    """safetensors file of its weights; else those of an installed package, of the hub's cache, or downloaded"""
    size: Annotated[int, Field(ge=0, le=1024)] = 0
    """pixels a side that it looks at; 0: as it was trained"""


class Split(Section):
    val: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """share of images (whole groups)"""
    test: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """share of images (whole groups)"""
    near_duplicate_levels: Annotated[float, Field(ge=0.0, le=255.0)] = 2.0
    """images whose mean difference is below (of 255) stay on one side"""
    on_identical: Literal["error", "drop"] = "error"
    """error | drop: the same image in an official train and test set"""


class Drift(Section):
    encoder: Annotated[str, _named(ENCODERS)] = "statistics"
    """statistics | pixels | thumbnails | pretrained (the section encoder): what makes features of images; none is fitted"""
    test: Literal["mmd", "energy"] = "mmd"
    """mmd | energy: two-sample test of each class on these features"""
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.01
    """probability of a false alarm, all classes together, each time that images came"""
    permutations: Count = 2000
    """relabellings behind a p-value; with many classes so many more that alpha can be reached"""
    least_change_of_counts: Annotated[float, Field(gt=0.0)] = 0.25
    """images that came to a class, as a share of those before, from which it counts as changed"""
    retrain: Literal["when_drifted", "always"] = "when_drifted"
    """when_drifted | always: generators are fitted anew where train drifted, or whenever it changed"""


class Scarcity(Section):
    kind: Literal["as_is", "long_tail", "counts", "ids"] = "long_tail"
    """as_is | long_tail | counts | ids"""
    ratio: Annotated[float, Field(ge=1.0)] = 20.0
    """long_tail: largest class / smallest class"""
    largest: Count = 60
    """long_tail: images in the largest class"""
    counts: Mapping[str, Annotated[int, Field(ge=0)]] = {}
    """counts: images per class"""
    ids: str = ""
    """ids: JSON file with the train ids to keep"""
    dropped: Literal["test", "discard"] = "test"
    """test | discard: train images left out go to the test set where it is not an official one"""


class Sample(Section):
    fill_to: Annotated[int, Field(ge=0)] = 60
    """images of a class, real and accepted ones together, below which a warning is given"""
    surplus: Annotated[float, Field(ge=1.0)] = 1.5
    """so many times fill_to images are made of each class, since some are rejected"""
    shard_images: Count = 500
    """images a Parquet file"""


class Judges(Section):
    encoder: Annotated[str, _named(ENCODERS)] = "small"
    """small (a network fitted for each judge) | pretrained (the section encoder), statistics, pixels, thumbnails (fixed, one
    for all judges)"""
    folds: Annotated[int, Field(ge=2)] = 3
    """judge k is fitted without fold k"""
    steps: Count = 300
    """optimiser steps of each"""
    batch_images: Count = 64
    """images an optimiser step"""
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    """channels at full resolution, a multiple of 8"""
    lr: Annotated[float, Field(gt=0.0)] = 0.003
    """AdamW, warmed up, then cosine to 0"""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.02
    """of matrices, not of gains and biases"""
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.98
    """decay per step of the moving average of the weights"""


class Validate(Section):
    agreement: Share = 0.3
    """least mean probability of the image's own label under the judges, relative to the likeliest label"""
    bayes: bool = False
    """the family's own p(y | x), by Bayes' rule, as one more judge; costs a likelihood per image and class"""
    copy_quantile: Share = 0.02
    """quantile of real nearest-neighbour distances below which an image is a copy ..."""
    copy_slack: Annotated[float, Field(ge=0.0)] = 0.5
    """... times this"""
    moved_slack: Annotated[float, Field(ge=0.0)] = 0.85
    """... and times this among features, where copies that were turned, cropped or moved are looked for"""
    outlier_quantile: Share = 0.95
    """quantile of real distances above which an image is an outlier ..."""
    outlier_slack: Annotated[float, Field(ge=0.0)] = 1.25
    """... times this"""
    shrinkage: Annotated[float, Field(gt=0.0)] = 20.0
    """images: a class of so many has half its own quantile, half that of all classes"""
    blank_std: Annotated[float, Field(ge=0.0)] = 2.0
    """least standard deviation of an image's pixels, of 255"""
    largest_share: Share = 0.99
    """share of synthetic images in a class above which a warning is given"""
    neighbours: Count = 5
    """k of precision, recall, density and coverage"""
    bootstrap: Count = 200
    """resamples behind the intervals of fidelity and diversity"""


class Measure(Section):
    seeds: Count = 3
    """classifiers trained on its images alone, for the classification accuracy score"""
    rows: Annotated[int, Field(ge=0)] = 100
    """validation rows on which densities are asked; 0 asks none"""


class Classifier(Section):
    mode: Mode = "scratch"
    """scratch (a network from fresh weights) | frozen (a small network on features of the encoder) | finetune (the encoder,
    trained on); the last two have sections of their own"""
    modes: list[Mode] = []
    """the modes that are compared: the best arm of all is the one to beat; [] is `mode` alone"""
    image_size: Annotated[int, Field(ge=0, le=1024)] = 0
    """scratch: pixels a side that the network looks at, at most data.image_size; 0: the same"""
    network: Literal["auto", "small", "resnet18"] = "auto"
    """auto (small below 64 pixels, resnet18 from there) | small | resnet18"""
    width: Count = 32
    """channels at full resolution, a multiple of 8"""
    steps: Count = 500
    """optimiser steps, equal for all arms"""
    batch_images: Count = 32
    """images an optimiser step"""
    lr: Annotated[float, Field(gt=0.0)] = 0.004
    """AdamW, warmed up, then cosine to 0"""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.5
    """of matrices, not of gains and biases"""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """share of what the last layer is handed that a step leaves out; resnet18 has none"""
    augment: Literal["affine", "flip_affine", "crop", "trivial"] = "affine"
    """affine | flip_affine | crop | trivial"""
    mixup_alpha: Annotated[float, Field(gt=0.0)] = 0.4
    """pairs are mixed by Beta(alpha, alpha)"""
    cutmix_alpha: Annotated[float, Field(gt=0.0)] = 1.0
    """shares of the pasted boxes are drawn from Beta(alpha, alpha)"""
    tau: Annotated[float, Field(ge=0.0)] = 1.0
    """strength of logit adjustment; 1 is balanced softmax"""
    tau_strong: Annotated[float, Field(ge=0.0)] = 1.5
    """the same of augment+logit_adjustment_strong"""
    class_balanced_beta: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """of the effective number of images; 0 weighs classes alike, towards 1 by 1 / images; also of ldam_drw"""
    ldam_margin: Annotated[float, Field(ge=0.0)] = 0.5
    """of the class with the fewest images, in units of a cosine"""
    cosine_scale: Annotated[float, Field(gt=0.0)] = 30.0
    """ldam_drw: logits are so many times a cosine"""
    drw_share: Share = 0.2
    """ldam_drw: share of the steps, the last ones, in which classes are weighed"""
    crt_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    """crt: share of the steps, the last ones, that train the last layer anew on even classes"""
    smote_neighbours: Count = 5
    """smote: nearest images of the class between which points are made"""
    distillation_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """self_distillation: share of the draws that goes to augmented train images with soft labels"""
    distillation_images: Count = 500
    """self_distillation: so many augmented train images of each class"""


class Frozen(Section):
    views: Annotated[int, Field(ge=0, le=64)] = 4
    """moved views of an image, beside the image as it is, that are learned from and asked about; all images have the same"""
    width: Annotated[int, Field(ge=0)] = 256
    """units of the hidden layer; 0: none, a linear layer alone"""
    steps: Count = 300
    """optimiser steps, equal for all arms"""
    batch_images: Count = 64
    """images an optimiser step"""
    lr: Annotated[float, Field(gt=0.0)] = 0.001
    """AdamW, warmed up, then cosine to 0"""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.5
    """of matrices, not of gains and biases"""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """share of the features that a step leaves out"""


class Finetune(Section):
    size: Annotated[int, Field(ge=0, le=1024)] = 0
    """pixels a side that it looks at; 0: encoder.size"""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """0: all weights are trained; else changes of this rank to the layers of attention, and the last layer (LoRA)"""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.85
    """learning rate of a layer, as a share of that of the layer after it; the last layer has lr"""
    steps: Count = 200
    """optimiser steps, equal for all arms"""
    batch_images: Count = 32
    """images an optimiser step"""
    lr: Annotated[float, Field(gt=0.0)] = 0.001
    """AdamW, warmed up, then cosine to 0"""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    """of matrices, not of gains and biases"""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """share of the features that a step leaves out"""


class ClassifierInMode(Classifier):
    """The settings of the classifier in one mode: all that rebuilds its network. Not a section of params.yaml."""

    encoder: Encoder = Encoder()
    """finetune: whose weights it starts from, and the pixels that it looks at"""
    width: Annotated[int, Field(ge=0)] = 32
    """frozen: may be 0"""
    lora_rank: int = 0
    """as in Finetune"""
    layer_decay: float = 1.0
    """as in Finetune"""


class Arms(Section):
    seeds: Annotated[int, Field(ge=1)] = 5
    """runs of each arm; fewer than 5 say little"""
    selection_seeds: Annotated[int, Field(ge=1)] = 3
    """seeds by which fraction and labels are chosen on validation"""
    real: Annotated[list[Literal[tuple(REAL_ARMS)]], Field(min_length=1), AfterValidator(_taught)] = [  # type: ignore[valid-type]
        "real", "oversample", "logit_adjustment", "augment", "augment+logit_adjustment", "mixup", SELF_DISTILLATION,
    ]  # fmt: skip
    """the baselines; also augment+logit_adjustment_strong, cutmix, cutmix+logit_adjustment, class_balanced, ldam_drw, crt,
    smote"""
    synthetic_fractions: Annotated[list[Share], Field(min_length=1)] = [0.0, 0.25, 0.5]
    """share of the draws that goes to synthetic images; 0 is the best real-only arm itself"""
    labels: Annotated[list[Literal["hard", "soft"]], Field(min_length=1)] = ["hard", "soft"]
    """of synthetic images: hard is the class asked for, soft what the runs of the best recipe say of them"""
    ensemble: bool = False
    """also pool the accepted images of all `generators`, as arms of their own"""
    null_controls: bool = False
    """also train two arms that cannot be a gain: shuffled labels, and the best real-only arm again"""
    curve: Annotated[list[Count], AfterValidator(_ascending)] = []
    """also train the best real-only arm on so many more real images a class, of those that scarcity left out"""


class Evaluate(Section):
    metric: Annotated[str, _named(METRICS)] = "balanced_accuracy"
    """balanced_accuracy | macro_f1 | worst_class_recall | average_precision: decides choices and verdict"""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """of all intervals"""
    bootstrap: Annotated[int, Field(ge=100)] = 2000
    """resamples: seeds, then groups"""
    tail: Share = 0.34
    """share of the classes that is called tail, and as many head"""


class Fit(Section):
    image_size: Annotated[int, Field(ge=0, le=1024)] = 0
    """pixels a side at which generators work, at most data.image_size, to which their images are enlarged; 0: the same"""
    processes: Count = 1
    """that share each batch of a family of networks; weights are close, not equal, for another number"""


class Engine(Section):
    """Where work is done, and so nothing that a result depends on: no stage has this section among its parameters."""

    kind: Literal["local", "ray"] = "local"
    """local: processes of this machine | ray: a cluster of Ray (the extra tailforge[ray])"""
    workers: Annotated[int, Field(ge=0)] = 0
    """processes; 0 as suits the work: local one to sample and one a core to classify, ray all that it has"""
    address: str = "auto"
    """ray: host:port, auto for a cluster that runs on this machine, local to start one for each stage"""


class Params(Section):
    """All settings. `families` holds the sections of families as they stand in params.yaml, unchecked."""

    seed: Annotated[int, Field(ge=0)] = 0
    """every random stream is derived from it by name"""
    data: Data = Data()
    encoder: Encoder = Encoder()
    """a network that others trained, for whatever is set to `pretrained` or `frozen`"""
    split: Split = Split()
    """where the data bring no split of their own"""
    scarcity: Scarcity = Scarcity()
    """applied to train alone"""
    drift: Drift = Drift()
    """images that came since the generators were fitted, against those that they were fitted on"""
    generators: Annotated[
        list[Annotated[str, _named(GENERATORS)]], Field(min_length=1, description=" | ".join(GENERATORS.ours))
    ] = ["flow_matching"]
    fit: Fit = Fit()
    sample: Sample = Sample()
    judges: Judges = Judges()
    """small networks fitted on folds of train; they embed, agree on labels and calibrate"""
    validate_: Annotated[Validate, Field(alias="validate")] = Validate()
    measure: Measure = Measure()
    """what each family is worth on real validation rows"""
    classifier: Classifier = Classifier()
    frozen: Frozen = Frozen()
    """the classifier in the mode frozen; what stands here takes the place of the same keys of classifier"""
    finetune: Finetune = Finetune()
    """the same in the mode finetune"""
    arms: Arms = Arms()
    evaluate: Evaluate = Evaluate()
    engine: Engine = Engine()
    """where shards of pools and classifiers are made: decides no result, reruns nothing"""
    families: Mapping[str, Mapping[str, Any]] = {}

    @property
    def generator_size(self) -> int:
        """Pixels a side of the images that generators are fitted on and make."""
        return min(self.fit.image_size or self.data.image_size, self.data.image_size)

    @property
    def modes(self) -> list[Mode]:
        """The modes of the classifier that are compared, each once."""
        return list(dict.fromkeys(self.classifier.modes)) or [self.classifier.mode]

    def in_mode(self, mode: Mode) -> ClassifierInMode:
        """The settings of the classifier in one mode."""
        values = {**self.classifier.model_dump(), "mode": mode, "modes": []}
        if mode == "frozen":
            values |= self.frozen.model_dump(include=set(Classifier.model_fields))
        if mode == "finetune":
            values |= self.finetune.model_dump(exclude={"size"})
            values["encoder"] = self.encoder.model_copy(update={"size": self.finetune.size or self.encoder.size})
        return ClassifierInMode.model_validate(values)

    def arm_name(self, mode: Mode, arm: str) -> str:
        """What an arm is called in one mode: by its own name where there is only one."""
        return arm if len(self.modes) == 1 else f"{mode}:{arm}"

    @property
    def pools(self) -> list[str]:
        """What arms are trained with: the families, and the ensemble of them where it is wanted and there are several."""
        several = len(set(self.generators)) > 1
        return [*dict.fromkeys(self.generators), *([ENSEMBLE] if self.arms.ensemble and several else [])]


S = TypeVar("S", bound=Section)


def sections() -> dict[str, FieldInfo]:
    """The settings that all families share, in the order of params.yaml: sections and, as `seed` is, single values."""
    return {field.alias or name: field for name, field in Params.model_fields.items() if name != "families"}


def parse(model: type[S], values: object, where: str) -> S:
    """`values` as `model`, what they do not say at its default; raises ConfigError that names the key, its value and what was
    expected."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ([where] if where else []) + list(first["loc"]))).removeprefix("families.")
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"params.yaml: unknown parameter {place}", remedy=_nearest(model, first["loc"])) from None
        if first["type"] == "missing":
            raise ConfigError(f"params.yaml: {place} is missing, and has no default", remedy=f"set {place}") from None
        expected = first["msg"].removeprefix("Input should be ")
        raise ConfigError(
            f"params.yaml: {place}={first['input']!r}", expected=expected, remedy=f"change {place} in params.yaml"
        ) from None


def read(path: Path = Path("params.yaml")) -> Params:
    """The settings in `path`, checked, what it does not say at its default. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path.absolute()} does not exist", expected="a project folder", remedy="run `tailforge init PATH --data FOLDER`"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {error}", expected="YAML", remedy=f"mend {path}") from None
    return resolved(values(text, str(path)))


def resolved(found: Mapping[str, Any]) -> Params:
    """The sections `found`, checked, what they do not say at its default. Raises ConfigError."""
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        if isinstance(found.get(section), dict) and key in found[section]:
            raise ConfigError(f"params.yaml: {old} is called {new} in this version", remedy="run `tailforge upgrade`")
    shared = sections()
    families = {name: value for name, value in found.items() if name not in shared and name in GENERATORS}
    rest = {name: value for name, value in found.items() if name not in families}
    if "families" in rest:
        raise ConfigError("params.yaml: unknown parameter families", remedy="remove it from params.yaml")
    return parse(Params, {**rest, "families": families}, "")


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
    known = [field.alias or name for name, field in getattr(kind, "model_fields", {}).items()]
    close = get_close_matches(str(location[-1]), [*known, *(GENERATORS.names if kind is Params else ())], n=1)
    return f"did you mean {close[0]}?" if close else "remove it from params.yaml"
