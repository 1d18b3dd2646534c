"""Dequantisation, the logit map and bits per dimension against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.core.images import to_float
from pipeline.generators.shared import density


def every_level() -> torch.Tensor:
    return to_float(torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1))


def test_a_dequantised_image_stays_in_the_cell_of_its_level() -> None:
    images = every_level().expand(-1, 1, 20, 20)
    for seed in range(3):
        x = density.dequantise(images, torch.Generator().manual_seed(seed))
        assert float(x.min()) >= -1 and float(x.max()) < 1
        assert torch.equal(density.cells(x), torch.arange(256).view(-1, 1, 1, 1).expand(-1, 1, 20, 20))


def test_the_place_in_the_cell_is_uniform() -> None:
    x = density.dequantise(torch.zeros(1, 1, 200, 200), torch.Generator().manual_seed(0)).double()
    u = (x + 1) * 128 - 128
    assert float(u.mean()) == pytest.approx(0.5, abs=0.01) and float(u.var()) == pytest.approx(1 / 12, abs=0.002)


def test_the_uniform_density_has_eight_bits() -> None:
    assert float(density.bits_per_dim(torch.tensor([12 * math.log(0.5)]), 12)) == pytest.approx(8.0)


def test_a_mass_spread_over_cells_has_the_bits_of_its_entropy() -> None:
    mass = torch.rand(256, generator=torch.Generator().manual_seed(0)).double()
    mass /= mass.sum()
    x = density.dequantise(every_level(), torch.Generator().manual_seed(1))
    log_prob = mass[density.cells(x).flatten()].log() + math.log(128)
    assert float((mass * density.bits_per_dim(log_prob, 1)).sum()) == pytest.approx(float(-(mass * mass.log2()).sum()))


def test_a_smooth_density_meets_the_bound_from_below() -> None:
    """E_u log p(x~) <= log P(k) + log 128 for p = N(0, 0.05^2): its mass of a cell is known."""
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), 0.05)
    levels = torch.arange(100, 156).double()
    mass = normal.cdf((levels + 1) / 128 - 1) - normal.cdf(levels / 128 - 1)
    images = to_float(levels.byte().view(-1, 1, 1, 1)).expand(-1, 1, 64, 64)
    inside = normal.log_prob(density.dequantise(images, torch.Generator().manual_seed(0)).double()).flatten(1).mean(1)
    gap = mass.log() + math.log(128) - inside
    assert float(gap.min()) > -1e-2 and float(gap.max()) < 0.03


def test_the_logit_map_inverts_and_its_slope_is_the_jacobian() -> None:
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 1, 2, 3)
    z, slope = density.to_logits(x)
    torch.testing.assert_close(density.from_logits(z), x)
    jacobian = torch.autograd.functional.jacobian(lambda v: density.to_logits(v.view(1, 1, 2, 3))[0].flatten(), x[0].flatten())
    assert float(slope[0]) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]))
