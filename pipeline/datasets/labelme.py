"""LabelMe: a JSON file beside each image, with the outlines of its objects.

    {"imagePath": "1.jpg", "imageWidth": 640, "imageHeight": 480,
     "shapes": [{"label": …, "shape_type": …, "points": [[x, y], …]}]}

    polygon     its outline            circle     its middle and a point of it
    rectangle   two opposite corners   others     count by the box around their points

Other JSON files are passed over, and so are images without one. https://github.com/wkentaro/labelme
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.config import Data
from pipeline.datasets import objects, outlines
from pipeline.datasets.decode import Unreadable
from pipeline.datasets.objects import Annotated, Photograph
from pipeline.datasets.rows import Row, existing_folder, files
from pipeline.errors import DataError

CORNERS = 64  # of a circle: a polygon that is 0.2 % smaller


def rows(data: Data) -> Iterator[Row]:
    """The objects or photographs of the JSON files under data.path. Raises DataError if there are none."""
    root = existing_folder(Path(data.path), "data.path")
    if next(photographs(root), None) is None:
        raise DataError(
            f"data.path={data.path!r} holds no LabelMe files",
            expected="JSON files with shapes beside images",
            remedy="set data.path",
        )
    return objects.rows(data, partial(photographs, root))


def photographs(root: Path) -> Iterator[Photograph]:
    """The photographs that LabelMe files under `root` describe."""
    for file in files(root):
        if file.suffix.lower() == ".json":
            split = objects.split_of_folder(file, root)
            try:
                found = json.loads(objects.content(file, root))
            except (Unreadable, ValueError, RecursionError) as error:
                flaw = str(error) if isinstance(error, Unreadable) else f"no JSON: {error}"
                yield Photograph(os.path.relpath(file, root), split=split, flaw=flaw)
                continue
            if isinstance(found, dict) and isinstance(found.get("shapes"), list):
                image = file.parent / str(found.get("imagePath") or file.stem).replace("\\", "/")
                size = objects.frame(found.get("imageWidth"), found.get("imageHeight"))
                shapes = [_object(shape) for shape in found["shapes"]]
                yield Photograph(os.path.relpath(image, root), shapes, size, split)


def _object(shape: Any) -> Annotated:
    shape = shape if isinstance(shape, dict) else {}
    label, kind, points = shape.get("label"), shape.get("shape_type") or "polygon", shape.get("points")
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        return Annotated(None, None, "a shape without points")
    corners = [(objects.number(x), objects.number(y)) for x, y in points]
    if kind in ("circle", "rectangle") and len(corners) == 2:
        corners = _corners(kind, *corners)
        kind = "polygon"
    outline = outlines.polygons([chain(*corners)]) if kind == "polygon" else None
    return objects.outlined(str(label or ""), corners, least=3 if kind == "polygon" else 2, outline=outline)


def _corners(kind: str, first: tuple[float, float], second: tuple[float, float]) -> list[tuple[float, float]]:
    """The corners of a circle, given by its middle and a point of it, or of a rectangle, given by two opposite ones."""
    (x, y), (x1, y1) = first, second
    if kind == "rectangle":
        return [(x, y), (x1, y), (x1, y1), (x, y1)]
    radius, turns = math.hypot(x1 - x, y1 - y), (2 * math.pi * i / CORNERS for i in range(CORNERS))
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
