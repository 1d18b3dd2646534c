"""The text of params.yaml: laid from the Config classes, changed and completed with its comments and layout kept.

`-S key=value` takes a dotted key and a YAML value, as `dvc exp run -S` does: -S data.source=folder -S generators=[naive].
The text is read by YAML 1.1 (PyYAML, in the stages) and by YAML 1.2 (DVC), so it is written to mean the same in both.

It shows the settings that all families share and the sections of the families that it names. A family that is new in
`generators` gets its section with what suits the size of the images (tailforge/survey.py).
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from inspect import get_annotations
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from pipeline import config
from pipeline.config import Params, Section
from pipeline.errors import ConfigError
from pipeline.registry import GENERATORS

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


# --- laid anew


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
            yield head + _section(name, value, field.description)
        else:
            yield head + _line(f"{name}: {_text(value)}", field.description)
        head = ""
        if name == "generators":
            yield from (_section(*family, None) for family in families.items() if fields(type(family[1])))


def _section(name: str, values: Section, comment: str | None, only: Collection[str] = ()) -> str:
    shown = [key for key in fields(type(values)) if not only or key in only]
    lines = [_line(f"  {key}: {_text(getattr(values, key))}", type(values).model_fields[key].description) for key in shown]
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

    values = survey.fitting(name, params.data.image_size, params.data.channels)
    return registry.family(name).Config.model_validate(values)


# --- read


def checked(text: str) -> Params:
    """The settings in `text`, the families' sections too, whole and checked. Imports torch. Raises ConfigError."""
    from pipeline.generators import registry

    params = config.resolved(config.values(text))
    for family in params.generators:
        registry.settings(params, family)
    return params


def require_interpolated(text: str) -> None:
    """Raise ConfigError where `text` lacks a key that dvc.yaml reads in it: DVC knows no defaults."""
    found = config.values(text)
    if lacking := [key for key in config.INTERPOLATED if not _stands(found, key)]:
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
    return "params.yaml" if _stands(found, key) else "default"


def _stands(found: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return False
        found = found[name]
    return True


def table(settings: Sequence[Setting]) -> str:
    """A line each: key, value, default where it differs, origin, comment."""
    rows = [("setting", "value", "default", "from", "")]
    rows += [(s.key, _text(s.value), _text(s.default) if s.default != s.value else "", s.origin, s.comment) for s in settings]
    widths = [min(COLUMN, max(map(len, column))) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


# --- changed


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
    there = {key: value for key, value in values.items() if _stands(found, key)}
    text = _set(text, there, where)
    for key in sorted(values.keys() - there.keys(), key=lambda key: (_section_of(key) in GENERATORS, [*values].index(key))):
        text = _set(_shown(text, key, where), {key: values[key]}, where)
    return with_families(text, where)[0] if "generators" in values else text


def _set(text: str, values: Mapping[str, Any], where: str) -> str:
    """`text` with `values` in the place of those that stand there."""
    editor = _editor()
    try:
        document = editor.load(text)
    except YAMLError as error:
        raise ConfigError(f"{where}: {error}", expected="YAML", remedy=f"mend {where}") from None
    for key, value in values.items():
        *path, last = key.split(".")
        section = document
        for name in path:
            section = section[name]
        section[last] = _node(value)
    buffer = io.StringIO()
    editor.dump(document, buffer)
    return buffer.getvalue()


def _shown(text: str, key: str, where: str) -> str:
    """`text` with the setting `key` at its default. Raises ConfigError for an unknown one."""
    section, shared, found = _section_of(key), config.sections(), config.values(text, where)
    inside = key.split(".")[1:2]
    if section in shared:
        default, comment = getattr(Params(), _attribute(section)), shared[section].description
    elif section in GENERATORS:
        default, comment = start(section, config.resolved(found)), None
    else:
        raise _unknown(key, section, [*shared, *GENERATORS.names])
    if isinstance(default, Section):
        known = type(default).model_fields
        if inside and inside[0] not in known:
            raise _unknown(key, inside[0], list(known))
        whole = section not in shared and section not in found
        text, _ = completed(text, _section(section, default, comment, () if whole else inside), where)
    elif not inside:
        text, _ = completed(text, _line(f"{section}: {_text(default)}", comment), where)
    if not _stands(config.values(text, where), key):
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
            text, names = completed(text, _section(name, own, None), where)
            added += names
    return text, added


def completed(text: str, template: str, where: str = "params.yaml") -> tuple[str, list[str]]:
    """`text` with the sections and keys of `template` that it lacks, comments too; and their names. Raises ConfigError.

    They are added as text, so that all else stays as it is: a key at the end of its section, a section of a family after those
    of the others, another one at the end.
    """
    own, whole, added = config.values(text, where), yaml.safe_load(template), list[str]()
    lines, blocks = text.rstrip().splitlines(), _blocks(template.splitlines(), "")
    for name, value in whole.items():
        if name not in own:
            end = _end(lines, ["generators", *GENERATORS.names]) if name in GENERATORS else len(lines)
            lines[end:end] = ["", *blocks[name]]
            own[name] = value
            added.append(name)
        elif isinstance(value, dict) and isinstance(own[name], dict):
            for key in [key for key in value if key not in own[name]]:
                end = _end(lines, [name])
                lines[end:end] = _blocks(blocks[name], "  ")[key]
                own[name][key] = value[key]
                added.append(f"{name}.{key}")
    return _sure("\n".join(lines) + "\n", own, f"{where} lacks {', '.join(added)}", "add them by hand"), added


def _end(lines: Sequence[str], names: Collection[str]) -> int:
    """The number of the line after the last of the sections `names`; the end, where none of them is there."""
    blocks = _blocks(lines, "")
    starts = [i for i, line in enumerate(lines) for name in names if name in blocks and line.startswith(f"{name}:")]
    last = max(starts, default=None)
    return len(lines) if last is None else last + len(blocks[lines[last].partition(":")[0]])


def _sure(text: str, meant: Mapping[str, Any], what: str, remedy: str) -> str:
    """`text`, which was changed line by line. Raises ConfigError where it does not mean what it should, as where a section
    stands on one line."""
    try:
        fits = yaml.safe_load(text) == meant
    except yaml.YAMLError:
        fits = False
    if not fits:
        raise ConfigError(what, expected="a key a line", remedy=remedy)
    return text


def _blocks(lines: Sequence[str], indent: str) -> dict[str, list[str]]:
    """{key: its lines} of the keys that stand at `indent`; blank lines and comments between two keys belong to none."""
    found: dict[str, list[str]] = {}
    own: list[str] = []
    for line in lines:
        if match := re.match(rf"{indent}([\w]+):", line):
            own = found.setdefault(match[1], [])
        elif not line.startswith(f"{indent} "):
            own = []
        own.append(line)
    return found


# --- of an older version


def upgraded(text: str) -> tuple[str, list[str]]:
    """`text`, of an older version, for this one; and what was done, a line each. Values and comments stay. Raises ConfigError.

    Keys have their present names. Settings that all families share are added where they are missing. Sections of families
    that `generators` does not name go where they are as they were laid.
    """
    text, renamed = _renamed(text)
    text, dropped = _dropped(text)
    text, added = completed(text, rendered(Params(), {}))
    text, families = with_families(text)
    changes = {"renamed": renamed, "dropped, as they were laid:": dropped, "added": [*added, *families]}
    return text, [f"params.yaml: {verb} {', '.join(names)}" for verb, names in changes.items() if names]


def _renamed(text: str) -> tuple[str, list[str]]:
    done = list[str]()
    for old, new in config.RENAMED.items():
        found = config.values(text)
        (section, key), (place, name) = old.split("."), new.split(".")
        if not _stands(found, old):
            continue
        if _stands(found, new):
            raise ConfigError(f"params.yaml has both {old} and {new}", expected=new, remedy=f"remove {old}")
        lines = text.splitlines()
        block = _blocks(lines, "").get(section, [])
        end = _end(lines, [section])
        begin = end - len(block)
        meant, value = {**found, section: dict(found[section])}, found[section][key]
        del meant[section][key]
        if section == place:
            meant[section][name] = value
            block = [re.sub(rf"^([^#]*(?<![\w.])){key}(?=:)", rf"\g<1>{name}", line) for line in block]
        elif meant[section]:
            own = _blocks(block, "  ").get(key, [])
            block = [line for line in block if line not in own]
        else:
            del meant[section]
            block = []
        lines[begin:end] = block
        text = _sure("\n".join(lines) + "\n", meant, f"params.yaml: {old} is called {new} in this version", "rename it by hand")
        if section != place:
            text = apply(text, {new: value})
        done.append(f"{old} to {new}")
    return text, done


def _dropped(text: str) -> tuple[str, list[str]]:
    """`text` without the sections of families that are not used and that hold what they were laid with."""
    from pipeline.generators import registry

    found = config.values(text)
    params, dropped = config.resolved(found), list[str]()
    for name in params.families.keys() - set(params.generators):
        try:
            held = registry.settings(params, name)
        except ConfigError:  # with a mistake of the user's, who may want to see it
            continue
        if held in (registry.settings(Params(), name), start(name, params)):
            lines = text.splitlines()
            end, n = _end(lines, [name]), len(_blocks(lines, "").get(name, []))
            del lines[end - n : end + (lines[end : end + 1] == [""])]
            del found[name]
            text = _sure("\n".join(lines) + "\n", found, f"params.yaml: section {name} is not used", "remove it by hand")
            dropped.append(name)
    return text, sorted(dropped, key=GENERATORS.names.index)


# --- values


def _text(value: Any) -> str:
    """`value` as it stands after a key."""
    buffer = io.StringIO()
    _editor().dump({"_": _node(value)}, buffer)
    return buffer.getvalue().removeprefix("_:").strip()


def _editor() -> YAML:
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.representer.add_representer(float, _represent_float)
    return editor


def _node(value: Any) -> Any:
    """`value` as the editor writes it on one line."""
    if isinstance(value, dict):
        node = CommentedMap({_node(k): _node(v) for k, v in value.items()})
        node.fa.set_flow_style()
        return node
    if isinstance(value, list):
        sequence = CommentedSeq(map(_node, value))
        sequence.fa.set_flow_style()
        return sequence
    return DoubleQuotedScalarString(value) if isinstance(value, str) and not _word(value) else value


def _word(text: str) -> bool:
    """Whether YAML 1.1 takes `text` without quotes for a string; `no` it takes for false."""
    resolver: Any = yaml.resolver.Resolver()
    return bool(resolver.resolve(yaml.ScalarNode, text, (True, False)) == resolver.DEFAULT_SCALAR_TAG)


def _represent_float(representer: Any, value: float) -> Any:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")  # YAML 1.1 takes 1e-05 for a word
    return representer.represent_scalar(
        "tag:yaml.org,2002:float", {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)
    )
