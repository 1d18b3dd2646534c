"""A class-conditional generative adversarial network: a generator against a discriminator (Goodfellow et al., 2014).

    z ~ N(0, I),   G(z, y) makes an image,   D(x, y) tells real from made
    D(x, y) = <v_y, phi(x)> + psi(phi(x))                     (projection: Miyato & Koyama, 2018, eq. 4)
    min L_D + r1 / 2 R1,   min L_G                            (adversarial.py)

No density: samples alone, from the averaged weights of the generator (Yazici et al., 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Count, Section
from pipeline.core.seeds import noise, torch_stream
from pipeline.generators.shared import adversarial
from pipeline.generators.shared.adversarial import Adversarial
from pipeline.generators.shared.base import GenerativeModel, Stored, Traits, in_blocks, read_model, write_model
from pipeline.generators.shared.batches import Batch
from pipeline.runtime.training import Learner, autocast, device, threads

NAME = "gan"
SLOPE = (
    0.2  # of leaky units in the discriminator: R1 differentiates twice, and a piecewise linear unit has no second derivative
)
PENALISED = 4  # one in so many real images of a batch is used for R1


class Config(Adversarial):
    """The section `gan` of params.yaml."""

    width: Annotated[int, Field(ge=8, multiple_of=8)]
    depth: Count


class Model(GenerativeModel):
    """Projection GAN on pixels."""

    traits = Traits(density="implicit", likelihood="none")
    Config = Config

    def __init__(self, config: Section, *, shape: tuple[int, int, int], n_classes: int) -> None:
        """Raises ConfigError where the image size is no small grid doubled, or augmentation would leak."""
        assert isinstance(config, Config)
        adversarial.check(config, NAME, shape[1])
        self.config, self.shape, self.n_classes = config, shape, n_classes
        self.generator: nn.Module = nn.Identity()  # until fit or load

    def _generator(self) -> Generator:
        config = self.config
        return Generator(self.shape, self.n_classes, latent=config.latent, width=config.width, depth=config.depth)

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None) -> Self:
        config, where, n = self.config, device(), self.config.batch_images
        with torch_stream(seed, NAME, "weights"):
            self.generator = generator = self._generator().to(where)
            discriminator = Discriminator(self.shape, self.n_classes, width=config.width, depth=config.depth).to(where)

        def update(batch: Batch, making: Learner, telling: Learner) -> float:
            y, z = batch.labels, torch.randn(n, config.latent, generator=batch.rng).to(where)
            with autocast(config.precision, where):
                fake = generator(z, y)
                real, made = (adversarial.moved(x, config.augment, batch.rng) for x in (batch.images, fake.detach()))
                loss = adversarial.discriminator_loss(discriminator(real, y), discriminator(made, y))
                if config.r1 > 0:
                    some = real[: max(1, n // PENALISED)].requires_grad_()
                    penalty = adversarial.gradient_penalty(discriminator(some, y[: len(some)]), some)
                    loss = loss + 0.5 * config.r1 * penalty
            shown = telling.step(loss, batch.step)
            with autocast(config.precision, where), adversarial.frozen(discriminator):
                loss = adversarial.generator_loss(discriminator(adversarial.moved(fake, config.augment, batch.rng), y))
            making.step(loss, batch.step)
            return shown

        adversarial.fit(
            config, NAME, (generator, discriminator), (images, labels), update, draws=config.latent, clip=1.0, seed=seed,
            folder=folder,
        )  # fmt: skip
        generator.cpu()
        return self

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        config, where = self.config, device()
        generator = self.generator.to(where).eval()

        def make(y: Tensor, own: list[int]) -> Tensor:
            with autocast(config.precision, where):
                images: Tensor = generator(noise(own, (config.latent,)).to(where), y.to(where))
            return images

        with threads(config.threads):
            return in_blocks(make, labels, seeds, config.block_images, self.shape)

    def save(self, folder: Path) -> None:
        write_model(folder, NAME, Stored(self.generator.state_dict(), self.config, self.shape, self.n_classes))

    @classmethod
    def load(cls, folder: Path) -> Self:
        stored = read_model(folder, NAME, Config)
        model = cls(stored.config, shape=stored.shape, n_classes=stored.n_classes)
        model.generator = model._generator()
        model.generator.load_state_dict(stored.tensors)
        return model


class Generator(nn.Module):
    """G(z, y): a linear map of (z, y) to the smallest grid, residual blocks up to the full one; norms scaled by (z, y).

    The buffer `spread` holds share_y of adversarial.py, as measured last; the saved model carries it.
    """

    spread: Tensor

    def __init__(self, shape: tuple[int, int, int], n_classes: int, *, latent: int, width: int, depth: int) -> None:
        super().__init__()
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
        self.register_buffer("spread", torch.full((n_classes,), torch.nan))
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
