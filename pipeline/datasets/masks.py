"""Masks: images that say where the object of another image lies.

    data.regions=masks      masks lie in that folder of data.path, at the path of their image or at the end of it
    data.regions=*_mask     they lie beside their image, and their names end so
    data.regions=*.png      they lie beside their image, and have another suffix than it

    image                   mask
    train/open/7.png        masks/train/open/7.png     masks/open/7.png     masks/7.png     masks/open/7_mask.png
    train/open/7.jpg        train/open/7_mask.png with *_mask, train/open/7.png with *.png

Every pixel of a mask that is not black belongs to the object (of a JPEG, every pixel that is more white than black). A mask has
the size of its image as it is shown. One that has not, is empty or cannot be read is set aside, and the image is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.config import Data
from pipeline.datasets.decode import reader
from pipeline.datasets.rows import SPLITS, Row, existing_folder, files, inside, text
from pipeline.errors import DataError

ENDINGS = ("_mask", "-mask", "_gt", "_label")  # of names of masks in a folder of their own


@dataclass(frozen=True)
class Masks:
    """The masks of a data set. `files` are found by the path of the image, without suffix."""

    files: dict[str, Path]

    @classmethod
    def of(cls, data: Data) -> Masks:
        """Those that `data.regions` names. Raises DataError where there are none."""
        root = existing_folder(Path(data.path), "data.path")
        beside = _beside(data)
        if beside is None:
            folder = existing_folder(root / data.regions, "data.regions")
            if not inside(folder, root):
                raise DataError(
                    f"data.regions={data.regions!r} leaves {data.path}",
                    expected="a folder in data.path",
                    remedy="move it there",
                )
            found = {_shortened(_stem(file.relative_to(folder))): file for file in files(folder)}
        else:
            masks = (file for file in files(root) if is_mask(data, file.relative_to(root)))
            found = {_stem(file.relative_to(root)).removesuffix(beside.ending): file for file in masks}
        if not found:
            raise DataError(
                f"data.regions={data.regions!r} names no masks in {data.path}",
                expected="a folder of masks, or * and the end of their names",
                remedy="set data.regions in params.yaml",
            )
        return cls(found)

    def find(self, path: str) -> Path | None:
        """The mask of the image at `path`, relative to data.path."""
        parts = Path(os.path.splitext(path)[0]).parts
        beside = parts[1:] if parts[0].lower() in SPLITS else parts
        return next((self.files[key] for at in (parts, beside, parts[-1:]) if (key := "/".join(at)) in self.files), None)


def is_mask(data: Data, relative: Path) -> bool:
    """Whether a file or a folder of data.path is one of masks."""
    if not data.regions:
        return False
    beside = _beside(data)
    if beside is None:
        return relative == Path(data.regions)
    return _stem(relative).endswith(beside.ending) and beside.suffix in ("", relative.suffix.lower())


def attach(rows: Iterator[Row], data: Data) -> Iterator[Row]:
    """`rows` with the masks that `data.regions` names. Raises DataError where no image has one."""
    if not data.regions:
        yield from rows
        return
    masks, met = Masks.of(data), 0
    for row in rows:
        file = masks.find(row.path)
        met += file is not None
        yield replace(row, region=reader(file, Path(data.path))) if file else row
    if not met:
        raise DataError(
            f"data.regions={data.regions!r}: {len(masks.files)} masks, and none has the name of an image",
            expected="the path of each image under data.path, or its name",
            remedy="rename the masks, or set data.regions",
        )


class _Beside(NamedTuple):
    """How names of masks end that lie beside their images: before the suffix, and the suffix, "" for any."""

    ending: str
    suffix: str


def _beside(data: Data) -> _Beside | None:
    """None for a folder of masks."""
    if not data.regions.startswith("*"):
        return None
    ending, dot, suffix = data.regions[1:].rpartition(".")
    return _Beside(ending, f".{suffix.lower()}") if dot else _Beside(suffix, "")


def _stem(relative: Path) -> str:
    return text(os.path.splitext(relative.as_posix())[0])


def _shortened(stem: str) -> str:
    return next((stem.removesuffix(ending) for ending in ENDINGS if stem.endswith(ending)), stem)
