"""Heads: p(y | x) from the last features of an encoder, a linear layer and a softmax; and how what tells classes is fitted.

Classes are drawn evenly, so that p(y | x) carries no class prior. Labels are smoothed by SMOOTHING, which keeps what saw few
images from being sure of everything (Szegedy et al., 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import config
from pipeline.core import weights
from pipeline.core.seeds import rng
from pipeline.errors import DataError
from pipeline.runtime.training import Learner, Optimisation, autocast, device, loop

SMOOTHING = 0.1
BATCH = 512  # rows at a time


@dataclass(frozen=True)
class Head:
    """weight float32 (k, w) and bias (k,), applied to the last w of d features."""

    weight: Tensor
    bias: Tensor

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """p(y | x), float32 (n, k), of features (n, d)."""
        last = torch.from_numpy(np.ascontiguousarray(features[:, -self.weight.shape[1] :]))
        return np.asarray(torch.cat([F.linear(x, self.weight, self.bias).softmax(1) for x in torch.split(last, BATCH)]))

    @classmethod
    def of(cls, layer: nn.Linear) -> Head:
        """A copy of a layer's weights, on the processor."""
        return cls(layer.weight.detach().cpu().clone(), layer.bias.detach().cpu().clone())

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        targets: np.ndarray,
        n_classes: int,
        *,
        settings: config.Judges,
        seed: int,
        folder: Path,
        name: str,
    ) -> Head:
        """Fit on all d features (n, d), which no row of `targets` int64 (n,) has shaped; `folder` keeps checkpoints."""
        mean, scale = features.mean(0), features.std(0) + np.float32(1e-6)
        x, where = torch.from_numpy((features - mean) / scale), device()
        layer = nn.Linear(x.shape[1], n_classes).to(where)
        for start in (layer.weight, layer.bias):
            nn.init.zeros_(start)
        fit_evenly(
            layer, lambda rows, _: x[rows].to(where), torch.from_numpy(targets), n_classes,
            settings=settings, seed=seed, folder=folder, name=name,
        )  # fmt: skip
        found = cls.of(layer)
        weight = found.weight / torch.from_numpy(scale)
        return cls(weight, found.bias - weight @ torch.from_numpy(mean))

    def save(self, file: Path) -> None:
        """Write it to `file`."""
        weights.save(file, {"weight": self.weight, "bias": self.bias}, {"is": "head"})

    @classmethod
    def load(cls, file: Path) -> Head:
        """The head that `save` wrote. Raises DataError where the file is missing, torn or of something else."""
        tensors, card = weights.load(file)
        if card.get("is") != "head":
            raise DataError(f"{file} has no head of a judge", remedy="run the stage judges")
        return cls(tensors["weight"], tensors["bias"])


def fit_evenly(
    network: nn.Module,
    batch: Callable[[Tensor, torch.Generator], Tensor],
    targets: Tensor,
    n_classes: int,
    *,
    settings: config.Judges,
    seed: int,
    folder: Path,
    name: str,
) -> None:
    """Fit `network`, which gives logits (b, k), to `targets` int64 (n,); each class is drawn as often as another.

    `batch` makes what the network is handed from row numbers (b,) and a source of chance, on the network's device.
    """
    where = device()
    plan = Optimisation(settings.steps, settings.lr, weight_decay=settings.weight_decay, ema=settings.ema)
    learner = Learner(network, plan)
    evenly = 1.0 / torch.bincount(targets, minlength=n_classes).clamp_min(1)[targets].double()

    def update(step: int) -> float:
        draw = rng(seed, "batch", step)
        chosen = torch.multinomial(evenly, settings.batch_images, replacement=True, generator=draw)
        x = batch(chosen, draw)
        with autocast("auto", where):
            logits = network(x)
        loss = F.cross_entropy(logits.float(), targets[chosen].to(where), label_smoothing=SMOOTHING)
        return learner.step(loss, step)

    loop(
        {"judge": learner}, update, steps=settings.steps, seed=seed, name=name, images_per_step=settings.batch_images,
        folder=folder,
    )  # fmt: skip
    learner.finish()
