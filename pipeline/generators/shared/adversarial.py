"""What adversarial families share: settings, losses, the gradient penalty, the fit and its watch for mode collapse.

    L_D = E softplus(-D(x, y)) + E softplus(D(G(z, y), y))
    L_G = E softplus(-D(G(z, y), y))                          (non-saturating: Goodfellow et al., 2014, section 3)
    R1  = E | grad_x D(x, y) |^2 over real x                  (Mescheder et al., 2018, eq. 9)

A generator has collapsed in a class where its images are alike. The measure is a share, about 1 where all is well:

    share_y = mean distance between generated images of y / mean distance between real images of y

What keeps a discriminator from learning few images by heart: it sees real and generated images nudged alike (`moved`), R1
flattens it around real images, and it compares the images of a class (`class_deviation`).
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.config import Count, Share
from pipeline.core.seeds import noise, rng, torch_stream
from pipeline.errors import ConfigError
from pipeline.generators.shared import augmentation
from pipeline.generators.shared.base import GenerativeModel
from pipeline.generators.shared.batches import Batch, Batches, Decay, Rate, Trained, blockwise
from pipeline.runtime.training import Learner, Optimisation, autocast, device, loop, threads

HASTE = 3.0  # times lr, the discriminator's rate: outrun by the generator, it lets classes collapse (Heusel et al., 2017)
WIDEST = 4  # channels double with every halving of the grid, up to so many times `width`
LARGEST = 256  # pixels
LEAKS = 0.8  # above this probability of each move, moved images show in the samples (Karras et al., 2020, ADA)
MEASURED = 4  # times in a fit that the spread is measured
WATCHED = 16  # generated images a class
MOST = 256  # real images a class


class Adversarial(Trained):
    """Settings of the adversarial families."""

    latent: Count = 32
    """numbers in z"""
    r1: Annotated[float, Field(ge=0.0)] = 0.03
    """weight of the gradient penalty on real images"""
    collapse_share: Share = 0.4
    """warn where a class's images spread less than this share of the real ones' spread"""
    steps: Count = 1200
    """optimiser steps of both networks"""
    batch_images: Count = 64
    """real images an optimiser step, and as many generated ones"""
    lr: Rate = 0.001
    """learning rate of the generator, warmed up, then cosine to 0; the discriminator's is three times as much"""
    ema: Decay = 0.995
    """decay of the moving average of the generator's weights, per step"""


def check(config: Adversarial, name: str, size: int) -> None:
    """Raises ConfigError where images of `size` pixels are no small grid doubled, or augmentation would leak."""
    fits = [side << i for side in (4, 5, 6, 7) for i in range(1, 7) if side << i <= LARGEST]
    if size not in fits:
        raise ConfigError(
            f"data.image_size={size} with {name}",
            expected=f"4, 5, 6 or 7 doubled at least once, at most {LARGEST}",
            remedy=f"set data.image_size={min(fits, key=lambda fit: abs(fit - size))}",
        )
    if config.augment > LEAKS:
        raise ConfigError(
            f"{name}.augment={config.augment}",
            expected=f"at most {LEAKS}, above which moved images leak into the samples",
            remedy=f"set {name}.augment=0.4",
        )


def sides(size: int) -> list[int]:
    """The sides of the grids from 4, 5, 6 or 7 pixels, each the double of the one before, to `size`."""
    out = [size]
    while out[0] > 7:
        out.insert(0, out[0] // 2)
    return out


def widths(sides: list[int], width: int) -> list[int]:
    """Channels at each grid: `width` at the last."""
    return [width * min(WIDEST, 2**i) for i in reversed(range(len(sides)))]


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """L_D of logits (n,) of real and of generated images."""
    loss: Tensor = F.softplus(-real).mean() + F.softplus(fake).mean()
    return loss


def generator_loss(fake: Tensor) -> Tensor:
    """L_G of logits (n,) of generated images."""
    loss: Tensor = F.softplus(-fake).mean()
    return loss


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """R1, of logits (n,) that were computed from images (n, c, h, w) which require gradients; itself differentiable."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.flatten(1).square().sum(1).mean()


def moved(images: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Images (n, c, h, w), each nudged by its own random map; gradients pass through.

    Where the discriminator sees real and generated images under maps of one distribution that leaves some untouched, the
    images themselves must agree, not only the moved ones (Karras et al., 2020, ADA, section 2.2; Zhao et al., 2020).
    """
    return augmentation.apply(images, augmentation.nudges(len(images), probability, rng).to(images.device))


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """Inside, the weights of `network` gather no gradients; those of its input pass through."""
    network.requires_grad_(False)
    try:
        yield network
    finally:
        network.requires_grad_(True)


def class_deviation(x: Tensor, labels: Tensor) -> Tensor:
    """x (n, c, h, w) with a channel more: the standard deviation within the batch's images of the same label, averaged.

    By it a discriminator sees that the generated images of a class are alike, which no single image shows (Karras et al.,
    2018, section 3: minibatch standard deviation; here within classes, since classes differ anyway).
    """
    same = (labels[:, None] == labels).float()
    share = same / same.sum(1, keepdim=True)
    flat = x.flatten(1).float()
    with torch.autocast(x.device.type, enabled=False):  # rounded to bf16, equal images would seem to differ
        variance = share @ (flat - share @ flat).square()
    deviation = (variance + 1e-8).sqrt().mean(1).to(x.dtype)
    return torch.cat([x, deviation.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], 1)


def distance(images: Tensor) -> Tensor:
    """The mean distance between two of the images (n, c, h, w); nan where n < 2."""
    return torch.pdist(images.flatten(1).float()).mean()


class Watch:
    """Compares the spread of generated images with that of real images (n, c, h, w) of labels (n,), class by class."""

    def __init__(self, images: Tensor, labels: Tensor, n_classes: int) -> None:
        real = torch.stack([distance(images[labels == c][:MOST]) for c in range(n_classes)])
        self.real = torch.where(real > 0, real, real[real > 0].mean())  # a class of one image: the mean of the others

    @torch.no_grad()
    def shares(self, make: Callable[[Tensor], Tensor]) -> Tensor:
        """share_y (n_classes,); `make` gives WATCHED images for so many equal labels."""
        labels = torch.arange(len(self.real), device=self.real.device)
        made = torch.stack([distance(make(label.expand(WATCHED))) for label in labels])
        return made / self.real


def warn(shares: Tensor, least: float, name: str, when: str) -> None:
    """A line on stderr that names the classes whose share is below `least`."""
    low = (shares < least).nonzero().flatten().tolist()
    if low:
        classes = ", ".join(f"{c} ({float(shares[c]):.2f})" for c in low)
        tqdm.write(
            f"{name}: warning: mode collapse {when}: images of class {classes} are more alike than {least} of the real ones' "
            f"spread; raise {name}.r1 or {name}.augment, or lower {name}.lr",
            file=sys.stderr,
        )


class Maker(nn.Module):
    """A generator: noise (n, draws) and labels (n,) -> float32 images (n, c, h, w) in [-1, 1].

    The buffer `spread` (n_classes,) holds share_y as measured last; the saved model carries it.
    """

    spread: Tensor

    def __init__(self, draws: int, n_classes: int) -> None:
        super().__init__()
        self.draws = draws
        self.register_buffer("spread", torch.full((n_classes,), torch.nan))


Update = Callable[[Batch, Learner, Learner], float]


def fit(
    config: Adversarial,
    name: str,
    networks: tuple[Maker, nn.Module],
    data: tuple[Tensor, Tensor],
    update: Update,
    *,
    clip: float,
    seed: int,
    folder: Path | None,
) -> None:
    """Train generator and discriminator on `data`, images and labels; the generator ends with its averaged weights.

    update(batch, making, telling) does one step of both and returns the loss that is shown. The generator makes images
    (n, c, h, w) from its noise and labels (n,); its buffer `spread` takes share_y.
    """
    (generator, discriminator), where = networks, device()
    spread = generator.spread
    making = Learner(generator, Optimisation(steps=config.steps, lr=config.lr, ema=config.ema, betas=(0.0, 0.99), clip=clip))
    telling = Learner(discriminator, replace(making.plan, ema=None, lr=HASTE * config.lr))
    # As they are: a step nudges real and generated images alike.
    batches = Batches(data, config.model_copy(update={"augment": 0.0}), seed=seed, name=name)
    watch = Watch(batches.images, batches.labels, len(spread))
    watched = torch.randn(WATCHED, generator.draws, generator=rng(seed, name, "watch")).to(where)

    def measure(when: str) -> None:
        spread.copy_(watch.shares(lambda y: generator(watched, y)))
        warn(spread, config.collapse_share, name, when)

    def step(k: int) -> float:
        shown = update(batches(k), making, telling)
        if (k + 1) % max(1, config.steps // MEASURED) == 0:
            measure(f"at step {k + 1}")
        return shown

    with threads(config.threads):
        loop(
            {"generator": making, "discriminator": telling}, step, steps=config.steps, seed=seed, name=name,
            images_per_step=config.batch_images, folder=folder,
        )  # fmt: skip
        making.finish()
        measure("of the averaged weights")


class AdversarialModel(GenerativeModel):
    """An adversarial family says what its two networks are, what the one makes and what the other learns; the rest is here."""

    config: Adversarial
    clip: ClassVar[float]  # of the gradient's norm, in both networks
    generator: Maker
    discriminator: nn.Module  # while a fit lasts

    @abstractmethod
    def players(self) -> tuple[Maker, nn.Module]:
        """Generator and discriminator, with weights of torch's own stream."""

    @abstractmethod
    def fake(self, batch: Batch) -> Tensor:
        """Images of the batch's labels, made with draws from its stream."""

    @abstractmethod
    def strength(self) -> float:
        """The probability of each nudge that the discriminator sees images under."""

    @abstractmethod
    def lesson(self, real: Tensor, made: Tensor, batch: Batch) -> Tensor:
        """The discriminator's loss for real and generated images of the batch's labels, nudged alike."""

    @abstractmethod
    def draw(self, drawn: Tensor, labels: Tensor) -> Tensor:
        """Samples (n, c, h, w) from noise (n, draws) and labels (n,)."""

    @final
    def build(self) -> None:
        """Raises ConfigError where the image size is no small grid doubled, or augmentation would leak."""
        check(self.config, self.name, self.shape[1])
        with torch_stream(0, self.name, "weights"):
            self.generator, _ = self.players()

    @final
    def train(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None) -> None:
        """Fit both networks; the generator stays on the device."""
        where = device()
        with torch_stream(seed, self.name, "weights"):
            generator, discriminator = self.players()
        self.generator, self.discriminator = generator.to(where), discriminator.to(where)

        def update(batch: Batch, making: Learner, telling: Learner) -> float:
            y, precision, p = batch.labels, self.config.precision, self.strength()
            with autocast(precision, where):
                fake = self.fake(batch)
                real, made = (moved(x, p, batch.rng) for x in (batch.images, fake.detach()))
                loss = self.lesson(real, made, batch)
            shown = telling.step(loss, batch.step)
            with autocast(precision, where), frozen(self.discriminator):
                loss = generator_loss(self.discriminator(moved(fake, p, batch.rng), y))
            making.step(loss, batch.step)
            return shown

        networks, data = (self.generator, self.discriminator), (images, labels)
        fit(self.config, self.name, networks, data, update, clip=self.clip, seed=seed, folder=folder)
        del self.discriminator

    @final
    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images float32 (n, c, h, w) in [-1, 1]."""

        def make(y: Tensor, own: list[int]) -> Tensor:
            with autocast(self.config.precision, y.device):
                return self.draw(noise(own, (self.generator.draws,)).to(y.device), y)

        return blockwise(self.generator, self.config, make, labels, seeds, self.shape)

    @final
    def tensors(self) -> dict[str, Tensor]:
        return self.generator.state_dict()

    @final
    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.generator.load_state_dict(tensors)
