"""Numerical integrators of dx/dt = v(x, t) from t = 1 (noise) to t = 0 (data).

With h < 0 the step from t to t + h:
    Euler  x + h v(x, t)                                          first order, 1 evaluation
    Heun   x + h (v(x, t) + v(x + h v(x, t), t + h)) / 2           second order, 2 evaluations
Heun's last step is Euler's, as v is not asked for at t = 0 (Karras et al., EDM, 2022, algorithm 1): 2 n - 1 evaluations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]


def times(steps: int) -> list[float]:
    """steps + 1 evenly spaced times from 1 to 0."""
    return [float(t) for t in torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)]


def euler(velocity: Velocity, x1: Tensor, steps: int) -> Tensor:
    """x_0 (n, c, h, w) from x_1 in `steps` evaluations."""
    x, grid = x1, times(steps)
    for t, s in itertools.pairwise(grid):
        x = x + (s - t) * velocity(x, t)
    return x


def heun(velocity: Velocity, x1: Tensor, steps: int) -> Tensor:
    """x_0 (n, c, h, w) from x_1 in 2 steps - 1 evaluations."""
    x, grid = x1, times(steps)
    for t, s in itertools.pairwise(grid):
        v = velocity(x, t)
        ahead = x + (s - t) * v
        x = ahead if s == 0.0 else x + (s - t) * 0.5 * (v + velocity(ahead, s))
    return x
