"""YOLO: a text file for each photograph, a line for each object, and a YAML file with the names of the classes.

    data.yaml                names: [cat, dog]   train: images/train   val: images/val   test: images/test
    images/train/1.jpg       labels/train/1.txt  (labels for images in the path, or beside the image)
    0 0.5 0.4 0.2 0.1        class, middle and size of the box
    0 0.4 0.3 0.6 0.3 …      class, corners of an outline

All are shares of the upright photograph's width and height. An image without a text file has no objects.
https://docs.ultralytics.com/datasets
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Data
from pipeline.datasets import objects, outlines
from pipeline.datasets.decode import Unreadable
from pipeline.datasets.objects import SUFFIXES, Annotated, Photograph
from pipeline.datasets.rows import Row, existing_folder, files, inside, text
from pipeline.errors import DataError

PARTS = ("train", "val", "test")


def rows(data: Data) -> Iterator[Row]:
    """The objects or photographs that the YAML file in data.path names. Raises DataError if it does not fit."""
    root = existing_folder(Path(data.path), "data.path")
    found = settings(root)
    if len(found) != 1:
        raise DataError(
            f"data.path={data.path!r} holds {', '.join(text(file.name) for file in found) or 'no YAML file with names'}",
            expected="one YAML file with the names of the classes",
            remedy="put data.yaml there, or set data.path",
        )
    ((file, values),) = found.items()
    names = values["names"]
    classes = {str(key): str(name) for key, name in (names.items() if isinstance(names, dict) else enumerate(names))}
    parts: dict[str | None, list[Path]] = {part: _places(file, part, values, root) for part in PARTS if values.get(part)}
    return objects.rows(data, partial(_photographs, root, parts or {None: [root / "images"]}, classes))


def settings(root: Path) -> dict[Path, dict[str, Any]]:
    """The YAML files in `root` that name classes, and what they say."""
    found = {}
    for file in sorted(root.iterdir()):
        if file.suffix.lower() in (".yaml", ".yml"):
            try:
                values = yaml.safe_load(objects.content(file, root))
            except (Unreadable, yaml.YAMLError, ValueError, RecursionError) as error:
                reason = " ".join(str(error).split())
                raise DataError(f"{text(file)}: {reason}", expected="YAML", remedy="correct or remove it") from None
            if isinstance(values, dict) and isinstance(values.get("names"), list | dict):
                found[file] = values
    return found


def _places(file: Path, part: str, values: dict[str, Any], root: Path) -> list[Path]:
    """The folders of images, or images, of a part. Raises DataError if one does not exist."""
    entries = values[part] if isinstance(values[part], list) else [values[part]]
    found = list[Path]()
    for entry in map(str, entries):
        # Roboflow writes ../train/images for the folder train beside the YAML file.
        tried = [
            file.parent / str(values.get("path") or "") / entry,
            file.parent / entry,
            file.parent / entry.removeprefix("../"),
        ]
        place = next((place for place in tried if "\0" not in str(place) and inside(place, root) and place.exists()), None)
        if place is None:
            raise DataError(
                f"{text(file)}: {part}={entry!r} is no folder in data.path", expected="a folder of images", remedy="correct it"
            )
        found += [place] if place.is_dir() else _listed(place, root)
    return found


def _listed(file: Path, root: Path) -> list[Path]:
    """The images that a text file lists, relative to itself."""
    try:
        lines = objects.content(file, root).decode("utf-8-sig").splitlines()
    except (Unreadable, UnicodeDecodeError) as error:
        raise DataError(f"{text(file)}: {error}", expected="the path of an image on each line", remedy="correct it") from None
    return [file.parent / line.strip() for line in lines if line.strip()]


def _photographs(root: Path, parts: dict[str | None, list[Path]], classes: dict[str, str]) -> Iterator[Photograph]:
    for split, places in parts.items():
        for place in places:
            seen = set[Path]()
            for image in files(place) if place.is_dir() else [place]:
                if image.suffix.lower() in SUFFIXES:
                    seen.add(label := _labels(image, root).with_suffix(".txt"))
                    yield _photograph(image, label, root, split, classes)
            for label in files(_labels(place, root)) if place.is_dir() else ():
                if label.suffix.lower() == ".txt" and label.name != "classes.txt" and label not in seen:
                    yield Photograph(_relative(label, root), split=split, flaw="labels without an image")


def _labels(place: Path, root: Path) -> Path:
    """Where the labels of an image or a folder are: the last folder `images` of its path is `labels` there."""
    above, images, below = f"/{_relative(place, root)}/".rpartition("/images/")
    return root / f"{above}/labels/{below}".strip("/") if images else place


def _relative(file: Path, root: Path) -> str:
    return os.path.relpath(file, root)


def _photograph(image: Path, label: Path, root: Path, split: str | None, classes: dict[str, str]) -> Photograph:
    path = _relative(image, root)
    try:
        lines = objects.content(label, root).decode("utf-8-sig").splitlines() if label.is_file() else []
    except (Unreadable, UnicodeDecodeError) as error:
        return Photograph(path, split=split, flaw=f"{text(label.name)}: {error}")
    return Photograph(path, [_object(line.split(), classes) for line in lines if line.strip()], split=split, shares=True)


def _object(fields: list[str], classes: dict[str, str]) -> Annotated:
    label, values = classes.get(fields[0]), [objects.number(value) for value in fields[1:]]
    unknown = f"class {fields[0][:20]}, which names does not hold"
    if len(values) == 4:
        x, y, width, height = values
        corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        return objects.annotated(label, corners, unknown=unknown)
    if len(values) < 4 or len(values) % 2:
        return Annotated(label, None, f"a line of {len(fields)} fields")
    points = zip(values[::2], values[1::2], strict=True)
    return objects.outlined(label, points, unknown=unknown, outline=outlines.polygons([values]))
