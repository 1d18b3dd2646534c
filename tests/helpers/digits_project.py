"""A prepared folder of real digits and a pool of held-out ones that stand for synthetic images."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import config
from pipeline.core import work
from pipeline.core.images import encode_png, pixel_hash
from pipeline.core.manifest import Manifest
from pipeline.registry import GENERATORS

ROOT = Path(__file__).parents[2]
CLASSES = [str(c) for c in range(10)]
SHORT = {"steps": 6, "width": 8, "batch_images": 16, "distillation_images": 9}


@cache
def shipped() -> config.Params:
    """params.yaml, read once."""
    return config.read(ROOT / "params.yaml")


def params(**sections: dict[str, object]) -> config.Params:
    """params.yaml with some values replaced; a classifier that takes no time, here, the generator naive."""
    values = shipped().model_dump(by_alias=True)
    values["generators"] = ["naive"]
    values["classifier"] |= SHORT
    values["engine"]["workers"] = 1  # this process: a worker takes longer to start than such a run
    values["arms"] |= {
        "synthetic_fractions": [0.0, 0.5],
        "labels": ["soft"],
        "seeds": 2,
        "selection_seeds": 1,
        "real": ["real", "augment"],
    }
    for name, changed in sections.items():
        values[name] = values[name] | changed if isinstance(values[name], dict) else changed
    return config.Params.model_validate(values)


def rows(
    images: np.ndarray, labels: list[str], split: str, origin: str = "real", prefix: str = "d", /, **columns: list[object]
) -> Manifest:
    """A manifest of uint8 images (n, 1, 8, 8), each its own group."""
    ids = [f"{prefix}-{split}-{i}" for i in range(len(labels))]
    real = origin == "real"
    standard = {
        "sample_id": ids,
        "image": [encode_png(image) for image in images],
        "label": labels,
        "split": [split] * len(ids),
        "group": ids,
        "origin": [origin] * len(ids),
        "generator": [None if real else "naive"] * len(ids),
        "seed": [None if real else i for i in range(len(ids))],
        "sources": [[] if real else None] * len(ids),
        "pixel_hash": [pixel_hash(image) for image in images],
    }
    return Manifest.from_columns(**{**standard, **columns})


RESERVE = [0, 2, *[6] * 8]  # of each class


def write(folder: Path, counts: list[int] | None = None, val: int = 8, test: int = 20, pool: int = 12) -> Path:
    """Lay prepared/, pools/naive/ and checked/naive/ under `folder`; every fifth image of the pool is rejected."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)[:, None]
    counts = counts or [20, 18, 16, 14, 12, 10, 8, 6, 4, 3]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("val", "test", "train", "pool", "reserve")}
    for c in range(10):
        own = np.random.default_rng(c).permutation(np.flatnonzero(digits.target == c))
        ends = np.cumsum([val, test, counts[c], pool, RESERVE[c]])
        for name, part in zip(parts, np.split(own[: ends[-1]], ends[:-1]), strict=True):
            parts[name].append(part)
    (folder / "prepared").mkdir(parents=True)
    (folder / "pools/naive").mkdir(parents=True)
    (folder / "checked/naive").mkdir(parents=True)
    for name, chosen in parts.items():
        index = np.concatenate(chosen)
        labels = [str(c) for c in digits.target[index]]
        made = rows(images[index], labels, "train", "synthetic", "s") if name == "pool" else rows(images[index], labels, name)
        pq.write_table(
            made.table, folder / ("pools/naive/part-00000.parquet" if name == "pool" else f"prepared/{name}.parquet")
        )
        if name == "pool":
            checked = {
                "sample_id": made.column("sample_id"),
                "label": labels,
                "accepted": [i % 5 > 0 for i in range(len(index))],
            }
            pq.write_table(pa.table(checked), folder / "checked/naive/images.parquet")
    info = {"classes": CLASSES, "image_size": 8, "channels": 1, "groups_known": False}
    work.write(folder / "prepared/dataset.json", json.dumps(info))
    work.write(folder / "prepared/inputs.json", json.dumps(dict.fromkeys(GENERATORS.names)))
    return folder
