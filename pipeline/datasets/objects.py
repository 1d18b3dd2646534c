"""From photographs with annotated objects to images of one object each.

    crop        a square around the middle of the object's box, (1 + 2 margin) times as wide as the box's longer side, at most
                as wide as the photograph's shorter side, and moved to where it is inside the photograph
    long crop   of an object longer than the photograph's shorter side: its box with the margin, inside the photograph
    background  a crop of the size of a random object, at a random place of the photograph where it touches no object

A box is (left, top, right, bottom) in pixels, where pixel i reaches from i to i + 1. What is outside of the photograph is cut
off. Where an object lies in its crop is what its outline says, or its box if it has none that can be drawn (outlines.py).

A reader (coco, voc, yolo, labelme) lists photographs, and opens none of them. What does not fit becomes a row that says
why it is set aside.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL.Image import Image

from pipeline.config import Data
from pipeline.core.seeds import numpy_rng
from pipeline.datasets import outlines
from pipeline.datasets.decode import MAX_PIXELS, Unreadable, opened, upright
from pipeline.datasets.outlines import Outline
from pipeline.datasets.rows import SPLITS, Bounds, Box, Part, Row, inside, text
from pipeline.errors import DataError

BACKGROUND = "background"
TRIES = 50  # places tried for a background
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")

Read = Callable[[], AbstractContextManager[Image]]


class Annotated(NamedTuple):
    """An object of a photograph."""

    label: str | None  # None if it is unknown
    box: Bounds | None  # None if it cannot be told
    flaw: str = ""  # why it is no image
    crowd: bool = False  # many objects in one box, which are no image
    outline: Outline | None = None  # None if it has none, or is no image

    @property
    def usable(self) -> bool:
        """Whether it can be an image, as far as its annotation tells."""
        return not self.flaw and not self.crowd


class Photograph(NamedTuple):
    """A photograph and its objects."""

    path: str  # relative to data.path
    objects: Sequence[Annotated] = ()
    size: tuple[int, int] | None = None  # width and height as annotated, if known
    split: str | None = None  # train | val | test if the data have a split of their own
    shares: bool = False  # boxes and outlines are in shares of the upright photograph's width and height
    flaw: str = ""  # why it is set aside


def annotated(
    label: str | None,
    corners: Iterable[object],
    *,
    unknown: str = "no class",
    crowd: bool = False,
    outline: Outline | None = None,
) -> Annotated:
    """An object with the box (left, top, right, bottom). `unknown` says why it has no label, where it has none."""
    values = [number(value) for value in corners]
    if len(values) != 4 or not all(map(math.isfinite, values)):
        return Annotated(label or None, None, "a box that is not four numbers", crowd)
    left, top, right, bottom = values
    if right <= left or bottom <= top:
        return Annotated(label or None, None, f"a box of no area: {_said((left, top, right, bottom))}", crowd)
    return Annotated(label or None, (left, top, right, bottom), "" if label else unknown, crowd, outline)


def outlined(
    label: str | None,
    points: Iterable[Sequence[object]],
    *,
    least: int = 3,
    unknown: str = "no class",
    crowd: bool = False,
    outline: Outline | None = None,
) -> Annotated:
    """An object with the bounding box of points (x, y), of which there are `least` or more. `outline` is what they enclose."""
    xy = [(number(x), number(y)) for x, y in points]
    if len(xy) < least:
        return Annotated(label or None, None, f"an outline of {len(xy)} points", crowd)
    x, y = zip(*xy, strict=True)
    known = all(map(math.isfinite, (*x, *y)))  # min and max would pass over what is no number
    corners = (min(x), min(y), max(x), max(y)) if known else (math.nan,) * 4
    return annotated(label, corners, unknown=unknown, crowd=crowd, outline=outline)


def number(value: object) -> float:
    """The number that a value of JSON or a text says; not a number if it says none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def frame(width: object, height: object) -> tuple[int, int] | None:
    """Width and height as annotated, in whole pixels; None where an annotation does not say them."""
    w, h = number(width), number(height)
    return (int(min(w, MAX_PIXELS)), int(min(h, MAX_PIXELS))) if w >= 1 and h >= 1 else None


def content(file: Path, root: Path) -> bytes:
    """The bytes of a file of annotations. Raises Unreadable if it is not inside `root`, DataError if it cannot be read."""
    if not inside(file, root):
        raise Unreadable("a path that leaves data.path")
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{text(file)}: {error.strerror}", expected="a readable file", remedy="restore it") from None


def split_of_folder(file: Path, root: Path) -> str | None:
    """The official split that a file is in, if the folders in `root` are train and others."""
    top = file.relative_to(root).parts[0].lower()
    return SPLITS.get(top) if (root / "train").is_dir() else None


def rows(data: Data, photographs: Callable[[], Iterator[Photograph]]) -> Iterator[Row]:
    """The rows of the photographs that each call of `photographs` lists anew, as data.unit says."""
    root, counts, sizes = Path(data.path), Counter[str](), array("d")
    if data.unit == "photograph" or data.backgrounds:
        for photograph in photographs():
            for one in photograph.objects:
                if one.usable and one.label and one.box:
                    counts[one.label] += 1
                    sizes.extend((one.box[2] - one.box[0], one.box[3] - one.box[1]))
    for photograph in photographs():
        read = partial(_read, root / photograph.path, root, photograph.flaw)
        if photograph.flaw:
            yield Row(text(photograph.path), text(Path(photograph.path).stem), None, read, photograph.split)
        elif data.unit == "photograph":
            yield from _whole(photograph, read, counts, data)
        else:
            yield from _objects(photograph, read, data)
            yield from _backgrounds(photograph, read, sizes, data)


def _read(file: Path, root: Path, flaw: str) -> AbstractContextManager[Image]:
    if flaw:
        raise Unreadable(flaw)
    if "\0" in str(file) or not inside(file, root):
        raise Unreadable("a path that leaves data.path")
    if not file.is_file():
        raise Unreadable("no such image")
    return opened(file)


def _whole(photograph: Photograph, read: Read, counts: Counter[str], data: Data) -> Iterator[Row]:
    labels = [one.label for one in photograph.objects if one.usable and one.label]
    label = min(labels, key=lambda name: (counts[name], name)) if labels else None
    if photograph.objects and label is None:  # not a background either
        read = partial(_read, Path(), Path(), "none of its objects has a class and a box")
    elif label is None and data.backgrounds:
        label = BACKGROUND
    elif label is None:
        return
    yield Row(text(photograph.path), text(Path(photograph.path).stem), label, read, photograph.split)


def _objects(photograph: Photograph, read: Read, data: Data) -> Iterator[Row]:
    for i, one in enumerate(photograph.objects):
        if not one.crowd:
            box = partial(_box, one, photograph.shares, data.margin)
            yield _row(photograph, f"{i:03d}", one.label, read, box, partial(_lies, one, photograph.shares))


def _row(
    photograph: Photograph,
    which: str,
    label: str | None,
    read: Read,
    box: Callable[[int, int], Box | str],
    lies: Callable[[Box, int, int], Iterator[tuple[str, np.ndarray]]] | None = None,
) -> Row:
    path, part = text(photograph.path), Part(box, photograph.size, lies)
    return Row(f"{path}#{which}", f"{Path(path).stem}#{which}", label, read, photograph.split, path, part=part)


def _box(one: Annotated, shares: bool, margin: float, width: int, height: int) -> Box | str:
    if one.box is None or one.flaw:
        return one.flaw
    return crop(_in_pixels(one.box, (width, height), shares), margin, width, height)


def _lies(one: Annotated, shares: bool, crop: Box, width: int, height: int) -> Iterator[tuple[str, np.ndarray]]:
    """Where an object lies in its crop: in its outline, or else in the pixels that its box touches."""
    size = width, height
    if one.outline:
        inside = outlines.drawn(one.outline, size if shares else (1, 1), crop, size)
        if inside is not None:
            yield "given", inside
    if one.box:
        left, top, right, bottom = _in_pixels(one.box, size, shares)
        yield "box", outlines.boxed((math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)), crop)


def _in_pixels(box: Bounds, size: tuple[int, int], shares: bool) -> Bounds:
    width, height = size if shares else (1, 1)
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def crop(box: Bounds, margin: float, width: int, height: int) -> Box | str:
    """The crop of the object in `box`, inside a photograph of that size, or the reason why there is none."""
    left, right = (min(max(x, 0.0), float(width)) for x in box[::2])
    top, bottom = (min(max(y, 0.0), float(height)) for y in box[1::2])
    if right <= left or bottom <= top:
        return f"a box outside of the photograph's {width} x {height} pixels: {_said(box)}"
    return _around((left, top, right, bottom), margin, width, height)


def _around(box: Bounds, margin: float, width: int, height: int) -> Box:
    """The crop of an object whose box is inside the photograph."""
    left, top, right, bottom = box
    longer = max(right - left, bottom - top)
    if longer > min(width, height):
        more = margin * longer
        x, y = max(0, math.floor(left - more)), max(0, math.floor(top - more))
        return x, y, min(width, math.ceil(right + more)), min(height, math.ceil(bottom + more))
    side = max(1, min(round(longer * (1 + 2 * margin)), width, height))
    x = min(max(round((left + right - side) / 2), 0), width - side)
    y = min(max(round((top + bottom - side) / 2), 0), height - side)
    return x, y, x + side, y + side


def _said(box: Bounds) -> str:
    return "{:g}, {:g} to {:g}, {:g}".format(*box)


def _backgrounds(photograph: Photograph, read: Read, sizes: Sequence[float], data: Data) -> Iterator[Row]:
    """Crops that touch no object; `sizes` holds the width and height of the boxes of all objects in turn."""
    size = _size(photograph, read) if data.backgrounds and sizes else None
    if size is None:
        return
    width, height = size
    taken = [_in_pixels(one.box, size, photograph.shares) for one in photograph.objects if one.box]
    for i in range(data.backgrounds):
        rng = numpy_rng(0, "backgrounds", text(photograph.path), i)
        drawn = 2 * int(rng.random() * (len(sizes) // 2))
        _, _, w, h = _in_pixels((0, 0, sizes[drawn], sizes[drawn + 1]), size, photograph.shares)
        left, top, right, bottom = _around((0, 0, min(w, width), min(h, height)), data.margin, width, height)
        for _ in range(TRIES):
            x, y = int(rng.integers(width - right + left + 1)), int(rng.integers(height - bottom + top + 1))
            place = x, y, x + right - left, y + bottom - top
            if not any(_touch(place, box) for box in taken):
                yield _row(photograph, f"{BACKGROUND}{i:03d}", BACKGROUND, read, partial(_always, place))
                break


def _touch(a: Bounds, b: Bounds) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _always(box: Box, _width: int, _height: int) -> Box:
    return box


def _size(photograph: Photograph, read: Read) -> tuple[int, int] | None:
    """Width and height of the photograph that boxes are drawn on; None if it cannot be read."""
    if photograph.size:
        return photograph.size
    try:
        return upright(read)
    except Unreadable:
        return None
