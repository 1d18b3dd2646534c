"""Flow matching: a velocity field that carries noise to images (Lipman et al., 2023; Liu et al., 2023).

    x_t = (1 - t) x_0 + t x_1,   x_0 ~ p(x | y),   x_1 ~ N(0, I)
    L   = E_{t, x_0, x_1} | v(x_t, t, y, a) - (x_1 - x_0) |^2,   logit(t) ~ N(0, 1)
    sampling: dx = v dt from t = 1 to 0 by Heun's rule
    path optimal_transport: x_1 is exchanged within a batch for the shortest way from x_0 (Tong et al., 2024)

The flow from noise to images is invertible and so has a density (instantaneous change of variables: Chen et al., 2018, eq. 8):

    log p(x_0 | y) = log N(x_1; 0, I) + int_0^1 div v(x_t, t, y) dt,   dx = v dt from t = 0 at x_0 to t = 1 at x_1
    div v = E_e e^T (dv / dx) e,   e of signs +1 and -1   (Hutchinson, 1990; Grathwohl et al., 2019, eq. 7)

What makes one shared network learn a class of three images: all classes train it; classes are drawn in proportion to
n_c^(1 - class_power); labels are dropped per sample; geometric augmentation a is told to the network and set to none when
sampling, so that it cannot leak; dropout; averaged weights.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Count
from pipeline.core.seeds import noise as noise_of
from pipeline.core.seeds import rng
from pipeline.generators.shared import denoising, density, noise, solvers
from pipeline.generators.shared.base import Traits
from pipeline.generators.shared.batches import Batch
from pipeline.generators.shared.denoising import Denoising, DenoisingModel, Example

NAME = "flow_matching"


class FlowMatchingConfig(Denoising):
    """The section `flow_matching` of params.yaml."""

    path: Literal["linear", "optimal_transport"] = "linear"
    """linear | optimal_transport: the latter pairs noise with images of a class, best with augment: 0"""
    likelihood_steps: Count = 8
    """Heun's steps of log_prob, 2 evaluations each"""
    likelihood_probes: Annotated[int, Field(ge=0)] = 1
    """directions of the divergence; 0 is all: exact, as many evaluations as an image has numbers"""


class FlowMatching(DenoisingModel):
    """Class-conditional flow matching on pixels."""

    traits = Traits(density="explicit", likelihood="exact", data_parallel=True)
    name = NAME
    Config = FlowMatchingConfig
    config: FlowMatchingConfig

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None) -> Self:
        return self.train(images, labels, seed=seed, folder=folder)

    def example(self, batch: Batch) -> Example:
        # Images within their grey levels' cells, as a density is asked of such; the eye sees no difference.
        x0 = density.dequantise(batch.images, batch.rng)
        x1 = torch.randn(x0.shape, generator=batch.rng).to(x0.device)
        if self.config.path == "optimal_transport":
            x1 = noise.paired(x0, x1, alike(batch))
        t = noise.logit_normal(len(x0), batch.rng).to(x0.device)
        point = noise.Point.mix(x0, x1, *noise.Linear().at(t))
        return Example(point.x, t, point.target("velocity", x0, x1))

    def generate(self, labels: Tensor, seeds: list[int]) -> Tensor:
        velocity = denoising.guided(self.networks, self.config, self.n_classes, labels)
        x1 = noise_of(seeds, self.shape).to(labels.device)
        return solvers.heun(velocity, x1, solvers.times(self.config.solver_steps)).clamp(-1.0, 1.0)

    def log_prob(self, images: Tensor, labels: Tensor) -> Tensor:
        """log p(x | y) in nats float64 (n,), without guidance, of images before they are clipped to [-1, 1].

        Exact but for the error of Heun's rule (likelihood_steps), and for that of the probes where likelihood_probes is not 0:
        one set of probes serves every row, so that classes are compared on equal terms.
        """
        plain = {"guidance": "none", "precision": "fp32"}  # a divergence is a sum over pixels: bf16 is too coarse for it
        config = self.config.model_copy(update=plain)
        probes = directions(self.shape, config.likelihood_probes)

        def ask(y: Tensor, rows: list[int]) -> Tensor:
            velocity = denoising.guided(self.networks, config, self.n_classes, y)
            return log_density(velocity, images[rows].to(y.device), config.likelihood_steps, probes.to(y.device))

        return self.each(ask, labels)

    def tensors(self) -> dict[str, Tensor]:
        return self.networks.state_dict()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.take(tensors)


def alike(batch: Batch) -> list[int]:
    """A number for each row, equal where the network is told the same: unmoved images of one class; a moved one is alone.

    Exchanged noise tells of the image that it went to. Within rows of equal class and map it stays N(0, I) given both.
    """
    moved = batch.conditions.abs().sum(1) > 0
    alone = -1 - torch.arange(len(moved), device=moved.device)
    groups: list[int] = torch.where(moved, alone, batch.labels).tolist()
    return groups


def directions(shape: tuple[int, int, int], n: int) -> Tensor:
    """Vectors e (m, c, h, w) with sum e^T J e = trace J: all axes for n = 0, else n of signs, equal to it in the mean."""
    if n == 0:
        return torch.eye(math.prod(shape)).view(-1, *shape)
    signs = torch.randint(0, 2, (n, *shape), generator=rng(0, NAME, "probes"))
    return (2 * signs - 1) / math.sqrt(n)


def log_density(velocity: solvers.Velocity, x0: Tensor, steps: int, probes: Tensor) -> Tensor:
    """log p(x_0) in nats float64 (n,) by Heun's rule; times are squares, as the velocity changes fastest near the data."""

    def slope(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(x, t)
            div = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            for i, e in enumerate(probes):
                (product,) = torch.autograd.grad(v, x, e.expand_as(v), retain_graph=i + 1 < len(probes))
                div += (product * e).double().flatten(1).sum(1)
        return v.detach(), div

    x, gained = x0, torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for t, s in itertools.pairwise((i / steps) ** 2 for i in range(steps + 1)):
        v, div = slope(x, t)
        ahead, div_ahead = slope(x + (s - t) * v, s)
        x, gained = x + (s - t) / 2 * (v + ahead), gained + (s - t) / 2 * (div + div_ahead)
    normal = -0.5 * (x.double().square() + math.log(2 * math.pi)).flatten(1).sum(1)
    return normal + gained
