"""Change values in the text of params.yaml; comments and layout stay.

`-S key=value` takes a dotted key and a YAML value, as `dvc exp run -S` does: -S data.source=folder -S generators=[naive].
The text is read by YAML 1.1 (PyYAML, in the stages) and by YAML 1.2 (DVC), so it is written to mean the same in both.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from pipeline import config
from pipeline.errors import ConfigError


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
    """`text` with `values` (dotted keys) set. Raises ConfigError for a text that is no YAML, or a key that is not in it."""
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.representer.add_representer(float, _represent_float)
    try:
        document = editor.load(text)
    except YAMLError as error:
        raise ConfigError(f"{where}: {error}", expected="YAML", remedy=f"mend {where}") from None
    for key, value in values.items():
        *path, last = key.split(".")
        section = document
        for name in path:
            section = section.get(name) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            close = get_close_matches(last, list(section), n=1) if isinstance(section, dict) else []
            meant = f"did you mean {'.'.join([*path, *close])}?" if close else f"see {where}"
            raise ConfigError(f"-S {key}: unknown parameter", expected=f"a key of {where}", remedy=meant)
        section[last] = _node(value)
    buffer = io.StringIO()
    editor.dump(document, buffer)
    return buffer.getvalue()


def completed(text: str, template: str, where: str = "params.yaml") -> tuple[str, list[str]]:
    """`text` with the sections and keys of `template` that it lacks, comments too; and their names. Raises ConfigError.

    They are added as text, so that all else stays as it is: a section at the end, a key at the end of its section.
    """
    own, whole, added = config.values(text, where), yaml.safe_load(template), list[str]()
    lines, blocks = text.rstrip().splitlines(), _blocks(template.splitlines(), "")
    for name, value in whole.items():
        if name not in own:
            lines += ["", *blocks[name]]
            own[name] = value
            added.append(name)
        elif isinstance(value, dict) and isinstance(own[name], dict):
            for key in [key for key in value if key not in own[name]]:
                section = _blocks(lines, "").get(name, [])
                end = next((i for i, line in enumerate(lines) if lines[i : i + len(section)] == section), 0) + len(section)
                lines[end:end] = _blocks(blocks[name], "  ")[key]
                own[name][key] = value[key]
                added.append(f"{name}.{key}")
    made = "\n".join(lines) + "\n"
    try:
        fits = yaml.safe_load(made) == own
    except yaml.YAMLError:
        fits = False
    if not fits:  # a section on one line, for example
        raise ConfigError(f"{where} lacks {', '.join(added)}", expected="all settings", remedy="add them by hand")
    return made, added


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


def checked(text: str) -> config.Params:
    """The settings in `text`, the families' sections too, whole and checked. Imports torch. Raises ConfigError."""
    from pipeline.generators import registry

    with TemporaryDirectory() as temporary:
        file = Path(temporary, "params.yaml")
        file.write_text(text, encoding="utf-8")
        params = config.read(file)
    for family in params.generators:
        registry.settings(params, family)
    return params


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
