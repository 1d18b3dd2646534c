"""How every family of networks is trained: on rows drawn by class, moved by maps that the network is told.

    P(row i) ~ n_{y_i}^(-class_power):  0 draws images as they come, 1 draws every class equally often

Each image is moved by its own random map a (augmentation.py). A network that is told a learns p(x | y, a). At a = 0 it makes
unmoved images. The draws of step k come from the stream of (seed, name, k) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Count, Section, Share
from pipeline.core.seeds import rng
from pipeline.generators.shared import augmentation
from pipeline.generators.shared.base import in_blocks
from pipeline.runtime.training import Learner, Optimisation, device, loop, threads

Rate = Annotated[float, Field(gt=0.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Precision = Literal["auto", "fp32", "bf16"]


class Trained(Section):
    """Settings of every family of networks. A family names again those whose default or meaning is its own."""

    steps: Count = 1200
    """optimiser steps"""
    batch_images: Count = 64
    """images an optimiser step"""
    lr: Rate = 0.004
    """learning rate of AdamW, warmed up, then cosine to 0"""
    ema: Decay = 0.998
    """decay of the weights' moving average, per step"""
    class_power: Share = 0.5
    """classes are drawn in proportion to n^(1 - class_power)"""
    augment: Share = 0.3
    """probability of each non-leaking augmentation"""
    block_images: Count = 128
    """images sampled at once, always as many, so that none depends on its neighbours"""
    precision: Precision = "auto"
    """auto | fp32 | bf16"""
    threads: Annotated[int, Field(ge=0)] = 1
    """0 all cores | 1 for tiny images: nearly as fast, and the same bits for any number of cores"""


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


@torch.no_grad()
def blockwise(
    network: nn.Module,
    config: Trained,
    make: Callable[[Tensor, list[int]], Tensor],
    labels: Tensor,
    rows: Sequence[int],
    shape: tuple[int, ...],
    *,
    size: int | None = None,
) -> Tensor:
    """What `make` gives for `rows`, by `in_blocks` of `size` rows, else of block_images.

    `network` and the labels that `make` is given are on the device; it computes without gradients, on the threads of `config`.
    """
    where = device()
    network.to(where).eval()
    with threads(config.threads):
        return in_blocks(lambda y, own: make(y.to(where), own), labels, rows, size or config.block_images, shape)
