"""Paths between data and noise, what a network may predict on them, and how noise is drawn and paired.

    x_t = alpha(t) x_0 + sigma(t) x_1,    x_0 data, x_1 ~ N(0, I),    t in [0, 1]: 0 is data, 1 is noise

A path is known by its noise level s = sigma / alpha: x_t / alpha = x_0 + s x_1, whatever alpha (Karras et al., 2022, table 1).

    Linear       alpha = 1 - t, sigma = t                                       Lipman et al., 2023; Liu et al., 2023
    LinearBeta   log alpha = -t^2 (20 - 0.1) / 4 - 0.1 t / 2                      Ho et al., 2020; Song et al., 2021, eq. 33
    Cosine       alpha = cos(a(t)) / cos(a(0)), a = (t + o) / (1 + o) pi / 2        Nichol & Dhariwal, 2021, eq. 17, o = 0.008
    Edm          alpha = 1, sigma = (s_1^(1/7) + t (s_0^(1/7) - s_1^(1/7)))^7       Karras et al., 2022, eq. 5

LinearBeta is the limit of DDPM's product of 1000 factors, at t = k / 1000. All predictions are a x_0 + b x_1:

    epsilon (0, 1)    x0 (1, 0)    v (-sigma, alpha)    velocity (-1, 1), d x_t / dt of the linear path

so that x_0 = (b x_t - sigma p) / (alpha b - sigma a) and x_1 = (alpha p - a x_t) / (alpha b - sigma a). For data of unit
variance and alpha^2 + sigma^2 = 1, -v is what the preconditioned network of Karras et al. (2022, eq. 7) predicts:
D = c_skip z + c_out F(c_in z) with z = x_t / alpha, c_skip = alpha^2, c_out = sigma, c_in = alpha and loss weight 1 / c_out^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

DISCRETE = 1000  # steps of the discrete schedules
LEAST, LARGEST = 0.004, 40.0  # noise levels s of the schedules, in units of the data's deviation
Prediction = Literal["epsilon", "v", "x0", "velocity"]


class Schedule(Protocol):
    """t -> (alpha, sigma), and the noise levels that a network is trained on."""

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times t in [0, 1], shaped like t."""

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """Noise levels s = sigma / alpha (n,) for training."""


class Linear:
    """Straight paths: velocity E[x_1 - x_0 | x_t] (rectified flow)."""

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        t = logit_normal(n, rng)
        return t / (1 - t)


class LinearBeta:
    """The variance-preserving path of DDPM: beta grows linearly."""

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log = -t.square() * (20 - 0.1) / 4 - t * 0.1 / 2
        return log.exp(), (-torch.expm1(2 * log)).sqrt()

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        return levels(self, discrete_times(n, rng))


class Cosine:
    """The variance-preserving path whose alpha^2 falls almost linearly in the middle, and slowly at both ends."""

    offset = 0.008

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        start = self.offset / (1 + self.offset)
        alpha = (torch.cos((start + t * (1 - start)) * math.pi / 2) / math.cos(start * math.pi / 2)).clamp(0.0, 1.0)
        return alpha, (1 - alpha.square()).sqrt()

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        return levels(self, discrete_times(n, rng))


class Edm:
    """No shrinking, s spread by a power of 7; trained with log s ~ N(-1.2 + log 2, 1.2^2) as data have deviation 1, not 1/2."""

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = LEAST ** (1 / 7), LARGEST ** (1 / 7)
        return torch.ones_like(t), (low + t * (high - low)) ** 7

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.exp(torch.randn(n, generator=rng) * 1.2 - 1.2 + math.log(2)).clamp(LEAST, LARGEST)


def levels(schedule: Schedule, t: Tensor) -> Tensor:
    """Noise levels s = sigma / alpha at times t in [0, 1], within LEAST and LARGEST."""
    alpha, sigma = schedule.at(t)
    return (sigma / alpha.clamp(min=1e-8)).clamp(LEAST, LARGEST)


def discrete_times(n: int, rng: torch.Generator) -> Tensor:
    """Times t (n,) = k / 1000 with k drawn evenly from 1 … 1000."""
    return torch.randint(1, DISCRETE + 1, (n,), generator=rng) / DISCRETE


def logit_normal(n: int, rng: torch.Generator, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Times t (n,) in (0, 1) with logit(t) ~ N(mean, std^2): most often in the middle (Esser et al., 2024, eq. 19)."""
    return torch.sigmoid(torch.randn(n, generator=rng) * std + mean)


def preserving(level: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = 1 / sqrt(1 + s^2) and sigma = s / sqrt(1 + s^2) of noise levels s, where unit variance stays unit variance."""
    alpha = (1 + level.square()).rsqrt()
    return alpha, level * alpha


@dataclass(frozen=True)
class Point:
    """A place x_t = alpha x_0 + sigma x_1 on a path; alpha and sigma broadcast against x_t."""

    x: Tensor
    alpha: Tensor
    sigma: Tensor

    @classmethod
    def mix(cls, x0: Tensor, x1: Tensor, alpha: Tensor, sigma: Tensor) -> Point:
        """The places of images x0 and noise x1 (n, c, h, w) for alpha and sigma (n,)."""
        shape = (-1, *[1] * (x0.ndim - 1))
        alpha, sigma = alpha.view(shape), sigma.view(shape)
        return cls(alpha * x0 + sigma * x1, alpha, sigma)

    def _parts(self, kind: Prediction) -> tuple[Tensor, Tensor]:
        zero, one = torch.zeros_like(self.alpha), torch.ones_like(self.alpha)
        table = {"epsilon": (zero, one), "x0": (one, zero), "v": (-self.sigma, self.alpha), "velocity": (-one, one)}
        return table[kind]

    def target(self, kind: Prediction, x0: Tensor, x1: Tensor) -> Tensor:
        """a x_0 + b x_1, what a network that predicts `kind` learns."""
        a, b = self._parts(kind)
        return a * x0 + b * x1

    def split(self, kind: Prediction, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """(x_0, x_1), the means that a prediction of `kind` stands for."""
        a, b = self._parts(kind)
        scale = self.alpha * b - self.sigma * a
        return (b * self.x - self.sigma * prediction) / scale, (self.alpha * prediction - a * self.x) / scale


def paired(x0: Tensor, x1: Tensor, groups: Sequence[int]) -> Tensor:
    """The rows of noise x1 (n, …) that go with x0 (n, …): the least sum of squared distances, within equal groups alone.

    The coupling of minibatch optimal transport (Tong et al., 2024, section 3.2). What the network is told of an image must
    not be told by its noise: p(x_1 | condition) stays N(0, I) only where rows of equal condition exchange their noise.
    """
    of, out = torch.tensor(groups), x1.clone()
    for group in set(groups):
        rows = (of == group).nonzero().flatten().to(x0.device)
        if len(rows) > 1:
            costs = torch.cdist(x0[rows].flatten(1), x1[rows].flatten(1)).square()
            out[rows] = x1[rows[torch.as_tensor(linear_sum_assignment(costs.cpu().numpy())[1], device=x0.device)]]
    return out
