"""Real digits as manifests, and judges fitted on a scarce part of them, for the tests of judges and checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline import config
from pipeline.core.images import encode_all, pixel_hash
from pipeline.core.manifest import Manifest
from pipeline.encoders.base import LEVELS
from pipeline.encoders.judges import Judges
from pipeline.encoders.pixels import Pixels

CLASSES = [str(i) for i in range(10)]
COUNTS = [40, 30, 24, 20, 16, 12, 8, 6, 4, 3]
ROOT = Path(__file__).parents[2]
PARAMS = config.read(ROOT / "params.yaml")
SETTINGS = PARAMS.judges
PIXELS = Pixels((1, 8, 8), LEVELS)  # what tells copies of digits


def manifest(
    images: np.ndarray,
    labels: Sequence[str],
    name: str,
    *,
    split: str = "train",
    family: str | None = None,
    sources: Sequence[list[str] | None] | None = None,
    groups: Sequence[str] | None = None,
) -> Manifest:
    """Rows of uint8 images (n, c, h, w); synthetic where `family` is given."""
    n = len(images)
    ids = [f"{name}-{i}" for i in range(n)]
    return Manifest.from_columns(
        sample_id=ids,
        image=encode_all(torch.from_numpy(np.ascontiguousarray(images))),
        label=list(labels),
        split=[split] * n,
        group=groups or ids,
        origin=["synthetic" if family else "real"] * n,
        generator=[family] * n,
        seed=list(range(n)) if family else [None] * n,
        sources=sources or [[]] * n,
        pixel_hash=[pixel_hash(image) for image in images],
    )


class Digits:
    """Train rows (40 ... 3 of a class), 15 validation rows of each class, and the images and labels that are left."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images, targets = (digits.images * (255 / 16)).round().astype(np.uint8)[:, None], digits.target
        order = np.random.default_rng(0).permutation(len(images))
        mine = [order[targets[order] == c] for c in range(10)]
        val = np.concatenate([rows[:15] for rows in mine])
        train = np.concatenate([rows[15 : 15 + n] for rows, n in zip(mine, COUNTS, strict=True)])
        rest = np.setdiff1d(order, np.concatenate([val, train]))
        self.train = manifest(images[train], [CLASSES[t] for t in targets[train]], "train")
        self.val = manifest(images[val], [CLASSES[t] for t in targets[val]], "val", split="val")
        self.images, self.targets = images[rest], targets[rest]

    def judges(self, folder: Path, steps: int = SETTINGS.steps) -> Judges:
        """Judges of the train rows, fitted in `folder`."""
        settings = SETTINGS.model_copy(update={"steps": steps})
        return Judges.fit(self.train, CLASSES, settings=settings, flips="none", seed=0, folder=folder)
