"""One classifier from one plan: AdamW with cosine decay for a fixed number of steps, and the weights of the last one.

No epoch is chosen: validation rows never reach `fit`, so there is nothing to choose by. Step k of seed s draws rows by
stratified uniforms u_i = (pi(i) + U_i) / b through the inverse of the plan's cumulative draw probabilities. Each row is drawn
with its own probability, and a batch holds nearly its expected number of each class's rows, since rows stand class by class.
Seeds are paired: the initial weights, the uniforms and the transforms' draws of a step are functions of (seed, k) alone, the
same for every arm.

A plan with a deferred schedule follows it in the last of the same number of steps. Where the schedule trains the last layer
alone, that layer's fresh weights are a function of the seed too, and each phase has a learning rate of its own, warmed up and
falling to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.arms import DeferredSchedule, TrainingPlan
from pipeline.classifier import finetuned, mixing, networks, transforms
from pipeline.classifier.losses import adjusted_cross_entropy
from pipeline.config import ClassifierInMode
from pipeline.core import weights
from pipeline.core.images import to_float
from pipeline.core.seeds import derive, numpy_rng, rng, torch_stream
from pipeline.runtime import training


def initial(
    config: ClassifierInMode, shape: tuple[int, ...], n_classes: int, seed: int, cosine: float | None = None
) -> nn.Module:
    """The network whose weights the seed decides; `cosine` as in networks.build."""
    with torch_stream(seed, "weights"):
        return networks.build(config, shape, n_classes, cosine)


def draw(cumulative: Tensor, size: int, seed: int, k: int) -> Tensor:
    """Rows of step k, int64 (size,). cumulative: float64 (n,), the running sum of the draw probabilities."""
    stream = rng(seed, "batch", k)
    strata = torch.randperm(size, generator=stream)
    u = (strata + torch.rand(size, generator=stream, dtype=torch.float64)) / size
    return torch.searchsorted(cumulative, u * cumulative[-1], right=True).clamp_(max=len(cumulative) - 1)


@dataclass(frozen=True)
class _Phase:
    """What the steps of a phase draw from and minimise, on the device."""

    cumulative: Tensor  # float64 (n,), on the processor
    targets: Tensor  # float32 (n, k), times the weights
    offsets: Tensor  # float32 (n, k)
    scale: float  # mean weight of a drawn row

    @classmethod
    def of(cls, plan: TrainingPlan, part: TrainingPlan | DeferredSchedule, order: Tensor, where: torch.device) -> _Phase:
        offsets = plan.offsets(part)
        targets = (plan.soft_targets(offsets) * part.weights[:, None])[order].to(where)
        scale = float((part.draw * part.weights).sum())
        return cls(part.draw[order].cumsum(0), targets, offsets[order].to(where), scale)


def fit(
    plan: TrainingPlan,
    config: ClassifierInMode,
    seed: int,
    *,
    flips: str = "none",
    folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> nn.Module:
    """The trained network, in eval mode on its device. `progress` is told the images of each step.

    `folder` keeps checkpoints. Raises Diverged where the loss becomes non-finite.
    """
    where = training.device()
    n_classes = len(plan.offset)
    shape = tuple(plan.images.shape[1:])
    network = initial(config, shape, n_classes, seed, plan.cosine).to(where)
    deferred, switch = plan.deferred, plan.switch(config.steps)
    head_only = deferred is not None and deferred.head_only and switch < config.steps

    def learner(part: nn.Module, steps: int) -> training.Learner:
        plan = training.Optimisation(steps, config.lr, config.weight_decay)
        return training.Learner(part.train(), plan, finetuned.learning_rates(part, config.layer_decay))

    learners = {"classifier": learner(network, switch if head_only else config.steps)}
    if head_only:
        # A network of its own: in a checkpoint no tensor may stand twice.
        fresh = initial(config, shape, n_classes, derive(seed, "head"), plan.cosine).to(where).requires_grad_(False)
        networks.head(fresh).requires_grad_(True)
        learners["head"] = learner(fresh, config.steps - switch)
    # Rows class by class, so that stratified uniforms stratify the classes.
    order = torch.argsort(plan.targets, stable=True)
    images, margin = plan.images[order].to(where), plan.margin.to(where)
    low = None if plan.low is None else plan.low[order].to(where)
    early, last = (_Phase.of(plan, part, order, where) for part in (plan, deferred or plan))

    def update(k: int) -> float:
        phase = last if k >= switch else early
        name, since = ("head", switch) if head_only and k >= switch else ("classifier", 0)
        if name == "head" and k == switch:
            learners["head"].network.load_state_dict(networks.body_state(network), strict=False)
        rows = draw(phase.cumulative, config.batch_images, seed, k).to(where)
        drawn = images[rows]
        if low is not None:
            coin = (torch.rand(len(rows), generator=rng(seed, "resolution", k)) < 0.5).to(where)
            drawn = torch.where(coin.view(-1, *[1] * (drawn.ndim - 1)), low[rows], drawn)
        x, t = transforms.apply(plan.transform, drawn, flips, rng(seed, "transform", k)), phase.targets[rows]
        offsets, other = phase.offsets[rows], None
        if plan.mix != "none":
            mixed = mixing.MIXES[plan.mix](x, t, plan.mix_alpha, numpy_rng(seed, plan.mix, k))
            if plan.n_added:  # a pair may be of a real and an added row, whose labels have their own offsets
                t, other = t * (1 - mixed.share), t.flip(0) * mixed.share
            else:
                t = mixed.targets
            x = mixed.images
        with training.autocast("fp32" if where.type == "cpu" else "bf16", where):
            logits = learners[name].network(x)
        loss = adjusted_cross_entropy(logits, t, offsets, margin, phase.scale)
        if other is not None:
            loss = loss + adjusted_cross_entropy(logits, other, offsets.flip(0), margin, phase.scale)
        value = learners[name].step(loss, k - since)
        if progress:
            progress(len(x))
        return value

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        training.loop(
            learners, update, steps=config.steps, seed=seed, name="classifier",
            images_per_step=config.batch_images, folder=folder, quiet=progress is not None,
        )  # fmt: skip
    return finetuned.rounded(learners["head" if head_only else "classifier"].finish())


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, batch: int = 500) -> np.ndarray:
    """uint8 (n, c, h, w), or features (n, v, d) -> probabilities float64 (n, k), of features the mean over the views."""
    where = next(network.parameters()).device
    found = []
    for part in torch.split(images, batch):
        views = part.to(where).float().unbind(1) if part.ndim == 3 else [to_float(part.to(where))]
        found.append(torch.stack([network(x).double().softmax(1) for x in views]).mean(0).cpu())
    return torch.cat(found).numpy()


def save(network: nn.Module, path: Path, config: ClassifierInMode, shape: Sequence[int], n_classes: int, **notes: Any) -> None:
    """Write the weights, what rebuilds the network, and `notes` into one safetensors file."""
    cosine = networks.cosine_scale(network)
    card = {"classifier": config.model_dump(), "shape": list(shape), "n_classes": n_classes, "cosine": cosine, **notes}
    weights.save(path, finetuned.stored(network), card)


def load(path: Path) -> nn.Module:
    """The network that `save` wrote, in eval mode on the device. Raises DataError where the file is missing or torn."""
    tensors, card = weights.load(path)
    config = ClassifierInMode.model_validate(card["classifier"])
    network = networks.build(config, tuple(card["shape"]), card["n_classes"], card["cosine"])
    network.load_state_dict(tensors)
    return network.to(training.device()).eval()
