"""Numerical integrators from noise to data, along falling grids of times or noise levels.

Of dx/dt = v(x, t), with h < 0 the step from t to t + h:
    Euler  x + h v(x, t)                                          first order, 1 evaluation
    Heun   x + h (v(x, t) + v(x + h v(x, t), t + h)) / 2           second order, 2 evaluations
Heun's last step is Euler's, as v is not asked for at t = 0 (Karras et al., EDM, 2022, algorithm 1): 2 n - 1 evaluations.

Of a denoiser D(z, s) = E[x_0 | x_0 + s x_1 = z], where dz/ds = (z - D) / s; one evaluation a step from s to r < s:
    DDIM       z + (r_d - s) (z - D) / s + r_u noise,   r_u = eta r sqrt(s^2 - r^2) / s,   r_d^2 = r^2 - r_u^2
               eta = 0 is Euler's rule on s, eta = 1 DDPM's own chain (Song et al., DDIM, 2021, eq. 12 and 16)
    multistep  (r / s) z + (1 - r / s) (D + q (D - D_before)),   q = log(s / r) / (2 log(s_before / s))
               DPM-Solver++(2M), second order (Lu et al., 2022, algorithm 2); first and last step are DDIM's
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
Denoise = Callable[[Tensor, float], Tensor]


def times(steps: int) -> list[float]:
    """steps + 1 evenly spaced times from 1 to 0."""
    return [float(t) for t in torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)]


def powers(steps: int, most: float, least: float, rho: float = 7.0) -> list[float]:
    """steps + 1 noise levels: `steps` from `most` to `least`, even in s^(1 / rho), then 0 (Karras et al., 2022, eq. 5)."""
    roots = torch.linspace(most ** (1 / rho), least ** (1 / rho), steps, dtype=torch.float64)
    return [*(float(r) for r in roots**rho), 0.0]


def euler(velocity: Velocity, x: Tensor, grid: Sequence[float]) -> Tensor:
    """x (n, c, h, w) at the end of the grid, in len(grid) - 1 evaluations."""
    for t, s in itertools.pairwise(grid):
        x = x + (s - t) * velocity(x, t)
    return x


def heun(velocity: Velocity, x: Tensor, grid: Sequence[float]) -> Tensor:
    """x (n, c, h, w) at the end of the grid, in 2 evaluations a step, 1 for a step to 0."""
    for t, s in itertools.pairwise(grid):
        v = velocity(x, t)
        ahead = x + (s - t) * v
        x = ahead if s == 0.0 else x + (s - t) * 0.5 * (v + velocity(ahead, s))
    return x


def ddim(
    denoise: Denoise, z: Tensor, grid: Sequence[float], eta: float = 0.0, fresh: Callable[[int], Tensor] | None = None
) -> Tensor:
    """x_0 (n, c, h, w) from z at the noise level grid[0]; fresh(i) gives the noise of step i, asked for where eta > 0."""
    for i, (s, r) in enumerate(itertools.pairwise(grid)):
        up = eta * r * math.sqrt(s**2 - r**2) / s
        clean = denoise(z, s)
        z = clean + math.sqrt(max(0.0, r**2 - up**2)) / s * (z - clean)
        if up > 0 and fresh is not None:
            z = z + up * fresh(i)
    return z


def multistep(denoise: Denoise, z: Tensor, grid: Sequence[float]) -> Tensor:
    """x_0 (n, c, h, w) from z at the noise level grid[0], in one evaluation a step."""
    before, past = z, 0.0
    for i, (s, r) in enumerate(itertools.pairwise(grid)):
        clean = denoise(z, s)
        q = math.log(s / r) / (2 * math.log(past / s)) if i and r > 0 else 0.0
        z = r / s * z + (1 - r / s) * (clean + q * (clean - before))
        before, past = clean, s
    return z
