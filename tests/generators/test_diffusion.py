"""The bound against exact densities of Gaussian data, and every prediction, schedule and solver."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers.contracts_settings import SETTINGS, digits
from pipeline.generators.diffusion import Diffusion, DiffusionConfig, bound, bound_levels, integrate, place, stratified
from pipeline.generators.shared import denoising, noise

SHAPE = (1, 8, 8)
SPREAD = 0.7


def build(**changes: object) -> Diffusion:
    return Diffusion(DiffusionConfig(**{**SETTINGS["diffusion"], **changes}), shape=SHAPE, n_classes=3)


def exact(z: Tensor, s: float) -> Tensor:
    """The denoiser of data N(0, SPREAD^2)."""
    return SPREAD**2 / (SPREAD**2 + s**2) * z


def test_the_bound_of_an_exact_denoiser_lies_below_the_density_and_nears_it() -> None:
    rng = torch.Generator().manual_seed(0)
    x0 = SPREAD * torch.randn(300, 1, 8, 8, generator=rng)
    density = torch.distributions.Normal(0.0, SPREAD).log_prob(x0.double()).flatten(1).sum(1)

    def gap(steps: int) -> float:
        drawn = stratified(steps, SHAPE, rng)
        return float((density - bound(exact, x0, bound_levels(steps), drawn)).mean()) / 64

    gaps = [gap(steps) for steps in (20, 100, 1000)]
    assert gaps[0] > gaps[1] > gaps[2] > -0.01  # the error of the shared noise
    assert gaps[2] < 0.02


def test_stratified_noise_is_normal_and_its_squares_add_up() -> None:
    drawn = stratified(200, (30, 30), torch.Generator().manual_seed(0)).double()
    assert float((drawn.square().mean(0) - 1).abs().max()) < 0.1  # of free draws: up to 0.4
    assert abs(float(drawn[0].mean())) < 0.1 and abs(float(drawn[0].std()) - 1) < 0.08  # one level alone is N(0, I)
    assert abs(float((drawn[:, 0, 0] * drawn[:, 0, 1]).mean())) < 0.25


def test_a_worse_denoiser_has_a_lower_bound() -> None:
    rng = torch.Generator().manual_seed(0)
    x0, drawn = SPREAD * torch.randn(50, *SHAPE, generator=rng), stratified(100, SHAPE, rng)
    best = bound(exact, x0, bound_levels(100), drawn)
    for worse in (lambda z, s: exact(z, s) * 0.98, lambda z, s: exact(z, s) + 0.01 * s, lambda z, s: torch.zeros_like(z)):
        assert float(bound(worse, x0, bound_levels(100), drawn).mean()) < float(best.mean())


def test_the_bound_counts_the_units_of_the_images() -> None:
    """Of the same x_0 in images of twice the deviation, log p is less by D log 2; an untrained network predicts 0."""
    model, labels = build(prediction="x0", bound_steps=8), torch.tensor([0, 1, 2, 0])
    model.networks = denoising.build(model.config, SHAPE, 3)
    x0 = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)) - 0.5
    first = model.log_prob(x0, labels)
    model.mean, model.deviation = 0.25, 2.0
    torch.testing.assert_close(model.log_prob(2 * x0 + 0.25, labels), first - 64 * math.log(2), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("solver", "steps"), [("ddpm", 1000), ("ddim", 50), ("heun", 9), ("multistep", 10)])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "edm"])
def test_every_solver_carries_noise_to_the_law_of_gaussian_data(solver: str, steps: int, schedule: str) -> None:
    config = build(solver=solver, schedule=schedule, solver_steps=steps).config
    rng, error = torch.Generator().manual_seed(0), {"ddpm": 0.04, "ddim": 0.1, "heun": 0.12, "multistep": 0.1}[solver]
    start = torch.randn(4000, 1, 2, 2, generator=rng)
    out = integrate(exact, start, config, lambda i: torch.randn(start.shape, generator=rng))
    assert abs(float(out.mean())) < 0.03 and abs(float(out.std()) / SPREAD - 1) < error


def test_the_network_sees_the_logarithm_of_the_noise_level() -> None:
    levels = torch.tensor([noise.LEAST, math.sqrt(noise.LEAST * noise.LARGEST), noise.LARGEST])
    torch.testing.assert_close(place(levels), torch.tensor([0.0, 0.5, 1.0]))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "edm"])
def test_every_prediction_and_schedule_learns(prediction: str, schedule: str) -> None:
    images, labels = digits()
    model = build(prediction=prediction, schedule=schedule, steps=60, bound_steps=4).fit(images, labels, seed=0)
    y = torch.arange(3).repeat_interleave(8)
    means = model.sample(y, range(24)).view(3, 8, *SHAPE).mean(1)
    real = torch.stack([images[labels == c].mean(0) for c in range(3)])
    assert float((means - real).square().mean()) < 0.8 * float(real.square().mean())
    assert bool(model.log_prob(images[:2], labels[:2]).isfinite().all())


def test_ddpms_fresh_noise_is_that_of_the_images_own_seed() -> None:
    images, labels = digits()
    model = build(steps=2, solver="ddpm", solver_steps=5, block_images=4).fit(images, labels, seed=0)
    y = torch.tensor([0, 1, 2, 0, 1])
    together = model.sample(y, [5, 6, 7, 8, 9])
    assert torch.equal(model.sample(y[3:], [8, 9]), together[3:])
    assert not torch.equal(together[0], model.sample(y[:1], [1])[0])
