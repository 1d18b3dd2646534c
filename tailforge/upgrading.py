"""A project of an older version, for this one: params.yaml and metrics.json in today's words.

Values and comments stay. What releases hold is not touched: it is translated where it is read (tailforge/older.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipeline import config
from pipeline.config import Params
from pipeline.core import work
from pipeline.errors import ConfigError
from pipeline.registry import GENERATORS
from tailforge import older, settings
from tailforge.commented import blocks, completed, end_of, stands, verified


def params_text(text: str) -> tuple[str, list[str]]:
    """`text`, of an older version, for this one; and what was done, a line each. Values and comments stay. Raises ConfigError.

    Keys have their present names. Settings that all families share are added where they are missing. Sections of families
    that `generators` does not name go where they are as they were laid.
    """
    text, renamed = _renamed(text)
    text, dropped = _dropped(text)
    text, added = completed(text, settings.rendered(Params(), {}))
    text, families = settings.with_families(text)
    changes = {"renamed": renamed, "dropped, as they were laid:": dropped, "added": [*added, *families]}
    return text, [f"params.yaml: {verb} {', '.join(names)}" for verb, names in changes.items() if names]


def _renamed(text: str) -> tuple[str, list[str]]:
    done = list[str]()
    for old, new in config.RENAMED.items():
        found = config.values(text)
        (section, key), (place, name) = old.split("."), new.split(".")
        if not stands(found, old):
            continue
        if stands(found, new):
            raise ConfigError(f"params.yaml has both {old} and {new}", expected=new, remedy=f"remove {old}")
        lines = text.splitlines()
        block = blocks(lines, "").get(section, [])
        end = end_of(lines, [section])
        begin = end - len(block)
        meant, value = {**found, section: dict(found[section])}, found[section][key]
        del meant[section][key]
        if section == place:
            meant[section][name] = value
            block = [re.sub(rf"^([^#]*(?<![\w.])){key}(?=:)", rf"\g<1>{name}", line) for line in block]
        elif meant[section]:
            own = blocks(block, "  ").get(key, [])
            block = [line for line in block if line not in own]
        else:
            del meant[section]
            block = []
        lines[begin:end] = block
        text = verified(
            "\n".join(lines) + "\n", meant, f"params.yaml: {old} is called {new} in this version", "rename it by hand"
        )
        if section != place:
            text = settings.apply(text, {new: value})
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
        if held in (registry.settings(Params(), name), settings.start(name, params)):
            lines = text.splitlines()
            end, n = end_of(lines, [name]), len(blocks(lines, "").get(name, []))
            del lines[end - n : end + (lines[end : end + 1] == [""])]
            del found[name]
            text = verified("\n".join(lines) + "\n", found, f"params.yaml: section {name} is not used", "remove it by hand")
            dropped.append(name)
    return text, sorted(dropped, key=GENERATORS.names.index)


def metrics_file(file: Path) -> list[str]:
    """Bring metrics.json to this version's keys; returns what was done, a line. A missing or torn file is left alone."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or torn: the next run writes it
        return []
    new = older.metrics(found) if isinstance(found, dict) else found
    if new == found:
        return []
    text = file.read_text(encoding="utf-8")
    work.write_json(file, new)
    names = [f"{old} to {now}" for old, now in {**older.KEYS, **older.ARMS}.items() if f'"{old}"' in text]
    return [f"metrics.json: renamed {', '.join(names)}"]
