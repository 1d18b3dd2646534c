"""Versions of a small set of real digits, as `prepare` leaves them, for the tests of drift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from helpers.judged import manifest
from pipeline.core import work
from pipeline.core.prepared import Prepared
from pipeline.registry import GENERATORS


def digits(label: int) -> np.ndarray:
    """uint8 (n, 1, 8, 8) of one digit, in an order of its own."""
    from sklearn.datasets import load_digits

    data = load_digits()
    own = data.images[data.target == label]
    return (own[np.random.default_rng(label).permutation(len(own))] * (255 / 16)).round().astype(np.uint8)[:, None]


DIGITS = {str(label): digits(label) for label in range(4)}


def noisy(images: np.ndarray) -> np.ndarray:
    return np.clip(images + np.random.default_rng(0).normal(0, 60, images.shape), 0, 255).astype(np.uint8)


def version(folder: Path, images: dict[str, np.ndarray], *, classes: list[str] | None = None, **columns: Any) -> Prepared:
    """A prepared version with these train images of each class; equal images have equal ids."""
    folder.mkdir(parents=True)
    labels = [name for name, own in images.items() for _ in own]
    pixels = np.concatenate(list(images.values()))
    rows = manifest(pixels, labels, "row", **columns)
    table = rows.table.set_column(0, "sample_id", rows.table["pixel_hash"])
    if "groups" not in columns:
        table = table.set_column(4, "group", rows.table["pixel_hash"])
    pq.write_table(table, folder / "train.parquet")
    info = {"classes": classes or list(images), "image_size": pixels.shape[-1], "channels": pixels.shape[1]}
    work.write_json(folder / "inputs.json", dict.fromkeys(GENERATORS.names))
    work.write_json(folder / "dataset.json", info | {"fingerprint": work.key(folder / "train.parquet")})
    return Prepared(folder)


def first(n: int, *, classes: int = 4) -> dict[str, np.ndarray]:
    return {str(c): DIGITS[str(c)][:n] for c in range(classes)}
