"""What families that denoise share: their settings, their networks, one training step, guidance.

A network F(x_t, t, y, a) sees a noisy image, the place t of its noise level (0 data, 1 noise), a class y or `no class`, and the
map a of its augmentation. A family says what it is trained on (Example) and what its prediction means. The loss is

    L    = | F(x_t, t, y, a) - target |^2 + L_r
    L_r  = balance t (| F(y) - sg F(y') |^2 + | sg F(y) - F(y') |^2 / 4),   y' drawn evenly from all classes

L_r draws the rare classes' predictions towards the others' (CBDM, Qin et al., 2023, L_r with gamma = 1/4; sg stops gradients;
balance 1 is their tau = 0.001 for times up to 1000). Guidance moves a prediction away from a worse one:

    F_w = G + w (F - G),   G = F(no class)  (classifier-free: Ho & Salimans, 2022, eq. 6)
                           G = a narrower network trained for fewer steps  (autoguidance: Karras et al., 2024)

for t between guidance_from and guidance_to alone (Kynkaanniemi et al., 2024). It is linear, and so the same for every kind of
prediction of the same path.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, final

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Count, Share
from pipeline.core.seeds import torch_stream
from pipeline.errors import ConfigError
from pipeline.generators.shared import augmentation
from pipeline.generators.shared.base import GenerativeModel
from pipeline.generators.shared.batches import Batch, Batches, Trained, blockwise
from pipeline.runtime.parallel import share
from pipeline.runtime.training import Learner, Optimisation, autocast, device, loop, threads

Width = Annotated[int, Field(ge=16, multiple_of=16)]


class Denoising(Trained):
    """Settings of the families that denoise."""

    network: Literal["unet", "diffusers"] = "unet"
    """unet | diffusers: ours, or that library's"""
    width: Width = 32
    """channels at full resolution, a multiple of 16"""
    depth: Count = 1
    """residual blocks a resolution"""
    patch: Count = 1
    """space-to-depth factor at the input"""
    dropout: Share = 0.1
    """share of channels dropped inside the blocks"""
    label_dropout: Share = 0.1
    """share of labels hidden; 0 leaves no unconditional model and so no classifier-free guidance"""
    balance: Annotated[float, Field(ge=0.0)] = 0.0
    """weight of the pull of rare classes towards the others (1 as published); 0 costs nothing"""
    guidance: Literal["none", "classifier_free", "autoguidance"] = "none"
    """none | classifier_free | autoguidance (trains a second, poorer network)"""
    guidance_scale: Annotated[float, Field(ge=0.0)] = 1.0
    """1 is none, above 1 purer and poorer in variety"""
    guidance_from: Share = 0.0
    """noise level t (0 data, 1 noise) from which predictions are guided"""
    guidance_to: Share = 1.0
    """noise level t up to which predictions are guided"""
    guide_steps: Count = 300
    """autoguidance: optimiser steps of the second network"""
    guide_width: Width = 16
    """autoguidance: channels of the second network, a multiple of 16"""
    solver_steps: Count = 12
    """Heun's steps: 2 evaluations each, the last has 1"""


def check(config: Denoising, family: str, shape: tuple[int, int, int]) -> None:
    """Raises ConfigError where the image size does not suit the patch, or guidance lacks what it is guided by."""
    unit = 2 * config.patch
    if shape[1] % unit or shape[1] < 2 * unit:
        near = max(2 * unit, round(shape[1] / unit) * unit)
        raise ConfigError(
            f"data.image_size={shape[1]} with {family}.patch={config.patch}",
            expected=f"a multiple of {unit}, at least {2 * unit}",
            remedy=f"set data.image_size={near} or {family}.patch=1",
        )
    if config.guidance == "classifier_free" and config.label_dropout == 0.0:
        raise ConfigError(
            f"{family}.guidance=classifier_free with label_dropout=0",
            expected="a model that was trained without labels too",
            remedy=f"set {family}.label_dropout=0.1 or guidance=none",
        )
    if config.guidance == "autoguidance" and config.guide_steps > config.steps:
        raise ConfigError(
            f"{family}.guide_steps={config.guide_steps}",
            expected=f"at most steps={config.steps}",
            remedy=f"set {family}.guide_steps={max(1, config.steps // 4)}",
        )
    if config.guidance_from > config.guidance_to:
        raise ConfigError(
            f"{family}.guidance_from={config.guidance_from} above guidance_to={config.guidance_to}",
            expected="an interval of noise levels within 0 (data) and 1 (noise)",
            remedy=f"set {family}.guidance_from=0.0 and guidance_to=1.0",
        )


def build(config: Denoising, shape: tuple[int, int, int], n_classes: int) -> nn.ModuleDict:
    """`network`, and `guide` where guidance is autoguidance."""
    kind: type[nn.Module]
    if config.network == "unet":
        from pipeline.generators.shared.networks.unet import UNet as kind
    else:
        from pipeline.generators.shared.networks.diffusers_unet import DiffusersUNet as kind
    widths = {"network": config.width} | ({"guide": config.guide_width} if config.guidance == "autoguidance" else {})
    return nn.ModuleDict(
        {
            name: kind(
                shape, n_classes, width=width, depth=config.depth, patch=config.patch, dropout=config.dropout,
                conditions=augmentation.CONDITIONS,
            )
            for name, width in widths.items()
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Example:
    """Noisy images x (n, c, h, w), the place of their noise levels t (n,) in [0, 1], and what the network is to predict."""

    x: Tensor
    t: Tensor
    target: Tensor


def loss(network: nn.Module, example: Example, labels: Tensor, others: Tensor, conditions: Tensor, balance: float) -> Tensor:
    """The mean of L over the batch; `others` (n,) are the classes y' of L_r, which costs nothing where balance is 0."""
    out = network(example.x, example.t, labels, conditions)
    total: Tensor = (out - example.target).square().mean()
    if balance > 0:
        other = network(example.x, example.t, others, conditions)
        gaps = (out - other.detach()).square() + (out.detach() - other).square() / 4
        total = total + balance * (example.t * gaps.flatten(1).mean(1)).mean()
    return total


Predict = Callable[[Tensor, float], Tensor]


def guided(networks: nn.ModuleDict, config: Denoising, n_classes: int, labels: Tensor) -> Predict:
    """(x_t, t) -> F_w for the labels (n,) of the rows of x_t, without augmentation."""
    network, w = networks["network"], config.guidance_scale
    other = networks["guide"] if config.guidance == "autoguidance" else network
    others = labels if config.guidance == "autoguidance" else torch.full_like(labels, n_classes)
    none = augmentation.unmoved(labels)

    def predict(x: Tensor, t: float) -> Tensor:
        at = torch.full((len(x),), t, device=x.device)
        with autocast(config.precision, x.device):
            out: Tensor = network(x, at, labels, none)
            if config.guidance != "none" and w != 1.0 and config.guidance_from <= t <= config.guidance_to:
                out = torch.lerp(other(x, at, others, none), out, w)
        return out

    return predict


class DenoisingModel(GenerativeModel):
    """A family that denoises says what a step is trained on and how noise becomes images; the rest is here."""

    config: Denoising

    @abstractmethod
    def example(self, batch: Batch) -> Example:
        """What one step is trained on; draws from the batch's own stream."""

    @abstractmethod
    def generate(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """Images float32 (n, c, h, w) in [-1, 1]; labels (n,) are on the device, where the networks are."""

    @final
    def build(self) -> None:
        """Raises ConfigError where the image size does not suit the patch, or guidance lacks what it is guided by."""
        check(self.config, self.name, self.shape)
        self.networks = nn.ModuleDict()  # until fit or restore

    @final
    def train(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None) -> Self:
        """Fit the networks, by `example`."""
        config, where, n_classes = self.config, device(), self.n_classes
        with torch_stream(seed, self.name, "weights"):
            self.networks = build(config, self.shape, n_classes).to(where)
        lengths = {"network": config.steps, "guide": config.guide_steps}
        learners = {
            name: Learner(network, Optimisation(steps=lengths[name], lr=config.lr, weight_decay=0.01, ema=config.ema))
            for name, network in self.networks.items()
        }
        batches = Batches((images, labels), config, seed=seed, name=self.name)

        def update(k: int) -> float:
            batch = batches(k)
            example = self.example(batch)
            dropped = torch.rand(len(batch.labels), generator=batch.rng) < config.label_dropout
            others = torch.randint(n_classes, (len(batch.labels),), generator=batch.rng).to(where)
            told, shown = batch.labels.masked_fill(dropped.to(where), n_classes), 0.0
            x, t, target = share(example.x, example.t, example.target)
            example = Example(x, t, target)
            told, others, conditions = share(told, others, batch.conditions)
            for name, learner in reversed(learners.items()):  # the network last: its loss is the one shown
                if k < lengths[name]:
                    with autocast(config.precision, where):
                        value = loss(self.networks[name], example, told, others, conditions, config.balance)
                    shown = learner.step(value, k)
            return shown

        self.networks.train()
        with threads(config.threads):
            loop(
                learners, update, steps=config.steps, seed=seed, name=self.name, images_per_step=config.batch_images,
                folder=folder,
            )  # fmt: skip
        for learner in learners.values():
            learner.finish()
        self.networks.cpu()
        return self

    @final
    def take(self, tensors: dict[str, Tensor]) -> None:
        """Build the networks with these weights."""
        self.networks = build(self.config, self.shape, self.n_classes)
        self.networks.load_state_dict(tensors)

    @final
    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images float32 (n, c, h, w) in [-1, 1]."""
        return blockwise(self.networks, self.config, self.generate, labels, seeds, self.shape)

    @final
    def each(self, ask: Callable[[Tensor, list[int]], Tensor], labels: Tensor) -> Tensor:
        """A number float64 (n,) for each row of labels (n,): ask(labels, rows) answers for some of them, at most n."""
        size = max(1, min(self.config.block_images, len(labels)))
        return blockwise(self.networks, self.config, ask, labels, range(len(labels)), (), size=size).double()
