"""How every family of networks is trained: on rows drawn by class, moved by maps that the network is told.

    P(row i) ~ n_{y_i}^(-class_power):  0 draws images as they come, 1 draws every class equally often

Each image is moved by its own random map a (augmentation.py). A network that is told a learns p(x | y, a); at a = 0 it
makes unmoved images. The draws of step k come from the stream of (seed, name, k) alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Count, Section, Share
from pipeline.core.seeds import rng
from pipeline.generators.shared import augmentation
from pipeline.runtime.training import Learner, Optimisation, device, loop, threads


class Trained(Section):
    """Settings that every family of networks shares; each section of params.yaml lists them."""

    steps: Count
    batch_images: Count
    lr: Annotated[float, Field(gt=0.0)]
    ema: Annotated[float, Field(ge=0.0, lt=1.0)]
    class_power: Share
    augment: Share
    block_images: Count
    precision: Literal["auto", "fp32", "bf16"]
    threads: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Batch:
    """Images float32 (n, c, h, w) in [-1, 1], labels int64 (n,), conditions (n, CONDITIONS); the step and its own stream."""

    images: Tensor
    labels: Tensor
    conditions: Tensor
    step: int
    rng: torch.Generator


class Batches:
    """Batches of `data`, images (n, c, h, w) and labels (n,), on the device."""

    def __init__(self, data: tuple[Tensor, Tensor], config: Trained, *, seed: int, name: str) -> None:
        self.where, self.config, self.seed, self.name = device(), config, seed, name
        self.images, self.labels = (tensor.to(self.where) for tensor in data)
        self.draw = torch.bincount(data[1]).double()[data[1]] ** -config.class_power

    def __call__(self, k: int) -> Batch:
        """The batch of step k."""
        n, stream = self.config.batch_images, rng(self.seed, self.name, k)
        rows = torch.multinomial(self.draw, n, replacement=True, generator=stream).to(self.where)
        images, conditions = self.images[rows], torch.zeros(n, augmentation.CONDITIONS)
        if self.config.augment > 0:
            maps, conditions = augmentation.random_maps(n, self.config.augment, stream)
            images = augmentation.apply(images, maps.to(self.where))
        return Batch(images, self.labels[rows], conditions.to(self.where), k, stream)


def train(
    network: nn.Module,
    config: Trained,
    data: tuple[Tensor, Tensor],
    loss: Callable[[Batch], Tensor],
    *,
    weight_decay: float,
    seed: int,
    name: str,
    folder: Path | None,
) -> None:
    """Fit `network` to `data` by config.steps steps down loss(batch); it ends with its averaged weights, on the processor.

    `folder` keeps checkpoints. Raises Diverged for a non-finite loss.
    """
    learner = Learner(
        network.to(device()).train(),
        Optimisation(steps=config.steps, lr=config.lr, weight_decay=weight_decay, ema=config.ema),
    )
    batches = Batches(data, config, seed=seed, name=name)
    with threads(config.threads):
        loop(
            {"network": learner}, lambda k: learner.step(loss(batches(k)), k), steps=config.steps, seed=seed, name=name,
            images_per_step=config.batch_images, folder=folder,
        )  # fmt: skip
    learner.finish().cpu()
