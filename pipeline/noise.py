"""Paths between data and noise.

    x_t = alpha(t) x_0 + sigma(t) x_1,    x_0 data, x_1 ~ N(0, I),    t in [0, 1]: 0 is data, 1 is noise

The probability-flow velocity of the path is v(x, t) = E[alpha'(t) x_0 + sigma'(t) x_1 | x_t = x]; integrating dx = v dt from
t = 1 to t = 0 carries noise to data (Lipman et al., 2023, eq. 9; Liu et al., 2023, eq. 1; Albergo & Vanden-Eijnden, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """alpha = 1 - t, sigma = t: straight paths, v = E[x_1 - x_0 | x_t] (rectified flow; optimal-transport path)."""

    def mix(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """x_t (n, c, h, w) for times t (n,)."""
        t = t.view(-1, *[1] * (x0.ndim - 1))
        return torch.lerp(x0, x1, t)

    def velocity(self, x0: Tensor, x1: Tensor) -> Tensor:
        """d x_t / dt (n, c, h, w), the regression target."""
        return x1 - x0


def logit_normal(n: int, rng: torch.Generator, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Times t (n,) in (0, 1) with logit(t) ~ N(mean, std^2): most often in the middle (Esser et al., 2024, eq. 19)."""
    return torch.sigmoid(torch.randn(n, generator=rng) * std + mean)
