"""Lists that name images: a groups file, and a file with the train ids that scarcity keeps.

    groups   JSON [{"id", "group", "cls"?, "split"?}, …] or CSV with these columns
    ids      JSON {"ids": {CLASS: [id, …]}} or {"files": {CLASS: [path, …]}}, or those lists alone

An id is a path relative to data.path (with or without its suffix) or a short name: a file's stem, or the 0-based index in an
official set. If a short name is not unique, class and split say which image is meant. A groups file may name a photograph, and
so all images that are parts of it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Params
from pipeline.datasets.rows import SPLITS
from pipeline.datasets.rows import ids as ids_of
from pipeline.errors import DataError


class Names:
    """Finds the row that an id means. `paths`, `names`, `labels`, `splits`, `groups` describe the rows (n,)."""

    def __init__(
        self,
        paths: Sequence[str],
        names: Sequence[str],
        labels: Sequence[str | None],
        splits: Sequence[str | None],
        groups: Sequence[str | None] | None = None,
    ) -> None:
        self._labels, self._splits = labels, splits
        self._rows: dict[str, list[int]] = {}
        self._photographs: dict[str, list[int]] = {}  # the first row of each
        known = set[str]()
        for row, (path, name, group) in enumerate(zip(paths, names, groups or [None] * len(paths), strict=True)):
            own, photograph = ids_of(path, name, group)
            for key in own:
                self._rows.setdefault(key, []).append(row)
            for key in photograph if group not in known else ():
                self._photographs.setdefault(key, []).append(row)
            known.update((group,) if group else ())

    def find(self, name: str, label: str | None, split: str | None, where: str) -> int | None:
        """The row called `name`; None if there is none. Raises DataError if there are several."""
        found = [row for row in self._rows.get(name, ()) if label in (None, self._labels[row])]
        return self._one(found, name, split, where)

    def photograph(self, name: str, split: str | None, where: str) -> int | None:
        """The first row of the photograph called `name`; None if there is none. Raises DataError if there are several."""
        return self._one(self._photographs.get(name, []), name, split, where)

    def _one(self, rows: list[int], name: str, split: str | None, where: str) -> int | None:
        found = [row for row in rows if split is None or self._splits[row] in (split, None)]
        if len(found) > 1:
            raise DataError(
                f"{where}: {name!r} names {len(found)} images",
                expected="one",
                remedy="write paths relative to data.path, or give cls and split",
            )
        return found[0] if found else None


def locate(name: str, folder: Path, key: str) -> Path:
    """The file `name` in `folder`, beside it, or as a path of its own. Raises DataError. `key` is its name in params.yaml."""
    for file in (folder / name, folder.absolute().parent / name, Path(name)):
        if file.is_file():
            return file
    raise DataError(f"{key}={name!r} is no file in {folder}, beside it or here", expected="a file", remedy=f"set {key}")


def files(params: Params) -> dict[str, Path]:
    """The list files that the settings name, by parameter. Raises DataError for a file that does not exist."""
    named = {}
    if params.data.groups:
        named["data.groups"] = params.data.groups
    if params.scarcity.kind == "ids":
        named["scarcity.ids"] = params.scarcity.ids
    return {key: locate(name, Path(params.data.path), key) for key, name in named.items()}


def groups(file: Path, names: Names, n: int, warnings: list[str]) -> list[str | None]:
    """The group of each of n rows; None for rows that the file does not name. Of a photograph, the first row has its group.

    Raises DataError.
    """
    found: list[str | None] = [None] * n
    unknown = 0
    for number, entry in enumerate(_entries(file), start=1):
        if not isinstance(entry, dict) or entry.get("id") in (None, "") or entry.get("group") in (None, ""):
            raise DataError(
                f"{file}, entry {number}: {str(entry)[:80]}",
                expected="id and group, optionally cls and split",
                remedy="correct it",
            )
        label, split = _text(entry.get("cls")), SPLITS.get(str(entry.get("split")))
        row = names.find(str(entry["id"]), label, split, f"{file}, entry {number}")
        if row is None:
            row = names.photograph(str(entry["id"]), split, f"{file}, entry {number}")
        if row is None:
            unknown += 1
        else:
            found[row] = str(entry["group"])
    _tell(file, n - found.count(None), unknown, warnings)
    return found


def ids(file: Path, names: Names, classes: Sequence[str], n: int, warnings: list[str]) -> np.ndarray:
    """Which of n rows the file lists, bool (n,). Raises DataError."""
    value = _json(file)
    value = next((value[key] for key in ("ids", "files") if key in value), value) if isinstance(value, dict) else value
    by_class = value if isinstance(value, dict) else {None: value}
    kept, unknown = np.zeros(n, dtype=bool), 0
    for label, members in by_class.items():
        if not isinstance(members, list) or not all(isinstance(member, str | int) for member in members):
            raise DataError(f"{file}: {str(members)[:60]}", expected="a list of ids for each class", remedy="correct it")
        if label is not None and label not in classes:
            raise DataError(f"{file}: class {label!r}", expected=f"one of {', '.join(classes)}", remedy="correct it")
        for member in members:
            row = names.find(str(member), label, "train", str(file))
            if row is None:
                unknown += 1
            else:
                kept[row] = True
    _tell(file, int(kept.sum()), unknown, warnings)
    return kept


def _tell(file: Path, known: int, unknown: int, warnings: list[str]) -> None:
    if not known:
        raise DataError(
            f"{file}: none of its ids names an image", expected="stems, indices or paths of images", remedy="correct it"
        )
    if unknown:
        warnings.append(f"{file.name}: {unknown} of its ids name no image")


def _entries(file: Path) -> Sequence[Any]:
    if file.suffix.lower() == ".csv":
        try:
            with open(file, encoding="utf-8-sig", newline="") as stream:
                return list(csv.DictReader(stream))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{file}: {error}", expected="a CSV table", remedy="write it again") from None
    value = _json(file)
    if not isinstance(value, list):
        raise DataError(f"{file}: {type(value).__name__}", expected="a list of entries with id and group", remedy="correct it")
    return value


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: {error}", expected="JSON", remedy="correct it") from None


def _text(value: object) -> str | None:
    return None if value in (None, "") else str(value)
