"""Flow matching: a velocity field that carries noise to images (Lipman et al., 2023; Liu et al., 2023).

    x_t = (1 - t) x_0 + t x_1,   x_0 ~ p(x | y),   x_1 ~ N(0, I)
    L   = E_{t, x_0, x_1} | v(x_t, t, y, a) - (x_1 - x_0) |^2,   logit(t) ~ N(0, 1)
    sampling: dx = v dt from t = 1 to 0 by Heun's rule
    guidance: v_w = v(no class) + w (v(y) - v(no class))   (Ho & Salimans, 2022, eq. 6, for velocities)

What makes one shared network learn a class of three images: all classes train it; classes are drawn in proportion to
n_c^(1 - class_power); labels are dropped per sample; geometric augmentation a is told to the network and set to none when
sampling, so that it cannot leak; dropout; averaged weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline import augmentation, noise, solvers
from pipeline.config import Count, Section, Share
from pipeline.errors import ConfigError
from pipeline.generators.base import GenerativeModel, Stored, Traits, read_model, write_model
from pipeline.seeds import noise as noise_of
from pipeline.seeds import rng, torch_stream
from pipeline.training import Learner, Optimisation, autocast, device, loop, threads

NAME = "flow_matching"


class Config(Section):
    """The section `flow_matching` of params.yaml."""

    network: Literal["unet", "diffusers"]
    width: Annotated[int, Field(ge=16, multiple_of=16)]
    depth: Count
    patch: Count
    dropout: Share
    steps: Count
    batch_images: Count
    lr: Annotated[float, Field(gt=0.0)]
    ema: Share
    class_power: Share
    label_dropout: Share
    augment: Share
    guidance_scale: Annotated[float, Field(ge=0.0)]
    solver_steps: Count
    block_images: Count
    precision: Literal["auto", "fp32", "bf16"]
    threads: Annotated[int, Field(ge=0)]


class Model(GenerativeModel):
    """Class-conditional flow matching on pixels."""

    traits = Traits(density="explicit", likelihood="none")
    Config = Config

    def __init__(self, config: Section, *, shape: tuple[int, int, int], n_classes: int) -> None:
        """Raises ConfigError where the image size does not suit the patch, or guidance has no unconditional model."""
        assert isinstance(config, Config)
        unit = 2 * config.patch
        if shape[1] % unit or shape[1] < 2 * unit:
            near = max(2 * unit, round(shape[1] / unit) * unit)
            raise ConfigError(
                f"data.image_size={shape[1]} with flow_matching.patch={config.patch}",
                expected=f"a multiple of {unit}, at least {2 * unit}",
                remedy=f"set data.image_size={near} or flow_matching.patch=1",
            )
        if config.guidance_scale != 1.0 and config.label_dropout == 0.0:
            raise ConfigError(
                f"flow_matching.guidance_scale={config.guidance_scale} with label_dropout=0",
                expected="a model that was trained without labels too",
                remedy="set flow_matching.label_dropout=0.1 or guidance_scale=1.0",
            )
        self.config, self.shape, self.n_classes = config, shape, n_classes
        self.network: nn.Module = nn.Identity()  # until fit or load

    def _build(self) -> nn.Module:
        kind: type[nn.Module]
        if self.config.network == "unet":
            from pipeline.networks.unet import UNet as kind
        else:
            from pipeline.networks.diffusers_unet import DiffusersUNet as kind
        config = self.config
        return kind(
            self.shape, self.n_classes, width=config.width, depth=config.depth, patch=config.patch, dropout=config.dropout,
            conditions=augmentation.CONDITIONS,
        )  # fmt: skip

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None) -> Self:
        config, where, path = self.config, device(), noise.Linear()
        with torch_stream(seed, NAME, "weights"):
            network = self._build().to(where)
        plan = Optimisation(steps=config.steps, lr=config.lr, weight_decay=0.01, ema=config.ema)
        learner = Learner(network, plan)
        images, labels = images.to(where), labels.to(where)
        counts = torch.bincount(labels.cpu(), minlength=self.n_classes).clamp(min=1)
        draw = counts.double()[labels.cpu()] ** -config.class_power

        def update(k: int) -> float:
            stream, n = rng(seed, NAME, k), config.batch_images
            rows = torch.multinomial(draw, n, replacement=True, generator=stream)
            maps, conditions = augmentation.random_maps(n, config.augment, stream)
            t = noise.logit_normal(n, stream).to(where)
            x1 = torch.randn(n, *self.shape, generator=stream).to(where)
            dropped = torch.rand(n, generator=stream) < config.label_dropout
            x0 = augmentation.apply(images[rows], maps.to(where))
            y = labels[rows].masked_fill(dropped.to(where), self.n_classes)
            with autocast(config.precision, where):
                v = network(path.mix(x0, x1, t), t, y, conditions.to(where))
            return learner.step((v - path.velocity(x0, x1)).square().mean(), k)

        network.train()
        with threads(config.threads):
            loop(
                {"network": learner}, update, steps=config.steps, seed=seed, name=NAME,
                images_per_step=config.batch_images, folder=folder,
            )  # fmt: skip
        self.network = learner.finish().cpu()
        return self

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Blocks of always as many rows, filled up at the end: matrix shapes, and so roundings, never vary with the batch."""
        config, where = self.config, device()
        network = self.network.to(where).eval()
        size, n = config.block_images, len(labels)
        none = torch.zeros(size, augmentation.CONDITIONS, device=where)
        absent = torch.full((size,), self.n_classes, device=where)
        done = []
        for start in range(0, n, size):
            rows = torch.arange(start, start + size).clamp(max=n - 1)
            y = labels[rows].to(where)

            def velocity(x: Tensor, t: float, y: Tensor = y) -> Tensor:
                at = torch.full((size,), t, device=where)
                with autocast(config.precision, where):
                    v: Tensor = network(x, at, y, none)
                    if config.guidance_scale != 1.0:
                        unconditional = network(x, at, absent, none)
                        v = torch.lerp(unconditional, v, config.guidance_scale)
                return v

            x1 = noise_of([seeds[int(i)] for i in rows], self.shape).to(where)
            with threads(config.threads):
                done.append(solvers.heun(velocity, x1, config.solver_steps).clamp(-1.0, 1.0).cpu())
        return torch.cat(done)[:n] if done else torch.empty(0, *self.shape)

    def save(self, folder: Path) -> None:
        write_model(folder, NAME, Stored(self.network.state_dict(), self.config, self.shape, self.n_classes))

    @classmethod
    def load(cls, folder: Path) -> Self:
        stored = read_model(folder, NAME, Config)
        model = cls(stored.config, shape=stored.shape, n_classes=stored.n_classes)
        model.network = model._build()
        model.network.load_state_dict(stored.tensors)
        return model
