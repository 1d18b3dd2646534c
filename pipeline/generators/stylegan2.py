"""StyleGAN2 with adaptive augmentation: a generator steered by styles at every layer (Karras et al., 2020; ADA, 2020).

    w = f(z / rms(z), y),   z ~ N(0, I)                                       mapping network
    s = A w + b,   w'_oik = s_i w_oik,   w''_oik = w'_oik / (sum_ik w'_oik^2 + e)^(1/2)     (Karras et al., 2020, eq. 1-3)
    image = sum over grids of upsampled outputs of layers x <- leaky(w'' * x + noise)   from a learned constant

A filter of its own for every image is one filter for all, between scalings:  w'' * x = d (w * (s x)),  d_o = 1 / norm of w'.
Trained against a residual discriminator with projection on the label (Miyato & Koyama, 2018, eq. 4), by the non-saturating
loss with lazy R1 (adversarial.py). Weights are drawn from N(0, 1) and scaled when used, so that all learn at one
rate (equalised; Karras et al., 2018, section 4.1). What lets it learn few images is augmentation of all that the
discriminator sees, its probability p steered by how sure the discriminator is of real images (ADA, section 3.1):

    r = E sign D(x, y),   p <- p + sign(r - target) images / ada_images,   0 <= p <= augment

No density: samples alone. Sampling may draw w towards its average of the class: w <- w_y + truncation (w - w_y).
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Count, Share
from pipeline.core.seeds import rng
from pipeline.generators.shared import adversarial
from pipeline.generators.shared.adversarial import Adversarial, AdversarialModel
from pipeline.generators.shared.base import Traits
from pipeline.generators.shared.batches import Batch, Rate
from pipeline.runtime.training import threads

NAME = "stylegan2"
AVERAGED = 1000  # z behind the average w of a class
MAPPING_RATE = 0.1  # the mapping network learns at this share of lr (Karras et al., 2019, appendix C, has 0.01 for longer runs)
REMEMBER = 0.9  # share of r that one step keeps


class StyleGan2Config(Adversarial):
    """The section `stylegan2` of params.yaml."""

    latent: Count = 32
    """numbers in z and in w"""
    width: Annotated[int, Field(ge=4)] = 24
    """channels at full resolution; doubled with each halving, up to 4 times"""
    mapping_layers: Count = 1
    """layers from z to w; 8 as published, for longer runs on more images"""
    style_mixing: Share = 0.0
    """share of training images with two styles; 0.9 as published, which harms short runs on few images"""
    r1: Annotated[float, Field(ge=0.0)] = 0.05
    """weight of the gradient penalty on real images"""
    r1_every: Count = 4
    """steps from one penalty to the next, which then counts as many times"""
    ada_target: Share = 0.3
    """mean sign of D on real images above which augmentation rises; 0 is undecided, 1 is sure of all"""
    ada_images: Count = 2000
    """images in which the probability of augmentation may rise from 0 to 1"""
    truncation: Share = 1.0
    """1 is none; 0 gives every image the average style of its class"""
    steps: Count = 1500
    """optimiser steps of both networks"""
    lr: Rate = 0.003
    """learning rate of the generator, warmed up, then cosine to 0; the discriminator's is three times as much"""
    class_power: Share = 0.8
    """classes are drawn in proportion to n^(1 - class_power)"""
    augment: Share = 0.6
    """most that the probability of each nudge may reach"""


class StyleGan2(AdversarialModel):
    """Class-conditional StyleGAN2-ADA."""

    name = NAME
    traits = Traits(density="implicit", likelihood="none")
    Config = StyleGan2Config
    config: StyleGan2Config
    clip = 10.0  # the lazy penalty comes seldom and large, and must not be cut away
    generator: Generator
    discriminator: Discriminator

    def players(self) -> tuple[Generator, Discriminator]:
        config, shape, n_classes = self.config, self.shape, self.n_classes
        return (
            Generator(shape, n_classes, latent=config.latent, width=config.width, mapping_layers=config.mapping_layers),
            Discriminator(shape, n_classes, width=config.width),
        )

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None) -> Self:
        self.train(images, labels, seed=seed, folder=folder)
        with threads(self.config.threads):
            self.generator.take_averages(rng(seed, NAME, "averages"))
        self.generator.cpu()
        return self

    def strength(self) -> float:
        return float(self.discriminator.p)

    def fake(self, batch: Batch) -> Tensor:
        config, generator, y, n = self.config, self.generator, batch.labels, len(batch.labels)
        drawn = torch.randn(n, generator.draws, generator=batch.rng).to(y.device)
        other = torch.randn(n, config.latent, generator=batch.rng).to(y.device)
        cut = crossover(n, generator.layers, config.style_mixing, batch.rng).to(y.device)
        z, noises = drawn.tensor_split([config.latent], dim=1)
        return generator.synthesis(mixed(generator.mapping(z, y), generator.mapping(other, y), cut, generator.layers), noises)

    def lesson(self, real: Tensor, made: Tensor, batch: Batch) -> Tensor:
        config, d, y = self.config, self.discriminator, batch.labels
        penalised = config.r1 > 0 and batch.step % config.r1_every == 0
        logits = d(real.requires_grad_(penalised), y)
        loss = adversarial.discriminator_loss(logits, d(made, y))
        if penalised:
            loss = loss + 0.5 * config.r1 * config.r1_every * adversarial.gradient_penalty(logits, real)
        d.adapt(logits, config.ada_target, len(real) / config.ada_images, config.augment)  # for the next step
        return loss

    def draw(self, drawn: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.generator(drawn, labels, self.config.truncation)
        return images


def crossover(n: int, layers: int, probability: float, rng: torch.Generator) -> Tensor:
    """For each of n images the layer in 1 … layers from which the other style rules; `layers` where none does."""
    cut = torch.randint(1, layers, (n,), generator=rng)
    return torch.where(torch.rand(n, generator=rng) < probability, cut, layers)


def mixed(w: Tensor, other: Tensor, cut: Tensor, layers: int) -> Tensor:
    """Styles (n, layers, d): w (n, d) before layer `cut` (n,), the other from there (Karras et al., 2019, section 3.1)."""
    before = torch.arange(layers, device=w.device) < cut[:, None]
    return torch.where(before.unsqueeze(2), w.unsqueeze(1), other.unsqueeze(1))


def modulated(x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool) -> Tensor:
    """Convolve x (n, i, h, w) by weight (o, i, k, k) scaled by style (n, i): -> (n, o, h, w).

    Demodulated, the output has variance one for x of variance one (Karras et al., 2020, eq. 1-3). The style scales the
    input and the norm the output, so that all images share one convolution.
    """
    y = F.conv2d(x * style[:, :, None, None].to(x.dtype), weight, padding=weight.shape[-1] // 2)
    if demodulate:
        with torch.autocast(x.device.type, enabled=False):
            norm = (style.float().square() @ weight.float().square().sum((2, 3)).mT + 1e-8).rsqrt()
        y = y * norm[:, :, None, None].to(y.dtype)
    return y


class Linear(nn.Module):
    """x W^T / sqrt(i) + b with W of N(0, 1): equalised learning rate, times `rate`."""

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.gain, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        """(n, i) -> (n, o)."""
        return F.linear(x, self.weight * self.gain, self.bias * self.rate)


class Conv(nn.Module):
    """Convolution with equalised learning rate."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.gain = 1 / math.sqrt(inputs * kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, i, h, w) -> (n, o, h, w)."""
        return F.conv2d(x, self.weight * self.gain, self.bias, padding=self.weight.shape[-1] // 2)


class Styled(nn.Module):
    """A layer of the synthesis network: modulated convolution, noise, bias, leaky unit."""

    def __init__(self, inputs: int, outputs: int, latent: int, *, kernel: int = 3, plain: bool = False) -> None:
        """`plain`: the output of a grid, neither demodulated nor noisy nor bent."""
        super().__init__()
        self.style = Linear(latent, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.gain, self.plain = 1 / math.sqrt(inputs * kernel**2), plain
        if not plain:
            self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, w: Tensor, noises: Tensor | None = None) -> Tensor:
        """(n, i, h, w), (n, latent), (n, 1, h, w) -> (n, o, h, w)."""
        y = modulated(x, self.weight * self.gain, self.style(w), demodulate=not self.plain)
        y = y + self.bias.view(1, -1, 1, 1).to(y.dtype)
        if noises is None:
            return y
        return leaky(y + (self.strength * noises).to(y.dtype))


class Mapping(nn.Module):
    """w = f(z, y): both of length one a number, then `layers` leaky layers."""

    def __init__(self, n_classes: int, latent: int, layers: int) -> None:
        super().__init__()
        self.label = nn.Embedding(n_classes, latent)
        self.layers = nn.ModuleList(Linear(latent if i else 2 * latent, latent, rate=MAPPING_RATE) for i in range(layers))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """(n, latent), (n,) -> (n, latent)."""
        w = torch.cat([normalised(z), normalised(self.label(labels))], 1)
        for layer in self.layers:
            w = leaky(layer(w))
        return w.float()


class Generator(adversarial.Maker):
    """Mapping and synthesis network. All that is random in an image is one row of `draws` numbers: z, then its noises.

    The buffer `average` (n_classes, latent) holds the mean w of each class; the saved model carries it.
    """

    average: Tensor

    def __init__(self, shape: tuple[int, int, int], n_classes: int, *, latent: int, width: int, mapping_layers: int) -> None:
        sides = adversarial.sides(shape[1])
        widths = adversarial.widths(sides, width)
        sizes = [side for i, side in enumerate(sides) for _ in range(1 if i == 0 else 2)]
        super().__init__(latent + sum(side**2 for side in sizes), n_classes)
        self.latent, self.layers, self.sizes = latent, 2 * len(sides) - 1, sizes
        self.mapping = Mapping(n_classes, latent, mapping_layers)
        self.constant = nn.Parameter(torch.randn(1, widths[0], sides[0], sides[0]))
        channels = [widths[0], *(c for c in widths for _ in range(2))]
        self.convolutions = nn.ModuleList(Styled(channels[i], channels[i + 1], latent) for i in range(self.layers))
        self.outputs = nn.ModuleList(Styled(c, shape[0], latent, kernel=1, plain=True) for c in widths)
        self.register_buffer("average", torch.zeros(n_classes, latent))
        self.to(memory_format=torch.channels_last)

    def forward(self, drawn: Tensor, labels: Tensor, truncation: float = 1.0) -> Tensor:
        """(n, draws), (n,) -> float32 images (n, c, h, w) in [-1, 1]."""
        z, noises = drawn.tensor_split([self.latent], dim=1)
        w = self.mapping(z, labels)
        if truncation != 1.0:
            w = self.average[labels].lerp(w, truncation)
        return self.synthesis(w.unsqueeze(1).expand(-1, self.layers, -1), noises)

    def synthesis(self, styles: Tensor, noises: Tensor) -> Tensor:
        """Styles (n, layers, latent), noises (n, draws - latent) -> float32 images (n, c, h, w) in [-1, 1]."""
        n = len(styles)
        maps = torch.split(noises, [side**2 for side in self.sizes], dim=1)
        x, image = self.constant.expand(n, -1, -1, -1), None
        for i, (layer, side) in enumerate(zip(self.convolutions, self.sizes, strict=True)):
            if i % 2:
                x = upsampled(x)
            x = layer(x, styles[:, i], maps[i].view(n, 1, side, side))
            if i % 2 == 0:  # the last layer of its grid
                out = self.outputs[i // 2](x, styles[:, i])
                image = out if image is None else upsampled(image) + out
        assert image is not None
        # Bounded, as the measured images are; near zero slope it is the identity.
        return torch.tanh(image.float())

    @torch.no_grad()
    def take_averages(self, rng: torch.Generator) -> None:
        """Set `average` to the mean w of each class over AVERAGED draws of z."""
        z = torch.randn(AVERAGED, self.latent, generator=rng).to(self.average.device)
        for c, row in enumerate(self.average):
            row.copy_(self.mapping(z, torch.full((AVERAGED,), c, device=z.device)).mean(0))


class Discriminator(nn.Module):
    """D(x, y) = <v_y, phi(x)> / sqrt(d) + psi(phi(x)), phi a residual network (Karras et al., 2020, figure 7c).

    Buffers: `p`, the probability of augmentation, and `sure`, the moving average of sign D over real images (r).
    """

    p: Tensor
    sure: Tensor

    def __init__(self, shape: tuple[int, int, int], n_classes: int, *, width: int) -> None:
        super().__init__()
        sides = adversarial.sides(shape[1])
        widths = adversarial.widths(sides, width)[::-1]
        wide = widths[-1]
        self.stem = Conv(shape[0], width, 1)
        self.blocks = nn.ModuleList(Down(a, b) for a, b in pairwise(widths))
        self.last = Conv(wide + 1, wide)
        self.features = Linear(wide * sides[0] ** 2, wide)
        self.psi, self.label = Linear(wide, 1), nn.Embedding(n_classes, wide)
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("sure", torch.zeros(()))
        self.to(memory_format=torch.channels_last)

    def phi(self, images: Tensor, labels: Tensor) -> Tensor:
        """Features (n, d) of images (n, c, h, w); labels (n,) tell which of them are compared."""
        x = leaky(self.stem(images.contiguous(memory_format=torch.channels_last)))
        for block in self.blocks:
            x = block(x)
        x = leaky(self.last(adversarial.class_deviation(x, labels)))
        return leaky(self.features(x.flatten(1))).float()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (n, c, h, w), labels (n,) -> float32 logits (n,), high for real."""
        features = self.phi(images, labels)
        projected = (self.label(labels) * features).sum(1) / math.sqrt(features.shape[1])
        logits: Tensor = self.psi(features).squeeze(1).float() + projected
        return logits

    @torch.no_grad()
    def adapt(self, logits: Tensor, target: float, step: float, most: float) -> None:
        """Move p by `step` up where the discriminator is surer of real images (logits (n,)) than `target`, else down."""
        self.sure.lerp_(logits.sign().mean(), 1 - REMEMBER)
        self.p.add_(step * (self.sure - target).sign()).clamp_(0.0, most)


class Down(nn.Module):
    """Residual block that halves the grid."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.around = Conv(inputs, inputs), Conv(inputs, outputs), Conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, i, h, w) -> (n, o, h / 2, w / 2)."""
        y = leaky(self.conv2(F.avg_pool2d(leaky(self.conv1(x)), 2)))
        out: Tensor = (y + self.around(F.avg_pool2d(x, 2))) * math.sqrt(0.5)
        return out


def leaky(x: Tensor) -> Tensor:
    """Leaky unit that keeps the scale."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def normalised(x: Tensor) -> Tensor:
    """x (n, d) with a mean square of one in each row."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def upsampled(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, c, 2h, 2w), bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
