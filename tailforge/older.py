"""What older versions wrote, in the words of this one: metrics.json and release.json of releases that are committed.

    up to 0.2    key best_real_arm -> baseline, key worth -> equivalent_real_images, arm again -> aa_control,
                 results in data/verdicts -> data/checked

Nothing is written: a release stays as it was committed. Whoever reads one reads it through here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = {"best_real_arm": "baseline", "worth": "equivalent_real_images"}
ARMS = {"again": "aa_control"}
FOLDERS = {"data/verdicts/": "data/checked/"}


def metrics(found: Mapping[str, Any]) -> dict[str, Any]:
    """metrics.json. What has today's words, or another form than metrics.json has, comes back as it is."""
    new = _renamed(found, KEYS)
    if isinstance(generators := new.get("generators"), Mapping):
        new["generators"] = {
            name: _renamed(value, KEYS) if isinstance(value, Mapping) else value for name, value in generators.items()
        }
    if isinstance(arms := new.get("arms"), Mapping):
        new["arms"] = _renamed(arms, ARMS)
    return new


def record(found: Mapping[str, Any]) -> dict[str, Any]:
    """release.json."""
    new = metrics(found)
    if isinstance(outs := new.get("outs"), Mapping):
        new["outs"] = {_place(path): md5 for path, md5 in outs.items()}
    return new


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}


def _place(path: str) -> str:
    for old, new in FOLDERS.items():
        if path.startswith(old):
            return new + path.removeprefix(old)
    return path
