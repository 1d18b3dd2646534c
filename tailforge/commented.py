"""YAML with comments, changed as text: values are set, keys and sections are added, all else stays as it is.

The text is read by YAML 1.1 (PyYAML, in the stages) and by YAML 1.2 (DVC), so it is written to mean the same in both. What is
changed line by line is read again afterwards: a text that would not mean what it should is refused.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from pipeline import config
from pipeline.errors import ConfigError
from pipeline.registry import GENERATORS


def stands(found: Any, key: str) -> bool:
    """Whether the dotted `key` is in `found`."""
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return False
        found = found[name]
    return True


def replaced(text: str, values: Mapping[str, Any], where: str) -> str:
    """`text` with `values` (dotted keys) in the place of those that are there. Raises ConfigError where `text` is no YAML."""
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


def completed(text: str, template: str, where: str = "params.yaml") -> tuple[str, list[str]]:
    """`text` with the sections and keys of `template` that it lacks, comments too; and their names. Raises ConfigError.

    They are added as text, so that all else stays as it is: a key at the end of its section, a section of a family after those
    of the others, another one at the end.
    """
    own, whole, added = config.values(text, where), yaml.safe_load(template), list[str]()
    lines, sections = text.rstrip().splitlines(), blocks(template.splitlines(), "")
    for name, value in whole.items():
        if name not in own:
            end = end_of(lines, ["generators", *GENERATORS.names]) if name in GENERATORS else len(lines)
            lines[end:end] = ["", *sections[name]]
            own[name] = value
            added.append(name)
        elif isinstance(value, dict) and isinstance(own[name], dict):
            for key in [key for key in value if key not in own[name]]:
                end = end_of(lines, [name])
                lines[end:end] = blocks(sections[name], "  ")[key]
                own[name][key] = value[key]
                added.append(f"{name}.{key}")
    return verified("\n".join(lines) + "\n", own, f"{where} lacks {', '.join(added)}", "add them by hand"), added


def end_of(lines: Sequence[str], names: Collection[str]) -> int:
    """The number of the line after the last of the sections `names`; the end, where none of them is there."""
    found = blocks(lines, "")
    starts = [i for i, line in enumerate(lines) for name in names if name in found and line.startswith(f"{name}:")]
    last = max(starts, default=None)
    return len(lines) if last is None else last + len(found[lines[last].partition(":")[0]])


def verified(text: str, meant: Mapping[str, Any], what: str, remedy: str) -> str:
    """`text`, which was changed line by line. Raises ConfigError where it does not mean what it should, as where a section
    stands on one line."""
    try:
        fits = yaml.safe_load(text) == meant
    except yaml.YAMLError:
        fits = False
    if not fits:
        raise ConfigError(what, expected="a key a line", remedy=remedy)
    return text


def blocks(lines: Sequence[str], indent: str) -> dict[str, list[str]]:
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


def as_text(value: Any) -> str:
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
