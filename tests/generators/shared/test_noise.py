"""Paths, predictions on them, and the pairing of noise with images."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.generators.shared import noise

ALL = [noise.Linear(), noise.LinearBeta(), noise.Cosine(), noise.Edm()]
T = torch.linspace(0, 1, 1001, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [noise.LinearBeta(), noise.Cosine()])
def test_variance_preserving_schedules_keep_unit_variance(schedule: noise.Schedule) -> None:
    alpha, sigma = schedule.at(T)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(T))
    assert float(sigma[0]) == 0.0 and float(alpha[-1]) < 0.007


@pytest.mark.parametrize("schedule", ALL)
def test_noise_grows_with_time_within_the_limits(schedule: noise.Schedule) -> None:
    level = noise.levels(schedule, T)
    assert bool((level.diff() >= 0).all())
    assert float(level[0]) == pytest.approx(noise.LEAST) and float(level[-1]) == pytest.approx(noise.LARGEST)
    drawn = schedule.draw(2000, torch.Generator().manual_seed(0))
    assert float(drawn.min()) > 0 and bool(drawn.isfinite().all()) and float(drawn.std()) > 0.1


def test_linear_beta_is_the_product_of_ddpms_thousand_factors() -> None:
    product = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    alpha, _ = noise.LinearBeta().at(T[1:])
    kept = product > 0.01
    assert float((alpha.square() / product - 1)[kept].abs().max()) < 0.03


def test_cosine_is_that_of_its_paper() -> None:
    f = torch.cos((T + 0.008) / 1.008 * math.pi / 2).square()
    torch.testing.assert_close(noise.Cosine().at(T)[0].square(), f / f[0])


@pytest.mark.parametrize("kind", ["epsilon", "v", "x0", "velocity"])
def test_predictions_invert_each_other(kind: noise.Prediction) -> None:
    rng = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 50, 1, 4, 4, generator=rng, dtype=torch.float64)
    for schedule in ALL:
        point = noise.Point.mix(x0, x1, *schedule.at(torch.linspace(0.1, 0.9, 50, dtype=torch.float64)))
        clean, drawn = point.split(kind, point.target(kind, x0, x1))
        torch.testing.assert_close(clean, x0)
        torch.testing.assert_close(drawn, x1)


def test_velocity_is_the_derivative_of_the_linear_path() -> None:
    x0, x1 = torch.randn(2, 5, 1, 2, 2, dtype=torch.float64)
    low, high = (noise.Point.mix(x0, x1, *noise.Linear().at(torch.full((5,), t, dtype=torch.float64))) for t in (0.3, 0.301))
    torch.testing.assert_close((high.x - low.x) / 0.001, low.target("velocity", x0, x1))


def test_v_is_edms_preconditioning_in_units_of_the_data() -> None:
    """Karras et al., 2022, table 1, sigma_data = 1: inputs and targets of unit variance, and a loss weight of 1 / c_out^2."""
    x0, x1 = torch.randn(2, 40000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for s in (0.01, 0.3, 1.0, 4.0, 40.0):
        level = torch.full((len(x0),), s, dtype=torch.float64)
        point = noise.Point.mix(x0, x1, *noise.preserving(level))
        target = point.target("v", x0, x1)
        assert abs(float(point.x.std()) - 1) < 0.02 and abs(float(target.std()) - 1) < 0.02
        z, f = x0 + s * x1, torch.randn(len(x0), 1, 1, 1, dtype=torch.float64)
        c_skip, c_out, c_in = 1 / (s**2 + 1), s / math.sqrt(s**2 + 1), 1 / math.sqrt(s**2 + 1)
        torch.testing.assert_close(point.x, c_in * z)
        clean = point.split("v", -f)[0]
        torch.testing.assert_close(clean, c_skip * z + c_out * f)
        weight = (s**2 + 1) / s**2
        torch.testing.assert_close(weight * (clean - x0).square(), (-f - target).square())


def test_pairing_shortens_the_way_and_exchanges_noise_within_groups_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 60, 1, 2, 2, generator=rng)
    groups = [*torch.randint(0, 4, (58,), generator=rng).tolist(), -1, -2]
    out = noise.paired(x0, x1, groups)
    assert float((x0 - out).square().sum()) < 0.8 * float((x0 - x1).square().sum())
    source = [int((x1 == row).flatten(1).all(1).nonzero()) for row in out]
    assert sorted(source) == list(range(60)) and [groups[i] for i in source] == groups
    assert torch.equal(out[58:], x1[58:])
    assert torch.equal(noise.paired(x0, out, groups), out)  # already the best
