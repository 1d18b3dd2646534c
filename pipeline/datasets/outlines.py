"""Outlines: where objects lie in their photographs, small until they are drawn.

    polygons   corners x, y, x, y, … of each part of an object: COCO, YOLO, LabelMe
    runs       how many pixels lie outside and inside of it in turn, down one column of the photograph after the other: COCO

An outline is drawn as large as its crop is in the photograph: uint8 (h, w), the share of each pixel that is inside, 255 for
all of it. So an object thinner than a pixel is seen.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from pipeline.datasets.rows import Bounds, Box

FINE = 4  # pixels drawn for one of a small crop, along each side
DRAWN = 1024  # pixels along the longer side that a crop is drawn in, at most; in its own if it has more
FAR = 1 << 24  # pixels from a crop beyond which no corner is drawn

Polygons = tuple["array[float]", ...]


class Runs(NamedTuple):
    """COCO's run lengths, as they are written."""

    counts: array[int] | str
    size: tuple[int, int]  # width and height of the photograph


Outline = Polygons | Runs


def polygons(parts: Iterable[Any]) -> Polygons | None:
    """Those of `parts` that are lists x, y, x, y, … of three points or more; None if none is."""
    found = []
    for part in parts:
        try:
            corners = array("f", part)
        except (TypeError, OverflowError):
            continue
        if len(corners) >= 6 and len(corners) % 2 == 0 and math.isfinite(sum(corners)):
            found.append(corners)
    return tuple(found) or None


def runs(counts: Any, size: tuple[int, int] | None) -> Runs | None:
    """The run lengths of a COCO file, a list or a compressed text, of a photograph of `size`; None if they are neither."""
    if size is None or not isinstance(counts, list | str):
        return None
    try:
        return Runs(counts if isinstance(counts, str) else array("I", counts), size)
    except (TypeError, OverflowError):
        return None


def around(of: Runs) -> Bounds | None:
    """The box around what is inside; None if nothing is, or if the lengths do not fit the photograph."""
    ends = _ends(of)
    starts, stops = (ends[:-1:2], ends[1::2]) if ends is not None else (np.empty(0), np.empty(0))
    first, last = starts[stops > starts], stops[stops > starts] - 1
    if not len(first):
        return None
    (left, top), (right, bottom) = (np.divmod(pixels, of.size[1]) for pixels in (first, last))
    if (left < right).any():  # a run that goes on at the top of the next column
        top, bottom = np.array([0]), np.array([of.size[1] - 1])
    return float(left.min()), float(top.min()), float(right.max() + 1), float(bottom.max() + 1)


def drawn(of: Outline, scale: tuple[float, float], crop: Box, size: tuple[int, int]) -> np.ndarray | None:
    """An outline inside the box `crop` of a photograph of that size -> uint8 (h, w).

    `scale` is what x and y of a polygon are multiplied by to be pixels. None for an outline smaller than a pixel, which says no
    more than its box, and for runs that do not fit the photograph.
    """
    return _runs(of, crop, size) if isinstance(of, Runs) else _polygons(of, scale, crop)


def boxed(inner: Box, crop: Box) -> np.ndarray:
    """What of the box `inner` is inside of the box `crop` -> uint8 (h, w)."""
    left, top, right, bottom = crop
    covered = np.zeros((bottom - top, right - left), np.uint8)
    covered[max(0, inner[1] - top) : max(0, inner[3] - top), max(0, inner[0] - left) : max(0, inner[2] - left)] = 255
    return covered


def _polygons(parts: Polygons, scale: tuple[float, float], crop: Box) -> np.ndarray | None:
    left, top, right, bottom = crop
    width, height = right - left, bottom - top
    fine, area = max(1, min(FINE, DRAWN // max(width, height))), 0.0
    canvas = Image.new("L", (width * fine, height * fine))
    for part in parts:
        corners = np.asarray(part, np.float64).reshape(-1, 2) * scale - (left, top)
        x, y = corners.T
        area += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
        ImageDraw.Draw(canvas).polygon(np.floor(corners * fine).clip(-FAR, FAR).ravel().tolist(), fill=255)
    return np.asarray(canvas.reduce(fine)) if area >= 1 else None


def _runs(of: Runs, crop: Box, size: tuple[int, int]) -> np.ndarray | None:
    ends = _ends(of) if of.size == size else None
    if ends is None:
        return None
    left, top, right, bottom = crop
    lengths = np.diff((ends - left * size[1]).clip(0, (right - left) * size[1]), prepend=0)
    inside = (np.arange(len(lengths)) % 2 * 255).astype(np.uint8)
    columns: np.ndarray = np.repeat(inside, lengths).reshape(right - left, size[1])
    return columns[:, top:bottom].T


def _ends(of: Runs) -> np.ndarray | None:
    """The pixels before which runs end, int64 (n,); None if these are not all the pixels of the photograph."""
    lengths = _read(of.counts) if isinstance(of.counts, str) else np.asarray(of.counts, np.int64)
    if not len(lengths) or lengths.min() < 0 or lengths.sum() != of.size[0] * of.size[1]:
        return None
    ends: np.ndarray = lengths.cumsum()
    return ends


def _read(text: str) -> np.ndarray:
    """The lengths in a compressed text, int64 (n,); none if it is none.

    A character is 48 + c. The lower five bits of c are digits to the base 32, the lowest first. The sixth says that the number
    goes on, and the fifth of the last that it is negative. From the fourth on, a number is what is added to the last but one.
    """
    codes = np.frombuffer(text.encode(errors="replace"), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(codes & 32 == 0)
    if not len(last) or last[-1] != len(codes) - 1 or codes.min() < 0 or codes.max() > 63:
        return np.empty(0, np.int64)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    if place.max() > 5:  # 30 bits are more than a photograph has pixels
        return np.empty(0, np.int64)
    numbers: np.ndarray = np.add.reduceat((codes & 31) << 5 * place, first) - ((codes[last] >> 4 & 1) << 5 * (place[last] + 1))
    numbers[1::2], numbers[2::2] = numbers[1::2].cumsum(), numbers[2::2].cumsum()
    return numbers
