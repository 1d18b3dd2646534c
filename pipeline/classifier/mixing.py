"""Pairs of a batch mixed into one: images (n, c, h, w) and their weighted targets (n, k), row i with row n - 1 - i.

Features (n, d) have no places: both mix them as mixup does.

    mixup   x = lam a + (1 - lam) b,  t likewise (Zhang et al., 2018, eq. 1)
    cutmix  x = M a + (1 - M) b with M zero inside a box,  t = m s + (1 - m) u,  m the mean of M (Yun et al., 2019, eq. 1)

with lam from Beta(alpha, alpha) for each row. Rows stand in a batch in random order, so pairs are random. Draws come from a
NumPy generator handed in, so that they do not depend on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Mixed(NamedTuple):
    """What became of a batch."""

    images: Tensor  # float (n, c, h, w), or features (n, d)
    targets: Tensor  # float (n, k)
    share: Tensor  # float (n, 1) in [0, 1]: how much of it is of row n - 1 - i


def mixup(x: Tensor, t: Tensor, alpha: float, r: np.random.Generator) -> Mixed:
    """x float (n, c, h, w) or (n, d), t (n, k), alpha > 0."""
    lam = torch.from_numpy(r.beta(alpha, alpha, len(x)).astype(np.float32)).to(x.device)
    share = 1 - lam[:, None]
    return Mixed(x.lerp(x.flip(0), share.view(-1, *[1] * (x.ndim - 1))), t.lerp(t.flip(0), share), share)


def cutmix(x: Tensor, t: Tensor, alpha: float, r: np.random.Generator) -> Mixed:
    """x float (n, c, h, w) or (n, d), t (n, k), alpha > 0. Of a box over the border only what is inside is pasted."""
    if x.ndim == 2:
        return mixup(x, t, alpha, r)
    lam = r.beta(alpha, alpha, len(x))

    def inside(side: int) -> np.ndarray:
        # Yun et al. (2019), eq. 2: sqrt(1 - lam) of the side, the centre anywhere.
        centre, length = r.random(len(x)) * side, np.sqrt(1 - lam) * side
        first, end = (np.rint(centre + half * length)[:, None] for half in (-0.5, 0.5))
        pixels = np.arange(side)
        return (first <= pixels) & (pixels < end)

    rows, columns = inside(x.shape[2]), inside(x.shape[3])
    area = rows.sum(1) * columns.sum(1) / (x.shape[2] * x.shape[3])
    box = torch.from_numpy(rows[:, None, :, None] & columns[:, None, None, :]).to(x.device)
    share = torch.from_numpy(area.astype(np.float32)).to(x.device)[:, None]
    return Mixed(torch.where(box, x.flip(0), x), t.lerp(t.flip(0), share), share)


MIXES: Mapping[str, Callable[[Tensor, Tensor, float, np.random.Generator], Mixed]] = {"mixup": mixup, "cutmix": cutmix}
