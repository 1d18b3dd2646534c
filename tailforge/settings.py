"""The text of params.yaml: written from the Config classes, changed and completed.

`-S key=value` takes a dotted key and a YAML value, as `dvc exp run -S` does: -S data.source=folder -S generators=[naive].

The file shows the settings that all families share, and the sections of the families that it names. A family that is new in
`generators` gets its section with what suits the size of the images (tailforge/survey.py). Comments and layout are kept
(tailforge/commented.py).
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from inspect import get_annotations
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import config
from pipeline.config import Params, Section
from pipeline.errors import ConfigError
from pipeline.registry import GENERATORS
from tailforge.commented import as_text, completed, replaced, stands

HEAD = "# Settings of the pipeline. Numbers that may change a result live here; paths of results live in dvc.yaml."
COLUMN, WIDTH = 30, 136  # where comments begin, and where lines end


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted key, the value that holds, the default, where the value is from, and its comment."""

    key: str
    value: Any
    default: Any
    origin: str  # params.yaml | default
    comment: str

    def json(self) -> dict[str, Any]:
        return asdict(self)


def rendered(params: Params, families: Mapping[str, Section]) -> str:
    """params.yaml with the values `params` and the sections `families`, each line with its comment."""
    return "\n\n".join(_parts(params, families)) + "\n"


def initial(values: Mapping[str, Any]) -> str:
    """The params.yaml of a new project: `values` (dotted keys), else the defaults."""
    text = apply(rendered(Params(), {}), values)
    return with_families(text)[0]


def _parts(params: Params, families: Mapping[str, Section]) -> Iterable[str]:
    head = f"{HEAD}\n"
    for name, field in config.sections().items():
        value = getattr(params, _attribute(name))
        if isinstance(value, Section):
            yield head + section(name, value, field.description)
        else:
            yield head + _line(f"{name}: {as_text(value)}", field.description)
        head = ""
        if name == "generators":
            yield from (section(*family, None) for family in families.items() if fields(type(family[1])))


def section(name: str, values: Section, comment: str | None, only: Collection[str] = ()) -> str:
    """The lines of one section, or of the keys `only` in it, under `comment`."""
    shown = [key for key in fields(type(values)) if not only or key in only]
    lines = [_line(f"  {key}: {as_text(getattr(values, key))}", type(values).model_fields[key].description) for key in shown]
    return "\n".join([_line(f"{name}:", comment), *lines])


def _line(left: str, comment: str | None) -> str:
    if not comment:
        return left
    begin = f"{left:<{COLUMN - 1}} # "
    return textwrap.fill(
        " ".join(comment.split()), WIDTH, initial_indent=begin, subsequent_indent=" " * COLUMN + "# ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def fields(model: type[Section]) -> list[str]:
    """The keys of a section in the order of params.yaml: those of its own class, then those that it shares with others."""
    classes = [get_annotations(kind) for kind in model.__mro__]
    return sorted(model.model_fields, key=lambda key: max(i for i, own in enumerate(classes) if key in own))


def _attribute(section: str) -> str:
    return next(name for name, field in Params.model_fields.items() if section in (name, field.alias))


def start(name: str, params: Params) -> Section:
    """The section of a family with which a project begins: its defaults, but what the size of the images calls for."""
    from pipeline.generators import registry
    from tailforge import survey

    values = survey.fitting(name, params.generator_size, params.data.channels)
    return registry.family(name).Config.model_validate(values)


def checked(text: str) -> Params:
    """The settings in `text`, the families' sections too, whole and checked. Imports torch. Raises ConfigError."""
    from pipeline.generators import registry

    params = config.resolved(config.values(text))
    for family in params.generators:
        registry.settings(params, family)
    return params


def touch_families(values: Mapping[str, Any]) -> bool:
    """Whether `values` (dotted keys) say which families there are, or something of one."""
    return any((place := _section_of(key)) == "generators" or place in GENERATORS for key in values)


def require_interpolated(text: str) -> None:
    """Raise ConfigError where `text` lacks a key that dvc.yaml reads in it: DVC knows no defaults."""
    found = config.values(text)
    if lacking := [key for key in config.INTERPOLATED if not stands(found, key)]:
        raise ConfigError(
            f"params.yaml lacks {', '.join(lacking)}",
            expected="the keys that dvc.yaml reads there",
            remedy="run `tailforge upgrade`, which adds it",
        )


def listed(text: str, *, everything: bool = False) -> list[Setting]:
    """All settings under `text`, of the families in `generators` or, with `everything`, of all. Imports torch. Raises
    ConfigError."""
    from pipeline.generators import registry

    found, params = config.values(text), checked(text)
    families = GENERATORS.names if everything else tuple(dict.fromkeys(params.generators))
    listed = list[Setting]()
    for name, field in config.sections().items():
        value, default = getattr(params, _attribute(name)), getattr(Params(), _attribute(name))
        if isinstance(value, Section):
            listed += _settings(name, value, default, found)
        else:
            listed.append(Setting(name, value, default, _origin(found, name), field.description or ""))
        for family in families if name == "generators" else ():
            listed += _settings(family, registry.settings(params, family), registry.settings(Params(), family), found)
    return listed


def _settings(name: str, values: Section, defaults: Section, found: Mapping[str, Any]) -> Iterable[Setting]:
    for key in fields(type(values)):
        comment = " ".join((type(values).model_fields[key].description or "").split())
        place = f"{name}.{key}"
        yield Setting(place, getattr(values, key), getattr(defaults, key), _origin(found, place), comment)


def _origin(found: Mapping[str, Any], key: str) -> str:
    return "params.yaml" if stands(found, key) else "default"


def table(settings: Sequence[Setting]) -> str:
    """A line each: key, value, default where it differs, origin, comment."""
    rows = [("setting", "value", "default", "from", "")]
    rows += [
        (s.key, as_text(s.value), as_text(s.default) if s.default != s.value else "", s.origin, s.comment) for s in settings
    ]
    widths = [min(COLUMN, max(map(len, column))) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def parse(overrides: Sequence[str]) -> dict[str, Any]:
    """{dotted key: value} of `key=value` texts. Raises ConfigError."""
    found = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"-S {text}", expected="key=value", remedy="write for example -S data.image_size=32")
        try:
            found[key] = YAML(typ="safe", pure=True).load(value) if value.strip() else ""
        except YAMLError:
            raise ConfigError(f"-S {text}", expected="a YAML value after =", remedy="quote what is special in YAML") from None
    return found


def apply(text: str, values: Mapping[str, Any], where: str = "params.yaml") -> str:
    """`text` with `values` (dotted keys) set, and with the sections of families that `generators` then names.

    What `text` does not show is added to it. Raises ConfigError for a text that is no YAML, and for an unknown setting.
    """
    found = config.values(text, where)
    there = {key: value for key, value in values.items() if stands(found, key)}
    text = replaced(text, there, where)
    for key in sorted(values.keys() - there.keys(), key=lambda key: (_section_of(key) in GENERATORS, [*values].index(key))):
        text = replaced(_shown(text, key, where), {key: values[key]}, where)
    return with_families(text, where)[0] if "generators" in values else text


def _shown(text: str, key: str, where: str) -> str:
    """`text` with the setting `key` at its default. Raises ConfigError for an unknown one."""
    place, shared, found = _section_of(key), config.sections(), config.values(text, where)
    inside = key.split(".")[1:2]
    if place in shared:
        default, comment = getattr(Params(), _attribute(place)), shared[place].description
    elif place in GENERATORS:
        default, comment = start(place, config.resolved(found)), None
    else:
        raise _unknown(key, place, [*shared, *GENERATORS.names])
    if isinstance(default, Section):
        known = type(default).model_fields
        if inside and inside[0] not in known:
            raise _unknown(key, inside[0], list(known))
        whole = place not in shared and place not in found
        text, _ = completed(text, section(place, default, comment, () if whole else inside), where)
    elif not inside:
        text, _ = completed(text, _line(f"{place}: {as_text(default)}", comment), where)
    if not stands(config.values(text, where), key):
        raise _unknown(key, key, [])
    return text


def _section_of(key: str) -> str:
    return key.partition(".")[0]


def _unknown(key: str, wrong: str, known: Sequence[str]) -> ConfigError:
    close = get_close_matches(wrong, known, n=1)
    place, _, below = key.partition(wrong)
    remedy = f"did you mean {place}{close[0]}{below}?" if close else "see `tailforge settings --all`"
    return ConfigError(f"-S {key}: unknown parameter", expected="a setting", remedy=remedy)


def with_families(text: str, where: str = "params.yaml") -> tuple[str, list[str]]:
    """`text` with a section for each family in `generators` that lacks one, and their names. Raises ConfigError."""
    found = config.values(text, where)
    wanted = found.get("generators", [])
    lacking = [name for name in dict.fromkeys(map(str, wanted)) if name not in found] if isinstance(wanted, list) else []
    added = list[str]()
    for name in lacking:
        if name in GENERATORS and fields(type(own := start(name, config.resolved(found)))):
            text, names = completed(text, section(name, own, None), where)
            added += names
    return text, added
