"""Small detection data sets on disk, the same in each of the four forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

WIDTH, HEIGHT = 40, 30
Object = tuple[str, float, float, float, float]  # label, left, top, right, bottom


def coordinates(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A photograph whose red is x and whose green is y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


def photograph(file: Path, image: Image.Image | None = None, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    (image or coordinates()).save(file, **options)
    return file


def xml(found: list[Object], size: tuple[int, int] | None = (WIDTH, HEIGHT), name: str = "") -> str:
    boxes = "".join(
        f"<object><name>{label}</name><part><name>head</name></part><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for label, left, top, right, bottom in found
    )
    said = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation><filename>{name}</filename>{said}{boxes}</annotation>"


def written(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_text(text, encoding="utf-8")
    return file


def coco_file(photographs: dict[str, list[Object]]) -> dict[str, Any]:
    labels = sorted({one[0] for found in photographs.values() for one in found} | {"unused"})
    return {
        "images": [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(photographs)],
        "categories": [{"id": 10 + i, "name": label} for i, label in enumerate(labels)],
        "annotations": [
            {"id": 0, "image_id": i, "category_id": 10 + labels.index(one[0]), "iscrowd": 0,
             "bbox": [one[1], one[2], one[3] - one[1], one[4] - one[2]], "segmentation": [[0, 0, 1, 1]]}
            for i, found in enumerate(photographs.values()) for one in found
        ],
    }  # fmt: skip


def shape(label: str, points: list[list[float]], kind: str = "rectangle") -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind}


def labelme_file(name: str, shapes: list[dict[str, Any]], size: tuple[int, int] = (WIDTH, HEIGHT)) -> dict[str, Any]:
    return {"imagePath": name, "imageWidth": size[0], "imageHeight": size[1], "shapes": shapes}


def made(source: str, root: Path, photographs: dict[str, list[Object]]) -> Path:
    """A set of `photographs`, by name without suffix, in the form of `source`."""
    labels = sorted({one[0] for found in photographs.values() for one in found})
    places = {"voc": "JPEGImages", "yolo": "images", "coco": "images", "labelme": ""}
    for name, found in photographs.items():
        photograph(root / places[source] / f"{name}.png")
        if source == "voc":
            written(root / f"Annotations/{name}.xml", xml(found))
        elif source == "yolo":
            lines = (
                f"{labels.index(o[0])} {(o[1] + o[3]) / 2 / WIDTH} {(o[2] + o[4]) / 2 / HEIGHT} "
                f"{(o[3] - o[1]) / WIDTH} {(o[4] - o[2]) / HEIGHT}"
                for o in found
            )
            written(root / f"labels/{name}.txt", "\n".join(lines))
        elif source == "labelme":
            written(
                root / f"{name}.json", labelme_file(f"{name}.png", [shape(o[0], [[o[1], o[2]], [o[3], o[4]]]) for o in found])
            )
    if source == "yolo":
        written(root / "data.yaml", yaml.safe_dump({"names": labels}))
    if source == "coco":
        written(root / "annotations.json", coco_file({f"{name}.png": found for name, found in photographs.items()}))
    return root
