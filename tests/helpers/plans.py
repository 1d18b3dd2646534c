"""Training data of a few grey images, and plans made of them."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import torch

from helpers.digits_project import CLASSES, params, rows
from pipeline.arms import Arm, DeferredSchedule, Labels, Recipe, TrainingData, TrainingPlan, synthetic_arms

CONFIG = params(classifier={"network": "small", "steps": 1, "batch_images": 8, "lr": 0.01, "weight_decay": 0.0}).classifier
COUNTS = [6, 3, 2]  # train rows of each class
PRIOR = np.array(COUNTS) / 11


def images(n: int, start: int = 0) -> np.ndarray:
    """uint8 (n, 1, 8, 8), image i constant start + i."""
    return np.broadcast_to(np.arange(start, start + n, dtype=np.uint8)[:, None, None, None], (n, 1, 8, 8))


def labels(counts: list[int]) -> list[str]:
    """Class names, as many of each as `counts` says."""
    return [CLASSES[c] for c, n in enumerate(counts) for _ in range(n)]


def train() -> object:
    """COUNTS grey train rows, d-train-0 to d-train-10."""
    return rows(images(sum(COUNTS)), labels(COUNTS), "train")


def pool(counts: list[int], **columns: list[object]) -> object:
    """Synthetic rows, whose grey levels begin at 100."""
    return rows(images(sum(counts), 100), labels(counts), "train", "synthetic", "s", **columns)


def training_data(counts: list[int] = [0, 8, 8], accepted: np.ndarray | None = None, **columns: list[object]) -> TrainingData:  # noqa: B006
    """`train` and a pool, all of it accepted where nothing else is said."""
    return TrainingData.of(train(), CLASSES[:3], pool(counts, **columns), accepted)


def taught(data: TrainingData) -> TrainingData:
    """`data` with soft labels that tell each row from the others."""
    r, n = np.random.default_rng(0), len(data.pool_targets)
    return replace(
        data,
        pool_soft_labels=r.dirichlet(np.ones(data.n_classes), n),
        augmented_images=images(6, 150),
        augmented_targets=np.repeat(np.arange(3), 2),
        augmented_soft_labels=r.dirichlet(np.ones(data.n_classes), 6),
    )


def arm(name: str, recipe: Recipe = Recipe(), fraction: float = 0.6, labels: Labels = "hard") -> Arm:  # noqa: B008
    """An arm of a pool."""
    return synthetic_arms(recipe, synthetic_fraction=fraction, labels=labels)[name]


def pixels(plan: TrainingPlan) -> list[int]:
    """The grey level of each row."""
    return plan.images[:, 0, 0, 0].tolist()


def same(a: object, b: object) -> bool:
    """Whether two plans, or two values of a field of theirs, are equal bit for bit."""
    if isinstance(a, (TrainingPlan, DeferredSchedule)):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


def scattered(counts: list[int], pool: tuple[int, ...] = (0, 0, 0)) -> TrainingData:
    """Random images, several channels."""
    r, none = np.random.default_rng(0), np.zeros(0, np.int64)
    y, p = np.repeat(np.arange(3), counts), np.repeat(np.arange(3), pool)
    real, made = (r.integers(0, 256, (len(t), 3, 4, 4), dtype=np.uint8) for t in (y, p))
    return TrainingData(3, real, y, made, p, np.ones(len(p), bool), none, np.zeros(len(p) + 1, np.int64))


def flat(images: torch.Tensor) -> np.ndarray:
    """(n, pixels) as float."""
    return images.numpy().reshape(len(images), -1).astype(float)
