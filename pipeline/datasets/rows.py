"""Row: an image as a source names it, before anything is decoded or decided.

A source is a module of this folder with `rows(data) -> Iterator[Row]`. It lists its rows in an order that depends on their
names alone, and reads no image until `read` is called. So a million rows cost no memory.

    digits        scikit-learn's 1,797 handwritten digits
    folder        class folders, with or without train, val and test above them
    table         CSV or Parquet with the columns path, label and optionally group, split
    idx           the MNIST family, compressed or not
    torchvision   a classification set of torchvision.datasets
    coco, voc, yolo, labelme   photographs with annotated objects, each of which is cut out (objects.py)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL.Image import Image

from pipeline.config import Data
from pipeline.errors import DataError

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
FORMATS = "PNG, JPEG, TIFF, BMP or WebP"
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Bounds = tuple[float, float, float, float]  # the same, in pixels or shares


@dataclass(frozen=True)
class Part:
    """A part of a photograph that is an image of its own."""

    box: Callable[[int, int], Box | str]  # where it is in a photograph of that width and height, or why it is nowhere
    size: tuple[int, int] | None  # width and height of the photograph as it was annotated, if known
    # What is known of where its object is in the part `box` of that photograph, if it shows one, the best first: region_origin
    # of a manifest, and the share of each pixel that the object covers, uint8 (h, w).
    object: Callable[[Box, int, int], Iterator[tuple[str, np.ndarray]]] | None = None


@dataclass(frozen=True)
class Row:
    """One image. `path` is unique in its source and is shown to users. `name` is its short name (the file's stem, or the index
    in an official set), which lists of ids and groups may use."""

    path: str
    name: str
    label: str | None  # None if it is unknown; such a row is set aside
    read: Callable[[], AbstractContextManager[Image]]
    split: str | None = None  # train | val | test if the data have a split of their own
    group: str | None = None
    sources: tuple[str, ...] | None = None  # external images: the train rows they came from, if known
    part: Part | None = None  # the image is this part of what is read; rows that share `read` are cut from what is decoded once
    region: Callable[[], AbstractContextManager[Image]] | None = None  # the mask of its object, if there is one


def rows(data: Data) -> Iterator[Row]:
    """The rows of the source that `data` names, but for classes that it leaves out.

    Raises DataError if its folder, table or files are not as expected, or a class that is left out is not there.
    """
    unseen = set(data.leave_out)
    for row in import_module(f"pipeline.datasets.{data.source}").rows(data):
        if row.label in data.leave_out:
            unseen.discard(row.label)
        else:
            yield row
    if unseen:
        raise DataError(
            f"data.leave_out names {', '.join(sorted(unseen))}", expected="classes of the data", remedy="correct data.leave_out"
        )


def existing_folder(path: Path, key: str) -> Path:
    """`path`. Raises DataError if it is not a folder. `key` is its name in params.yaml."""
    if not path.is_dir():
        raise DataError(
            f"{key}={str(path)!r} {'is a file' if path.exists() else 'does not exist'}",
            expected="a folder",
            remedy=f"set {key} in params.yaml",
        )
    return path


def text(name: str | bytes | os.PathLike[str]) -> str:
    """A file's name as text that can be stored: bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def ids(path: str, name: str, group: str | None) -> tuple[set[str], set[str]]:
    """What lists may call a row; and what they may call the photograph `group` if the row is a part of it."""
    if group is None or not path.startswith(f"{group}#"):
        return {path, os.path.splitext(path)[0], name}, set()
    return {path, name}, {group, os.path.splitext(group)[0], Path(group).stem}


def files(folder: Path) -> Iterator[Path]:
    """The files in and below a folder, by name; hidden files and READMEs are passed over."""
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).stem.upper() != "README":
                yield Path(place, name)


def inside(file: Path, root: Path) -> bool:
    """Whether `file`, with links followed, is inside the folder `root`."""
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(root))


def natural(labels: list[str]) -> list[str]:
    """Labels in order: numeric order if all are numbers, else by name."""
    if all(label.isascii() and label.isdigit() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
