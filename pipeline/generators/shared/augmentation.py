"""Geometric augmentation of a batch in one resampling, and what keeps it from leaking.

Each image gets its own affine map A = flip · scale · stretch · rotation · shift, each kind with probability p; pixel
coordinates u in [-1, 1]^2 of the result are read at A u.

random_maps  flips and turns of any angle too, for a generator that is told A: it learns p(x | y, A) and is sampled at
             A = identity (Karras et al., 2022, EDM, appendix F.2)
nudges       no flips and slight turns, after which an image is still of its class, for a discriminator that is not told: what
             leaks into the samples (Karras et al., 2020, ADA, section 2.2) is then a slightly moved image and no mirrored one
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CONDITIONS = 9  # numbers that describe one map; all zero for the identity


def unmoved(labels: Tensor) -> Tensor:
    """What a network is told of images (n, …) of these labels (n,) that are not moved: zeros (n, CONDITIONS)."""
    return torch.zeros(len(labels), CONDITIONS, device=labels.device)


def random_maps(n: int, probability: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Affine maps (n, 2, 3) and the numbers that describe them (n, CONDITIONS); each kind with `probability`."""
    draw = _Draw(n, probability, rng)
    flip_x, flip_y = draw.pick(torch.ones(n)), draw.pick(torch.ones(n))
    scale = draw.normal(0.2)
    turn = draw.pick((torch.rand(n, generator=rng) * 2 - 1) * math.pi)
    stretch_by, stretch_at = draw.normal(0.2), torch.rand(n, generator=rng) * math.pi
    shift_x, shift_y = draw.normal(0.125), draw.normal(0.125)
    flip = torch.diag_embed(torch.stack([1 - 2 * flip_x, 1 - 2 * flip_y], -1))
    maps = torch.cat([flip @ _linear(scale, stretch_by, stretch_at, turn), _shift(shift_x, shift_y)], -1)
    double = 2 * stretch_at
    described = [flip_x, flip_y, scale * 5, turn.cos() - 1, turn.sin(), stretch_by * double.cos() * 5,
                 stretch_by * double.sin() * 5, shift_x * 8, shift_y * 8]  # fmt: skip
    return maps, torch.stack(described, -1)


def nudges(n: int, probability: float, rng: torch.Generator) -> Tensor:
    """Affine maps (n, 2, 3) that keep the class: scale, stretch, turn and shifts, each with `probability`."""
    draw = _Draw(n, probability, rng)
    linear = _linear(draw.normal(0.2), draw.normal(0.2), torch.rand(n, generator=rng) * math.pi, draw.normal(0.15))
    return torch.cat([linear, _shift(draw.normal(0.125), draw.normal(0.125))], -1)


@dataclass(frozen=True)
class _Draw:
    """Numbers (n,) that are zero but with `probability`."""

    n: int
    probability: float
    rng: torch.Generator

    def pick(self, values: Tensor) -> Tensor:
        return values * (torch.rand(self.n, generator=self.rng) < self.probability)

    def normal(self, std: float) -> Tensor:
        return self.pick(std * torch.randn(self.n, generator=self.rng))


def _linear(scale: Tensor, stretch_by: Tensor, stretch_at: Tensor, turn: Tensor) -> Tensor:
    """Scale 2^scale · stretch · rotation (n, 2, 2), from numbers (n,); angles in radians."""
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], -1).view(-1, 2, 2)
    # The symmetric map with eigenvalues 2^b along an axis at angle a and 2^-b across it: cosh I + sinh R(2a).
    double, growth = 2 * stretch_at, stretch_by * math.log(2)
    mirror = torch.stack([double.cos(), double.sin(), double.sin(), -double.cos()], -1).view(-1, 2, 2)
    stretch = growth.cosh().view(-1, 1, 1) * torch.eye(2) + growth.sinh().view(-1, 1, 1) * mirror
    return (scale.exp2().view(-1, 1, 1) * stretch) @ rotation


def _shift(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x, y], -1).unsqueeze(-1)


def apply(images: Tensor, maps: Tensor) -> Tensor:
    """Read float images (n, c, h, w) at the maps (n, 2, 3): bilinear, mirrored at the border; identities stay untouched."""
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    same = (maps == torch.eye(2, 3, device=maps.device)).all(-1).all(-1)
    return torch.where(same.view(-1, 1, 1, 1), images, moved)
