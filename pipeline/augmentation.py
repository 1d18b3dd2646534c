"""Geometric augmentation of a batch in one resampling, and the conditioning that keeps it from leaking.

Each image gets its own affine map A = flip · scale · stretch · rotation · shift; pixel coordinates u in [-1, 1]^2 of the result
are read at A u. A generator that is told A learns p(x | y, A) and is sampled at A = identity, so augmented looks never leak
into its samples (Karras et al., 2020, ADA; Karras et al., 2022, EDM, appendix F.2: each kind applied with probability p).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CONDITIONS = 9  # numbers that describe one map; all zero for the identity


def random_maps(n: int, probability: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Affine maps (n, 2, 3) and the numbers that describe them (n, CONDITIONS); each kind with `probability`."""

    def pick(values: Tensor) -> Tensor:
        return values * (torch.rand(n, generator=rng) < probability)

    def normal() -> Tensor:
        return torch.randn(n, generator=rng)

    flip_x = pick(torch.ones(n))
    flip_y = pick(torch.ones(n))
    scale = pick(normal() * 0.2)
    turn = pick((torch.rand(n, generator=rng) * 2 - 1) * math.pi)
    stretch_by, stretch_at = pick(normal() * 0.2), torch.rand(n, generator=rng) * math.pi
    shift_x, shift_y = pick(normal() * 0.125), pick(normal() * 0.125)

    cos, sin = turn.cos(), turn.sin()
    rotation = torch.stack([cos, -sin, sin, cos], -1).view(n, 2, 2)
    # The symmetric map with eigenvalues 2^b along an axis at angle a and 2^-b across it: cosh I + sinh R(2a).
    double, growth = 2 * stretch_at, stretch_by * math.log(2)
    mirror = torch.stack([double.cos(), double.sin(), double.sin(), -double.cos()], -1).view(n, 2, 2)
    stretch = growth.cosh().view(n, 1, 1) * torch.eye(2) + growth.sinh().view(n, 1, 1) * mirror
    flip = torch.diag_embed(torch.stack([1 - 2 * flip_x, 1 - 2 * flip_y], -1))
    linear = flip @ (scale.exp2().view(n, 1, 1) * stretch) @ rotation
    maps = torch.cat([linear, torch.stack([shift_x, shift_y], -1).unsqueeze(-1)], -1)
    described = [flip_x, flip_y, scale * 5, cos - 1, sin, stretch_by * double.cos() * 5, stretch_by * double.sin() * 5,
                 shift_x * 8, shift_y * 8]  # fmt: skip
    return maps, torch.stack(described, -1)


def apply(images: Tensor, maps: Tensor) -> Tensor:
    """Read float images (n, c, h, w) at the maps (n, 2, 3): bilinear, mirrored at the border; identities stay untouched."""
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    same = (maps == torch.eye(2, 3, device=maps.device)).all(-1).all(-1)
    return torch.where(same.view(-1, 1, 1, 1), images, moved)
