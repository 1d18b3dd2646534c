"""How many images a second `compose` makes: boards of stripes with a fault on each of some, at the sizes that people use."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.speed.pool import Figure
from pipeline.generators.compose import Compose, ComposeConfig
from pipeline.generators.shared.base import Surroundings

FAULTLESS, FAULTS = 200, 20
FORMS = {"128 pixels, grey": (1, 128), "128 pixels, colour": (3, 128), "224 pixels, colour": (3, 224)}
BLOCKS = 8  # that are timed


def boards(channels: int, side: int) -> tuple[Tensor, Tensor, Surroundings]:
    """Images (n, c, s, s) of grain, their classes, and the masks of the faults."""
    rng, n = torch.Generator().manual_seed(0), FAULTLESS + FAULTS
    images, masks = torch.rand(n, channels, side, side, generator=rng) - 0.5, torch.zeros(n, 1, side, side, dtype=torch.uint8)
    for i in range(FAULTLESS, n):
        y, x = torch.randint(side // 4, side // 2, (2,), generator=rng).tolist()
        masks[i, :, y : y + side // 10, x : x + side // 6] = 255
    return images, torch.tensor([0] * FAULTLESS + [1] * FAULTS), Surroundings(masks, ("faultless", "fault"))


def measure() -> Iterator[Figure]:
    """Images a second on all processors, after a first block."""
    for name, (channels, side) in FORMS.items():
        model = Compose(ComposeConfig(), shape=(channels, side, side), n_classes=2)
        images, labels, around = boards(channels, side)
        model.fit(images, labels, seed=0, around=around)
        size = model.config.block_images
        model.sample(torch.ones(size, dtype=torch.int64), range(size))
        start = time.perf_counter()
        model.sample(torch.ones(BLOCKS * size, dtype=torch.int64), range(BLOCKS * size))
        yield name, BLOCKS * size / (time.perf_counter() - start), "images/s"
