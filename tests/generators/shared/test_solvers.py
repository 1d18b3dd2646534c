"""Solvers against the analytic path of Gaussian data: their orders, and how often they ask."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.generators.shared import solvers

MEAN, SPREAD = 2.0, 0.5  # data N(MEAN, SPREAD^2)


def velocity(x: Tensor, t: float) -> Tensor:
    """The exact field between data and N(0, 1): v = d/dt of the quantile map of N((1-t) 2, (1-t)^2/4 + t^2)."""
    mean, var = MEAN * (1 - t), ((1 - t) * SPREAD) ** 2 + t**2
    return -MEAN + (t - (1 - t) * SPREAD**2) / var * (x - mean)


def denoise(z: Tensor, s: float) -> Tensor:
    """E[x_0 | x_0 + s x_1 = z]."""
    return (SPREAD**2 * z + s**2 * MEAN) / (SPREAD**2 + s**2)


def ahead(z: Tensor, s: float, r: float) -> Tensor:
    """Where the noiseless path takes z from level s to level r: (z - mean) / deviation stays."""
    return MEAN + (z - MEAN) * math.sqrt((SPREAD**2 + r**2) / (SPREAD**2 + s**2))


def errors(solve: Callable[[Tensor, list[float]], Tensor]) -> list[float]:
    z = torch.linspace(-9, 13, 9, dtype=torch.float64).view(-1, 1, 1, 1)
    exact = ahead(z, 5.0, 0.1)
    return [float((solve(z, solvers.powers(n + 1, 5.0, 0.1)[:-1]) - exact).abs().max()) for n in (10, 20, 40)]


def test_euler_and_heun_follow_the_flow_with_their_orders() -> None:
    x1 = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1, 1, 1)
    exact = MEAN + SPREAD * x1
    second, first = (
        [float((solve(velocity, x1, solvers.times(n)) - exact).abs().max()) for n in (10, 20, 40)]
        for solve in (solvers.heun, solvers.euler)
    )
    assert second[-1] < 2e-3 and second[0] / second[1] > 3 and second[1] / second[2] > 3
    assert 1.6 < first[1] / first[2] < 2.6 and first[2] > second[2]


def test_ddim_is_of_first_order_multistep_and_heun_of_second() -> None:
    first = errors(lambda z, grid: solvers.ddim(denoise, z, grid))
    assert 1.7 < first[0] / first[1] < 2.4 and 1.7 < first[1] / first[2] < 2.4
    for solve in (
        lambda z, grid: solvers.multistep(denoise, z, grid),
        lambda z, grid: solvers.heun(lambda z, s: (z - denoise(z, s)) / s, z, grid),
    ):
        second = errors(solve)
        assert second[0] / second[1] > 3 and second[1] / second[2] > 3 and second[2] < first[2] / 5


def test_ddim_without_noise_is_eulers_rule() -> None:
    z, grid = torch.randn(4, 1, 2, 2, dtype=torch.float64) * 5, solvers.powers(6, 5.0, 0.1)
    expected = solvers.euler(lambda z, s: (z - denoise(z, s)) / s, z, grid)
    torch.testing.assert_close(solvers.ddim(denoise, z, grid), expected)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_every_chain_arrives_at_the_law_of_the_data(eta: float) -> None:
    rng = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(20000, 1, 1, 1, generator=rng, dtype=torch.float64)  # noqa: E731
    z = MEAN + math.sqrt(SPREAD**2 + 25) * draw()
    out = solvers.ddim(denoise, z, solvers.powers(200, 5.0, 0.002), eta, lambda _: draw())
    assert abs(float(out.mean()) - MEAN) < 0.02 and abs(float(out.std()) / SPREAD - 1) < 0.03


def test_ddpm_keeps_the_noise_level_in_one_coarse_step() -> None:
    """Of one known image the marginal at level r is N(image, r^2), however far the step and however much of it is fresh."""
    rng = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(20000, 1, 1, 1, generator=rng)  # noqa: E731
    for eta in (0.0, 0.5, 1.0):
        out = solvers.ddim(lambda z, s: torch.full_like(z, 0.3), 0.3 + 2 * draw(), [2.0, 0.7], eta, lambda _: draw())
        assert abs(float(out.mean()) - 0.3) < 0.02 and abs(float(out.std()) / 0.7 - 1) < 0.02


@pytest.mark.parametrize("n", [1, 2, 7])
def test_evaluations(n: int) -> None:
    calls: list[float] = []

    def count(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return x

    for grid in (solvers.times(n), solvers.powers(n, 40.0, 0.02)):
        for solve, expected in ((solvers.heun, 2 * n - 1), (solvers.euler, n), (solvers.ddim, n), (solvers.multistep, n)):
            calls.clear()
            solve(count, torch.zeros(1, 1, 1, 1), grid)
            assert len(calls) == expected and 0.0 not in calls


def test_grids_fall_from_end_to_end() -> None:
    grid = solvers.powers(9, 40.0, 0.02)
    assert len(grid) == 10 and math.isclose(grid[0], 40.0) and math.isclose(grid[-2], 0.02) and grid[-1] == 0.0
    assert grid == sorted(grid, reverse=True)
