"""A class-conditional generative adversarial network: a generator against a discriminator (Goodfellow et al., 2014).

    z ~ N(0, I),   G(z, y) makes an image,   D(x, y) tells real from made
    D(x, y) = <v_y, phi(x)> + psi(phi(x))                     (projection: Miyato & Koyama, 2018, eq. 4)
    min L_D + r1 / 2 R1,   min L_G                            (adversarial.py)

No density: samples alone, from the averaged weights of the generator (Yazici et al., 2019).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Count, Share
from pipeline.generators.shared import adversarial
from pipeline.generators.shared.adversarial import Adversarial, AdversarialModel
from pipeline.generators.shared.base import Traits
from pipeline.generators.shared.batches import Batch

NAME = "gan"
# Of the discriminator's leaky units. R1 differentiates twice, and a piecewise linear unit has no second derivative.
SLOPE = 0.2
PENALISED = 4  # one in so many real images of a batch is used for R1


class GanConfig(Adversarial):
    """The section `gan` of params.yaml."""

    width: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    """channels at full resolution, a multiple of 8; doubled with each halving, up to 4 times"""
    depth: Count = 1
    """residual blocks a resolution"""
    batch_images: Count = 32
    """real images an optimiser step, and as many generated ones"""
    class_power: Share = 1.0
    """classes are drawn in proportion to n^(1 - class_power): 1 draws all equally"""
    augment: Share = 0.4
    """probability of each nudge that the discriminator sees all images under"""


class Gan(AdversarialModel):
    """Projection GAN on pixels."""

    name = NAME
    traits = Traits(density="implicit", likelihood="none")
    Config = GanConfig
    config: GanConfig
    clip = 1.0

    def players(self) -> tuple[Generator, Discriminator]:
        config = self.config
        return (
            Generator(self.shape, self.n_classes, latent=config.latent, width=config.width, depth=config.depth),
            Discriminator(self.shape, self.n_classes, width=config.width, depth=config.depth),
        )

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None) -> Self:
        self.train(images, labels, seed=seed, folder=folder)
        self.generator.cpu()
        return self

    def strength(self) -> float:
        return self.config.augment

    def fake(self, batch: Batch) -> Tensor:
        z = torch.randn(len(batch.labels), self.config.latent, generator=batch.rng).to(batch.labels.device)
        images: Tensor = self.generator(z, batch.labels)
        return images

    def lesson(self, real: Tensor, made: Tensor, batch: Batch) -> Tensor:
        d, y, r1 = self.discriminator, batch.labels, self.config.r1
        loss = adversarial.discriminator_loss(d(real, y), d(made, y))
        if r1 > 0:
            some = real[: max(1, len(real) // PENALISED)].requires_grad_()
            loss = loss + 0.5 * r1 * adversarial.gradient_penalty(d(some, y[: len(some)]), some)
        return loss

    def draw(self, drawn: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.generator(drawn, labels)
        return images


class Generator(adversarial.Maker):
    """G(z, y): a linear map of (z, y) to the smallest grid, residual blocks up to the full one; norms scaled by (z, y)."""

    def __init__(self, shape: tuple[int, int, int], n_classes: int, *, latent: int, width: int, depth: int) -> None:
        super().__init__(latent, n_classes)
        sides = adversarial.sides(shape[1])
        self.base, self.widths = sides[0], adversarial.widths(sides, width)
        embed = 4 * width
        self.label = nn.Embedding(n_classes, latent)
        self.code = nn.Sequential(nn.Linear(2 * latent, embed), nn.SiLU(), nn.Linear(embed, embed), nn.SiLU())
        self.start = nn.Linear(embed, self.widths[0] * self.base**2)
        blocks = []
        for i, out in enumerate(self.widths):
            before = self.widths[max(0, i - 1)]
            blocks += [Up(before if j == 0 else out, out, embed, grow=i > 0 and j == 0) for j in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.GroupNorm(8, width)
        self.out = nn.Conv2d(width, shape[0], 3, padding=1)
        self.apply(_start)
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Latents (n, latent), labels (n,) -> float32 images (n, c, h, w) in (-1, 1)."""
        code = self.code(torch.cat([z, self.label(labels)], 1))
        x = self.start(code).view(-1, self.widths[0], self.base, self.base).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x, code)
        return torch.tanh(self.out(F.silu(self.norm(x)))).float()


class Up(nn.Module):
    """Residual block that may double the grid; the code scales and shifts after both norms (Brock et al., 2019, figure 15)."""

    def __init__(self, channels_in: int, channels: int, embed: int, *, grow: bool) -> None:
        super().__init__()
        self.grow = grow
        self.norm1, self.norm2 = nn.GroupNorm(8, channels_in, affine=False), nn.GroupNorm(8, channels, affine=False)
        self.modulation1, self.modulation2 = nn.Linear(embed, 2 * channels_in), nn.Linear(embed, 2 * channels)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.around: nn.Module = nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """(n, channels_in, h, w), (n, embed) -> (n, channels, 2h, 2w) or (n, channels, h, w)."""
        y = self.conv1(F.silu(_modulated(self.norm1(x), self.modulation1(code))))
        y = F.silu(_modulated(self.norm2(y), self.modulation2(code)))
        x = self.around(x)
        if self.grow:
            x, y = (F.interpolate(i, scale_factor=2, mode="nearest") for i in (x, y))
        out: Tensor = x + self.conv2(y)
        return out


class Discriminator(nn.Module):
    """D(x, y) = <v_y, phi(x)> + psi(phi(x)); phi sums the last grid of a residual network without norms."""

    def __init__(self, shape: tuple[int, int, int], n_classes: int, *, width: int, depth: int) -> None:
        super().__init__()
        widths = adversarial.widths(adversarial.sides(shape[1]), width)[::-1]
        self.stem = nn.Conv2d(shape[0], width, 3, padding=1)
        blocks = []
        for i, out in enumerate(widths):
            before = widths[max(0, i - 1)]
            blocks += [Down(before if j == 0 else out, out, shrink=i > 0 and j == 0) for j in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.psi = nn.Linear(widths[-1], 1)
        self.label = nn.Embedding(n_classes, widths[-1])
        self.apply(_start)
        nn.init.zeros_(self.label.weight)  # at first the label says nothing
        self.to(memory_format=torch.channels_last)

    def phi(self, images: Tensor, labels: Tensor) -> Tensor:
        """Features (n, d) of images (n, c, h, w); labels (n,) tell which of them are compared."""
        x = self.blocks(self.stem(images.contiguous(memory_format=torch.channels_last)))
        x = self.last(adversarial.class_deviation(F.leaky_relu(x, SLOPE), labels))
        return F.leaky_relu(x, SLOPE).float().sum((2, 3))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (n, c, h, w), labels (n,) -> float32 logits (n,), high for real."""
        features = self.phi(images, labels)
        logits: Tensor = self.psi(features).squeeze(1).float() + (self.label(labels) * features).sum(1)
        return logits


class Down(nn.Module):
    """Residual block that may halve the grid."""

    def __init__(self, channels_in: int, channels: int, *, shrink: bool) -> None:
        super().__init__()
        self.shrink = shrink
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.around: nn.Module = nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, h, w) -> (n, channels, h / 2, w / 2) or (n, channels, h, w)."""
        y = F.leaky_relu(self.conv1(F.leaky_relu(x, SLOPE)), SLOPE)
        if self.shrink:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        out: Tensor = self.around(x) + self.conv2(y)
        return out


def _start(module: nn.Module) -> None:
    """Initial weights that keep the scale of what passes through (He et al., 2015, eq. 10); without them z hardly shows."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _modulated(x: Tensor, scale_shift: Tensor) -> Tensor:
    """x (n, c, h, w) scaled and shifted by (n, 2c)."""
    scale, shift = scale_shift[:, :, None, None].chunk(2, 1)
    return torch.addcmul(shift, x, 1 + scale)
