"""What every family of networks is trained on: rows drawn by class, moved by maps that the network is told.

    P(row i) ~ n_{y_i}^(-class_power):  0 draws images as they come, 1 draws every class equally often

Each image is moved by its own random map a (pipeline/augmentation.py). A network that is told a learns p(x | y, a); at a = 0 it
makes unmoved images. The draws of step k come from the stream of (seed, name, k) alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import augmentation
from pipeline.seeds import rng


@dataclass(frozen=True)
class Batch:
    """Images float32 (n, c, h, w) in [-1, 1], labels int64 (n,), conditions (n, CONDITIONS), and the step's own stream."""

    images: Tensor
    labels: Tensor
    conditions: Tensor
    rng: torch.Generator


class Batches:
    """Batches of `size` from images (n, c, h, w) and labels (n,), on the device `where`."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        size: int,
        class_power: float,
        augment: float,
        seed: int,
        name: str,
        where: torch.device,
    ) -> None:
        self.images, self.labels, self.where = images.to(where), labels.to(where), where
        self.size, self.augment, self.seed, self.name = size, augment, seed, name
        self.draw = torch.bincount(labels).double()[labels] ** -class_power

    def __call__(self, k: int) -> Batch:
        """The batch of step k."""
        stream = rng(self.seed, self.name, k)
        rows = torch.multinomial(self.draw, self.size, replacement=True, generator=stream).to(self.where)
        images, conditions = self.images[rows], torch.zeros(self.size, augmentation.CONDITIONS)
        if self.augment > 0:
            maps, conditions = augmentation.random_maps(self.size, self.augment, stream)
            images = augmentation.apply(images, maps.to(self.where))
        return Batch(images, self.labels[rows], conditions.to(self.where), stream)
