"""Diffusion: a network that removes noise of every level, and the chains that turn noise into images with it.

All in z = x_0 + s e, e ~ N(0, I), with x_0 centred and scaled by the train images' mean and deviation; the network sees
z / sqrt(1 + s^2), of unit variance, and predicts e, x_0 or v (shared/noise.py); D(z, s) is the x_0 that this stands for.

    L = E_{s, x_0, e} | F(z / sqrt(1 + s^2), s, y, a) - target |^2           Ho et al., 2020, eq. 14; v: Salimans & Ho, 2022
    s drawn as `schedule` says: 1000 discrete steps of DDPM (linear), of Nichol & Dhariwal, 2021 (cosine), or EDM's
    log-normal levels, whose preconditioning and loss weight are plain v in these units (Karras et al., 2022, table 1)

A chain of levels s_0 > … > s_K bounds the density, for every K (Ho et al., 2020, eq. 5). A step from s to r < s goes to
p(z_r | z_s) = q(z_r | z_s, x_0 = D(z_s, s)) with its variance times c; with a = 1 / r^2 - 1 / s^2 (Kingma et al., 2021, eq. 13)

    -log p(x_0 | y) <=  KL(N(x_0, s_0^2) || N(0, 1 + s_0^2))                                   prior
                      + sum E_e [ d (log c + 1 / c - 1) + a | x_0 - D(x_0 + s e, s) |^2 / c ] / 2    d numbers an image
                      - E_e log N(x_0; x_0 + s_K e, s_K^2)                 reconstruction: p(x_0 | z) = N(z, s_K^2)

c = 1 is best where x_0 is known, c = 1 + a s^2 / (1 + s^2) for x_0 ~ N(0, I) (Ho et al., 2020, section 3.2); half way between
them has about a quarter of the excess of the wrong one. Classes are compared with one e for each level, the same for all
(diffusion classifier: Li et al., 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from pipeline.config import Count
from pipeline.core.seeds import derive, rng
from pipeline.core.seeds import noise as noise_of
from pipeline.generators.shared import denoising, density, noise, solvers
from pipeline.generators.shared.base import Traits
from pipeline.generators.shared.batches import Batch
from pipeline.generators.shared.denoising import Denoising, DenoisingModel, Example

NAME = "diffusion"
SCHEDULES: dict[str, type[noise.Schedule]] = {"linear": noise.LinearBeta, "cosine": noise.Cosine, "edm": noise.Edm}
CHAIN = 20.0, 0.02  # noise levels between which short chains run: beyond the first all is noise, below the last a grey level


class DiffusionConfig(Denoising):
    """The section `diffusion` of params.yaml."""

    prediction: Literal["epsilon", "v", "x0"] = "v"
    """epsilon | v | x0: what the network predicts"""
    schedule: Literal["linear", "cosine", "edm"] = "cosine"
    """linear | cosine | edm: noise levels of training"""
    solver: Literal["ddpm", "ddim", "heun", "multistep"] = "multistep"
    """ddpm | ddim | heun | multistep: one evaluation a step, heun two but for the last"""
    solver_steps: Count = 10
    """multistep 8 to 10; heun about as many; ddim 50; ddpm up to 1000"""
    bound_steps: Count = 32
    """noise levels of log_prob's bound, one evaluation each; more are tighter"""


class Diffusion(DenoisingModel):
    """Class-conditional diffusion on pixels."""

    traits = Traits(density="approximate", likelihood="bound", data_parallel=True)
    name = NAME
    Config = DiffusionConfig
    config: DiffusionConfig
    mean, deviation = 0.0, 1.0  # of the train images' numbers

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None) -> Self:
        self.mean, self.deviation = float(images.mean()), max(1e-3, float(images.std()))
        return self.train(images, labels, seed=seed, folder=folder)

    def example(self, batch: Batch) -> Example:
        # Images within their grey levels' cells, as a bound is asked of such; the eye sees no difference.
        x0 = (density.dequantise(batch.images, batch.rng) - self.mean) / self.deviation
        x1 = torch.randn(x0.shape, generator=batch.rng).to(x0.device)
        level = SCHEDULES[self.config.schedule]().draw(len(x0), batch.rng).to(x0.device)
        point = noise.Point.mix(x0, x1, *noise.preserving(level))
        return Example(point.x, place(level), point.target(self.config.prediction, x0, x1))

    def _denoiser(self, config: Denoising, labels: Tensor) -> solvers.Denoise:
        """D(z, s) for the rows of `labels` (n,), within the range of images."""
        predict = denoising.guided(self.networks, config, self.n_classes, labels)
        low, high = ((end - self.mean) / self.deviation for end in (-1.0, 1.0))

        def denoise(z: Tensor, s: float) -> Tensor:
            level = torch.tensor(s, device=z.device)
            alpha, sigma = noise.preserving(level)
            point = noise.Point(alpha * z, alpha, sigma)
            prediction = predict(point.x, float(place(level)))
            return point.split(self.config.prediction, prediction)[0].clamp(low, high)

        return denoise

    def generate(self, labels: Tensor, seeds: list[int]) -> Tensor:
        def fresh(i: int) -> Tensor:
            return noise_of([derive(seed, NAME, i) for seed in seeds], self.shape).to(labels.device)

        start = noise_of(seeds, self.shape).to(labels.device)
        z = integrate(self._denoiser(self.config, labels), start, self.config, fresh)
        return (self.mean + self.deviation * z).clamp(-1.0, 1.0)

    def log_prob(self, images: Tensor, labels: Tensor) -> Tensor:
        """A lower bound of log p(x | y) in nats float64 (n,), without guidance; its noise is the same for every row.

        The bound holds for the mean over noise; one draw for each of `bound_steps` levels estimates it without bias, with an
        error that rows share. More steps make the bound tighter and the estimate surer.
        """
        config, scaled = self.config.model_copy(update={"guidance": "none"}), (images - self.mean) / self.deviation
        grid = bound_levels(config.bound_steps)
        drawn = stratified(config.bound_steps, self.shape, rng(0, NAME, "bound"))

        def ask(y: Tensor, rows: list[int]) -> Tensor:
            return bound(self._denoiser(config, y), scaled[rows].to(y.device), grid, drawn.to(y.device))

        return self.each(ask, labels) - math.prod(self.shape) * math.log(self.deviation)

    def tensors(self) -> dict[str, Tensor]:
        units = torch.tensor([self.mean, self.deviation], dtype=torch.float64)
        return self.networks.state_dict() | {"units": units}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.mean, self.deviation = tensors.pop("units").tolist()
        self.take(tensors)


def place(level: Tensor) -> Tensor:
    """Where the logarithm of a noise level lies between the least (0) and the largest (1): the t of the network."""
    return (level / noise.LEAST).log() / math.log(noise.LARGEST / noise.LEAST)


def integrate(denoise: solvers.Denoise, noise_: Tensor, config: DiffusionConfig, fresh: Callable[[int], Tensor]) -> Tensor:
    """x_0 (n, c, h, w) from standard normal noise, by the solver of the settings.

    ddpm and ddim walk the schedule's own times; heun and multistep a grid of levels that is even in s^(1/7), whatever the
    schedule: how a network was trained does not bind the solver (Karras et al., 2022, section 3).
    """
    if config.solver in ("ddpm", "ddim"):
        t = torch.linspace(1.0, 1 / noise.DISCRETE, config.solver_steps, dtype=torch.float64)
        grid = [*noise.levels(SCHEDULES[config.schedule](), t).tolist(), 0.0]
    else:
        grid = solvers.powers(config.solver_steps, *CHAIN)
    z = noise_ * math.sqrt(1 + grid[0] ** 2)
    if config.solver == "heun":
        return solvers.heun(lambda z, s: (z - denoise(z, s)) / s, z, grid)
    if config.solver == "multistep":
        return solvers.multistep(denoise, z, grid)
    return solvers.ddim(denoise, z, grid, eta=float(config.solver == "ddpm"), fresh=fresh)


def bound_levels(steps: int) -> list[float]:
    """steps + 1 falling noise levels, even in log(s / sqrt(1 + s^2)): fine where images have details, coarse above them."""
    first, last = (math.log(s / math.hypot(1, s)) for s in (noise.LARGEST, noise.LEAST))
    sigma = torch.linspace(first, last, steps + 1, dtype=torch.float64).exp()
    levels: list[float] = (sigma / (1 - sigma.square()).sqrt()).tolist()
    return levels


def stratified(n: int, shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Standard normal noise (n, *shape), independent between pixels; a pixel's n draws lie one in each n-th of its law.

    A Latin hypercube: each draw is still N(0, I), so means stay unbiased, but sums over n hardly vary (McKay et al., 1979).
    """
    strata = torch.rand(n, *shape, generator=rng, dtype=torch.float64).argsort(0)
    uniform = (strata + torch.rand(n, *shape, generator=rng, dtype=torch.float64)) / n
    drawn: Tensor = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9)).float()
    return drawn


def bound(denoise: solvers.Denoise, x0: Tensor, grid: Sequence[float], drawn: Tensor) -> Tensor:
    """The bound of log p(x_0) in nats float64 (n,), for levels grid (K + 1,) falling and noise drawn (K, c, h, w)."""
    d, most, least = x0[0].numel(), grid[0] ** 2, grid[-1] ** 2
    square = x0.double().flatten(1).square().sum(1)
    prior = (square / (1 + most) - d / (1 + most) + d * math.log1p(1 / most)) / 2
    reconstruction = d / 2 * (math.log(2 * math.pi * least) + 1)
    steps = torch.zeros_like(square)
    for s, r, e in zip(grid, grid[1:], drawn, strict=False):
        gap, a = (x0 - denoise(x0 + s * e, s)).double().flatten(1).square().sum(1), 1 / r**2 - 1 / s**2
        c = 1 + a * s**2 / (1 + s**2) / 2
        steps += (d * (math.log(c) + 1 / c - 1) + a * gap / c) / 2
    return -(prior + steps + reconstruction)
