"""Densities of images that were measured in whole grey levels.

A level k in {0 … 255} stands for the cell [k, k + 1). A density is asked at a uniform place in the cell,

    x~ = 2 (k + u) / 256 - 1,  u ~ U[0, 1):    E_u log p(x~ | y) <= log P(k | y) + D log 128      (Theis et al., 2016, eq. 3)

with D numbers an image and 128 levels a unit of x; a density fitted on the levels themselves could grow without end around
them. A model of the levels spreads P(k | y) evenly over the cell and meets the bound with equality. In base 2, per dimension:

    bits = -(log p(x~ | y) - D log 128) / (D log 2) = 7 - log2 p(x~ | y) / D,    8 for the uniform density on [-1, 1]^D

Densities on (-1, 1) that are learned on the whole line go through the logit map (Dinh et al., 2017, section 4.1):

    z = logit(a + (1 - 2a) (x~ + 1) / 2),    log |dz / dx~| = log((1 - 2a) / 2) + softplus(z) + softplus(-z)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.images import to_uint8

MARGIN = 0.01  # a of the logit map


def dequantise(images: Tensor, rng: torch.Generator) -> Tensor:
    """float images (n, c, h, w) at grey levels -> the same at a uniform place in the cell of their level, in [-1, 1)."""
    return within(images, torch.rand(images.shape, generator=rng).to(images.device))


def within(images: Tensor, place: Tensor) -> Tensor:
    """float images at grey levels -> the same at `place` in [0, 1) of their cells, in [-1, 1); shapes that broadcast."""
    return (levels(images) + place.clamp(max=1 - 2**-16)) / 128 - 1  # float32 keeps k + u below k + 1


def levels(images: Tensor) -> Tensor:
    """float images in [-1, 1] at grey levels -> their numbers, float32 in {0 … 255}."""
    return to_uint8(images).float()


def cells(images: Tensor) -> Tensor:
    """Dequantised images in [-1, 1) -> the numbers of their cells, int64 in {0 … 255}."""
    return ((images.double() + 1) * 128).floor().clamp(0, 255).long()


def to_logits(images: Tensor) -> tuple[Tensor, Tensor]:
    """x~ in [-1, 1] (n, …) -> (z (n, …), log |det dz / dx~| (n,))."""
    z = torch.logit(MARGIN + (1 - 2 * MARGIN) * (images + 1) / 2)
    slope = math.log((1 - 2 * MARGIN) / 2) + F.softplus(z) + F.softplus(-z)
    return z, slope.flatten(1).sum(1)


def from_logits(z: Tensor) -> Tensor:
    """The inverse of `to_logits`, clipped to [-1, 1]."""
    return (2 * (torch.sigmoid(z) - MARGIN) / (1 - 2 * MARGIN) - 1).clamp(-1.0, 1.0)


def bits_per_dim(log_prob: Tensor, dimensions: int) -> Tensor:
    """log p(x~ | y) in nats (n,) -> bits per dimension (n,)."""
    return 7.0 - log_prob / (dimensions * math.log(2))
