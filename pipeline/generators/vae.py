"""Autoencoders: images as codes under a Gaussian, and back (Kingma & Welling, 2014; conditional: Sohn et al., 2015).

    z ~ N(0, I),   x | z, y ~ N(m(z, y), diag sigma^2),   q(z | x, y) = N(mu(x, y), diag s(x, y)^2)
    L = E_q log p(x | z, y) - beta KL(q(z | x, y) || N(0, I)),   z = mu + s eps            (Kingma & Welling, eq. 8 and 10)
    KL(q || N(0, I)) = sum (mu^2 + s^2 - 1 - log s^2) / 2                                  (appendix B)

sigma is learned with the rest, one for each pixel (Rybkin et al., 2021, sigma-VAE), so that p is a density of x. At beta = 1,
L <= log p(x | y). The importance-weighted bound is tighter, the more so with more samples (Burda et al., 2016, eq. 8):

    log p(x | y) >= E log 1/K sum_k p(x | z_k, y) p(z_k) / q(z_k | x, y),   z_k ~ q

All classes share one prior: z is what varies within a class, learnt from all of them, and a class of three images is drawn with
the variety of the others. A prior of its own would close around its three codes.

`plain` has no KL and no noise: its codes are fitted afterwards by a Gaussian for each class, drawn towards the pooled
covariance. `interpolate` goes between the codes of two train images, which the model keeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Count, Share
from pipeline.core.seeds import noise, rng, torch_stream
from pipeline.errors import ConfigError, DataError
from pipeline.generators.shared import gaussians
from pipeline.generators.shared.augmentation import CONDITIONS, unmoved
from pipeline.generators.shared.base import GenerativeModel, Traits
from pipeline.generators.shared.batches import Batch, Rate, Trained, blockwise, train
from pipeline.generators.shared.density import dequantise
from pipeline.generators.shared.networks.unet import Block, zero
from pipeline.runtime.parallel import share
from pipeline.runtime.training import autocast, device

NAME = "vae"
LOG_2PI = math.log(2 * math.pi)
LEAST, MOST = -7.0, 3.0  # of log_std: keeps its exponential finite when a fit starts


class VaeConfig(Trained):
    """The section `vae` of params.yaml."""

    kind: Literal["variational", "plain"] = "variational"
    """variational | plain: no KL, no noise; a Gaussian is fitted to the codes of each class"""
    mode: Literal["prior", "interpolate"] = "interpolate"
    """prior | interpolate: new codes from the Gaussian, or between those of two train images of the class"""
    latent_dim: Count = 16
    """numbers in a code"""
    beta: Annotated[float, Field(ge=0.0)] = 1.0
    """variational: weight of the KL; 1 is the bound itself"""
    decoder_noise: bool = True
    """variational: add the decoder's noise to samples; grainy, but with `prior` draws of the density"""
    bound_samples: Count = 32
    """importance samples behind log_prob"""
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    """channels at full resolution, a multiple of 8"""
    patch: Count = 1
    """space-to-depth factor at the input"""
    dropout: Share = 0.2
    """share of channels dropped inside the blocks"""
    steps: Count = 1000
    """optimiser steps"""
    lr: Rate = 0.003
    """learning rate of AdamW, warmed up, then cosine to 0"""
    augment: Share = 0.1
    """probability of each non-leaking augmentation"""


@dataclass(frozen=True)
class Code:
    """q(z | x, y, a) = N(mean, diag(std^2)): mean and log standard deviation (n, d)."""

    mean: Tensor
    log_std: Tensor


class Conditions(nn.Module):
    """(n,) labels in 0 … n_classes - 1 and (n, a) conditions -> embedding (n, embed)."""

    def __init__(self, n_classes: int, conditions: int, embed: int) -> None:
        super().__init__()
        self.label, self.condition = nn.Embedding(n_classes, embed), nn.Linear(conditions, embed, bias=False)

    def forward(self, labels: Tensor, conditions: Tensor) -> Tensor:
        return F.silu(self.label(labels) + self.condition(conditions))


class Autoencoder(nn.Module):
    """x -> q(z | x, y, a) and z -> mean of p(x | z, y, a); `log_sigma` (c, h, w) is the log standard deviation of p.

    encoder  space-to-depth by `patch`, 3 x 3 convolution; at each size a residual block, then halve and widen; linear map
    decoder  linear map, the same sizes back: a residual block, then grow to the next size; 3 x 3 convolution, depth-to-space

    Sizes halve, rounded up, down to at most 4 pixels a side: 8 4, 28 14 7 4.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        n_classes: int,
        *,
        latent: int,
        width: int,
        patch: int,
        dropout: float,
        conditions: int,
    ) -> None:
        super().__init__()
        channels, embed = shape[0] * patch**2, 4 * width
        self.patch, self.sizes = patch, halvings(shape[1] // patch)
        widths = [width * min(2**level, 4) for level in range(len(self.sizes))]
        steps = list(pairwise(widths))
        self.small = (widths[-1], self.sizes[-1], self.sizes[-1])
        inner = widths[-1] * self.sizes[-1] ** 2
        # From 1, at the network's pace: while sigma is large the KL weighs more, and codes stay few and near their prior. With
        # few images a sigma that falls faster gives fewer bits per dimension and worse samples of the prior.
        self.log_sigma = nn.Parameter(torch.zeros(shape))

        self.told_encoder = Conditions(n_classes, conditions, embed)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(Block(w, w, embed, dropout) for w in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in steps)
        self.norm_code, self.code = nn.GroupNorm(8, widths[-1]), zero(nn.Linear(inner, 2 * latent))
        nn.init.normal_(self.code.weight[:latent], std=inner**-0.5)

        self.told_decoder = Conditions(n_classes, conditions, embed)
        self.start = nn.Linear(latent, inner)
        self.up = nn.ModuleList(Block(w, w, embed, dropout) for w in reversed(widths))
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in reversed(steps))
        self.norm, self.out = nn.GroupNorm(8, width), zero(nn.Conv2d(width, channels, 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def encode(self, x: Tensor, labels: Tensor, conditions: Tensor) -> Code:
        """Images (n, c, h, w) in [-1, 1], (n,), (n, a) -> Code of (n, d) in float32."""
        told = self.told_encoder(labels, conditions)
        x = self.stem(F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last))
        for level, block in enumerate(self.down):
            x = block(self.shrink[level - 1](x) if level else x, told)
        mean, log_std = self.code(F.silu(self.norm_code(x)).flatten(1)).float().chunk(2, 1)
        return Code(mean, log_std.clamp(LEAST, MOST))

    def decode(self, z: Tensor, labels: Tensor, conditions: Tensor) -> Tensor:
        """Codes (n, d), (n,), (n, a) -> images (n, c, h, w) in float32, unbounded."""
        told = self.told_decoder(labels, conditions)
        x = self.start(z).view(-1, *self.small).contiguous(memory_format=torch.channels_last)
        for level, block in enumerate(self.up):
            if level:
                x = self.grow[level - 1](F.interpolate(x, size=self.sizes[-1 - level], mode="nearest"))
            x = block(x, told)
        return F.pixel_shuffle(self.out(F.silu(self.norm(x))), self.patch).float()


def halvings(size: int) -> list[int]:
    """`size` and its halves, rounded up, down to the first of at most 4."""
    sizes = [size]
    while sizes[-1] > 4:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


class Vae(GenerativeModel):
    """Conditional variational autoencoder, or its plain sibling."""

    traits = Traits(density="approximate", likelihood="bound", data_parallel=True)
    name = NAME
    Config = VaeConfig
    config: VaeConfig

    def build(self) -> None:
        """Raises ConfigError where the image size is no multiple of the patch."""
        config = self.config
        if self.shape[1] % config.patch:
            raise ConfigError(
                f"data.image_size={self.shape[1]} with vae.patch={config.patch}",
                expected=f"a multiple of {config.patch}",
                remedy="set vae.patch=1",
            )
        if config.kind == "plain":
            self.traits = Traits(density="implicit", likelihood="none", data_parallel=True)
        self.network = self._network(seed=0)
        self.codes: dict[str, Tensor] = {}  # of the train images: mean and log_std (n, d), labels (n,)

    def _network(self, seed: int) -> Autoencoder:
        config = self.config
        with torch_stream(seed, NAME, "weights"):
            return Autoencoder(
                self.shape, self.n_classes, latent=config.latent_dim, width=config.width, patch=config.patch,
                dropout=config.dropout, conditions=CONDITIONS,
            )  # fmt: skip

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None) -> Self:
        config, where = self.config, device()
        self.network = network = self._network(seed)

        def loss(batch: Batch) -> Tensor:
            x = dequantise(batch.images, batch.rng)
            eps = torch.randn(len(x), config.latent_dim, generator=batch.rng).to(where)
            x, eps, labels, conditions = share(x, eps, batch.labels, batch.conditions)
            with autocast(config.precision, where):
                code = network.encode(x, labels, conditions)
                z = code.mean if config.kind == "plain" else code.mean + code.log_std.exp() * eps
                mean = network.decode(z, labels, conditions)
            bound = log_normal(x - mean, network.log_sigma)
            if config.kind == "variational":
                bound = bound - config.beta * divergence(code)
            out: Tensor = -bound.mean() / x[0].numel()
            return out

        train(network, config, (images, labels), loss, weight_decay=0.01, seed=seed, name=NAME, folder=folder)
        self.codes = self._encode(images, labels)
        return self

    def _encode(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """mean and log_std (n, d) of q(z | x, y), with the labels."""
        network, d = self.network, self.config.latent_dim

        def make(y: Tensor, rows: list[int]) -> Tensor:
            code = network.encode(images[rows].to(y.device), y, unmoved(y))
            return torch.cat([code.mean, code.log_std], 1)

        mean, log_std = blockwise(network, self.config, make, labels, range(len(labels)), (2 * d,)).chunk(2, 1)
        return {"mean": mean, "log_std": log_std, "labels": labels.clone()}

    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Raises DataError where codes of train images are needed and the class has none."""
        network, config, d = self.network, self.config, self.config.latent_dim

        def make(y: Tensor, own: list[int]) -> Tensor:
            drawn, label = noise(own, (3 + d + math.prod(self.shape),)), y.cpu()
            if config.mode == "interpolate":
                z = self._between(label, torch.special.ndtr(drawn[:, :3]), drawn[:, 3 : d + 3])
            else:
                z = self._fitted(label, drawn[:, 3 : d + 3]) if config.kind == "plain" else drawn[:, 3 : d + 3]
            with autocast(config.precision, y.device):
                mean = network.decode(z.to(y.device), y, unmoved(y)).cpu()
            sigma = network.log_sigma.exp().cpu() * (config.decoder_noise and config.kind == "variational")
            return (mean + sigma * drawn[:, d + 3 :].view_as(mean)).clamp(-1.0, 1.0)

        return blockwise(network, config, make, labels, seeds, self.shape)

    def _between(self, labels: Tensor, places: Tensor, eps: Tensor) -> Tensor:
        """Codes (n, d) between two train images of each label; `places` (n, 3) in (0, 1) choose the first, the second, how far.

        A class of one image has no second: it is varied by `eps` (n, d) within its posterior, or the Gaussian of its class.
        """
        counts, order = self._counts(labels), torch.argsort(self.codes["labels"], stable=True)
        starts, own = (counts.cumsum(0) - counts)[labels], counts[labels]
        first = (places[:, 0] * own).long().clamp(max=own - 1)
        other = (places[:, 1] * (own - 1)).long().clamp(max=(own - 2).clamp(min=0))
        a, b = order[starts + first], order[starts + (first + 1 + other) % own]
        mean = self.codes["mean"]
        plain = self.config.kind == "plain"
        single = self._fitted(labels, eps) if plain else mean[a] + self.codes["log_std"][a].exp() * eps
        return torch.where((own == 1)[:, None], single, spherical(mean[a], mean[b], places[:, 2:]))

    def _fitted(self, labels: Tensor, eps: Tensor) -> Tensor:
        """Codes (n, d) by the Gaussian of each label, drawn towards the pooled covariance."""
        self._counts(labels)  # none is empty
        fitted = gaussians.fit(self.codes["mean"].double(), self.codes["labels"], self.n_classes, ridge=1e-8)
        out = fitted.means[labels] + torch.einsum("nij,nj->ni", fitted.factors[labels], eps.double())
        return out.float()

    def _counts(self, labels: Tensor) -> Tensor:
        counts = torch.bincount(self.codes["labels"], minlength=self.n_classes)
        if bool((counts[labels] == 0).any()):
            raise DataError(f"vae.mode={self.config.mode} was asked for a class without train images", expected="at least one")
        return counts

    def log_prob(self, images: Tensor, labels: Tensor) -> Tensor:
        """Importance-weighted bound of log p(x | y) in nats float64 (n,), at beta = 1 whatever the fit's.

        The noise of its `bound_samples` draws is the same for every image. Raises ConfigError for a plain autoencoder.
        """
        if self.config.kind == "plain":
            raise ConfigError("vae.kind=plain has no density", expected="vae.kind=variational", remedy="set it and fit again")
        return self._log_weights(images, labels).double().logsumexp(1) - math.log(self.config.bound_samples)

    def _log_weights(self, images: Tensor, labels: Tensor) -> Tensor:
        """log p(x | z_k, y) p(z_k) / q(z_k | x, y) float64 (n, bound_samples)."""
        network, config = self.network, self.config
        draws = torch.randn(config.bound_samples, config.latent_dim, generator=rng(0, NAME, "bound"))

        def make(y: Tensor, rows: list[int]) -> Tensor:
            # No autocast: pixels in bf16 would be far off in units of a small sigma.
            x, none = images[rows].to(y.device), unmoved(y)
            code, log_sigma, logs = network.encode(x, y, none), wide(network.log_sigma), []
            for eps in draws.to(y.device):
                off = code.log_std.exp() * eps
                z = code.mean + off
                likelihood = log_normal(wide(x - network.decode(z, y, none)), log_sigma)
                prior, posterior = (
                    log_normal(wide(z), torch.zeros(1, dtype=torch.float64)),
                    log_normal(wide(off), wide(code.log_std)),
                )
                logs.append(likelihood + prior - posterior)
            return torch.stack(logs, 1)

        return blockwise(network, config, make, labels, range(len(labels)), (config.bound_samples,))

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        return tensors | {f"codes.{name}": value for name, value in self.codes.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_state_dict(_under("network.", tensors))
        self.codes = _under("codes.", tensors)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def log_normal(gap: Tensor, log_std: Tensor) -> Tensor:
    """log N(gap; 0, std^2) in nats, summed over all but the first axis: (n, …) -> (n,)."""
    out: Tensor = (-0.5 * (gap * (-log_std).exp()).square() - log_std - 0.5 * LOG_2PI).flatten(1).sum(1)
    return out


def wide(values: Tensor) -> Tensor:
    """In float64, on the processor: some accelerators have none."""
    return values.cpu().double()


def divergence(code: Code) -> Tensor:
    """KL(q || N(0, I)) in nats (n,)."""
    out: Tensor = 0.5 * (code.mean.square() + (2 * code.log_std).exp() - 1 - 2 * code.log_std).sum(1)
    return out


def spherical(a: Tensor, b: Tensor, place: Tensor) -> Tensor:
    """From codes a (place 0) to b (place 1), (n, d) and (n, 1), along the arc (White, 2016).

    Codes of N(0, I) lie near a sphere; a straight line would leave it for the likeliest, least varied codes in its middle.
    """
    cosine = torch.cosine_similarity(a, b, dim=1).clamp(-0.999, 0.999)[:, None]
    angle = torch.acos(cosine)
    return (((1 - place) * angle).sin() * a + (place * angle).sin() * b) / angle.sin()
