"""COCO: a JSON file with the images, the objects and the categories of a part or of the whole.

    {"images": [{"id", "file_name", "width", "height"}], "categories": [{"id", "name"}],
     "annotations": [{"image_id", "category_id", "bbox": [x, y, width, height], "segmentation"?, "iscrowd"?}]}

    annotations/instances_train2017.json   train2017/… or images/…
    train/_annotations.coco.json           train/…

Several files are official parts if their names or folders say so. A file is read whole. Of outlines those of objects that can
be images are kept, as numbers of four bytes or as the text that they are.
https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config import Data
from pipeline.datasets import objects, outlines
from pipeline.datasets.decode import Unreadable
from pipeline.datasets.objects import Annotated, Photograph
from pipeline.datasets.outlines import Outline, Runs
from pipeline.datasets.rows import SPLITS, Row, existing_folder, text
from pipeline.errors import DataError

KEYS = ("images", "annotations", "categories")


class Marked(NamedTuple):
    """An object, before the names of the categories are known."""

    image: str
    category: str
    seen: Annotated


def rows(data: Data) -> Iterator[Row]:
    """The objects or photographs of the JSON files in data.path. Raises DataError if there are none or one does not fit."""
    root = existing_folder(Path(data.path), "data.path")
    found = json_files(root)
    if not found:
        raise DataError(
            f"data.path={data.path!r} holds no COCO file",
            expected="annotations/instances_train.json, or another JSON file with images, annotations and categories",
            remedy="set data.path",
        )
    return objects.rows(data, partial(_photographs, root, found))


def json_files(root: Path) -> list[Path]:
    """The JSON files of a COCO data set, in `root` or in a folder in it."""
    found = [file for file in sorted([*root.glob("*.json"), *root.glob("[!.]*/*.json")]) if _mentions(file, root)]
    return [file for file in found if file.name.startswith("instances")] or found  # others: captions, keypoints


def _mentions(file: Path, root: Path) -> bool:
    try:
        content = objects.content(file, root)
    except Unreadable:
        return False
    return b'"images"' in content and b'"annotations"' in content


def _photographs(root: Path, files: list[Path]) -> Iterator[Photograph]:
    for file in files:
        yield from _of(file, root, _split(file, root) if len(files) > 1 else None)


def _split(file: Path, root: Path) -> str | None:
    """The split that the name of a file says, or of its folder."""
    for name in (file.stem, *file.relative_to(root).parts[:-1]):
        if said := re.search(r"(?<![a-z])(train|valid|validation|val|test)(?![a-z])", name.lower()):
            return SPLITS[said[1]]
    return None


def _of(file: Path, root: Path, split: str | None) -> Iterator[Photograph]:
    found, where = _read(file, root), os.path.relpath(file, root)
    names = {str(entry["id"]): str(entry["name"]) for entry in found["categories"]}
    marked: dict[str, list[Annotated]] = {str(entry["id"]): [] for entry in found["images"]}
    for i, one in enumerate(found["annotations"]):
        if not isinstance(one, Marked):
            yield Photograph(f"{where}#{i:03d}", split=split, flaw="an annotation without image_id or category_id")
        elif one.image not in marked:
            lacks = f"an object of image {one.image}, which images does not hold"
            yield Photograph(f"{where}#{i:03d}", split=split, flaw=lacks)
        else:
            label = names.get(one.category)
            flaw = one.seen.flaw or ("" if label else f"category {one.category}, which categories does not hold")
            outline = None if flaw else one.seen.outline
            marked[one.image].append(one.seen._replace(label=label, flaw=flaw, outline=outline))
    places = _places(file, root)
    for entry in sorted(found["images"], key=lambda entry: str(entry["file_name"])):
        name = str(entry["file_name"])
        image = next((place / name for place in places if "\0" not in name and (place / name).is_file()), places[0] / name)
        size = objects.frame(entry.get("width"), entry.get("height"))
        yield Photograph(os.path.relpath(image, root), marked[str(entry["id"])], size, split)


def _read(file: Path, root: Path) -> dict[str, list[Any]]:
    try:
        found = json.loads(objects.content(file, root), object_hook=_slim)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{text(file)}: {error}", expected="JSON", remedy="write it again") from None
    for key in KEYS:
        if not isinstance(found, dict) or not isinstance(found.get(key), list):
            raise DataError(f"{text(file)} has no list {key}", expected=", ".join(KEYS), remedy="write it again")
    for key, own in (("images", "file_name"), ("categories", "name")):
        for entry in found[key]:
            if not isinstance(entry, dict) or not {"id", own} <= set(entry):
                raise DataError(f"{text(file)}: {str(entry)[:80]} in {key}", expected=f"id and {own}", remedy="correct it")
    parts: dict[str, list[Any]] = found
    return parts


def _slim(entry: dict[str, Any]) -> Any:
    """An entry, without what is not needed: outlines are most of a file, and as lists of numbers eight times as large."""
    if not {"image_id", "category_id"} <= set(entry):
        return entry
    crowd, box, said = bool(entry.get("iscrowd")), entry.get("bbox"), entry.get("segmentation")
    outline = None if crowd else _outline(said)
    if not box and isinstance(said, list):
        points = [
            point for polygon in said if isinstance(polygon, list) for point in zip(polygon[::2], polygon[1::2], strict=False)
        ]
        seen = objects.outlined(None, points, unknown="", crowd=crowd, outline=outline)
    elif not box and isinstance(outline, Runs):
        seen = objects.annotated(None, outlines.around(outline) or (), unknown="", outline=outline)
    else:
        x, y, width, height = map(objects.number, box if isinstance(box, list) and len(box) == 4 else [None] * 4)
        seen = objects.annotated(None, (x, y, x + width, y + height), unknown="", crowd=crowd, outline=outline)
    return Marked(str(entry["image_id"]), str(entry["category_id"]), seen)


def _outline(said: object) -> Outline | None:
    """What `segmentation` says: a list of polygons, or run lengths."""
    if isinstance(said, list):
        return outlines.polygons(said)
    if not isinstance(said, dict) or not isinstance(size := said.get("size"), list) or len(size) != 2:
        return None
    return outlines.runs(said.get("counts"), objects.frame(*size[::-1]))


def _places(file: Path, root: Path) -> list[Path]:
    """Folders where the images of a file may be."""
    part = file.stem.rpartition("_")[2]
    return [file.parent, root / part, root / "images" / part, root / "images", root]
