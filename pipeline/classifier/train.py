"""One classifier from one plan: AdamW with cosine decay for a fixed number of steps, and the weights of the last one.

No epoch is chosen: validation rows never reach `fit`, so there is nothing to choose by. Step k of seed s draws rows by
stratified uniforms u_i = (pi(i) + U_i) / b through the inverse of the plan's cumulative draw probabilities: each row is drawn
with its own probability, and a batch holds nearly its expected number of each class's rows when rows stand class by class.
Seeds are paired: the initial weights, the uniforms and the transforms' draws of a step are functions of (seed, k) alone, the
same for every arm.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import training, weights
from pipeline.arms import TrainingPlan
from pipeline.classifier import networks, transforms
from pipeline.classifier.losses import adjusted_cross_entropy
from pipeline.config import Classifier
from pipeline.images import to_float
from pipeline.seeds import numpy_rng, rng, torch_stream


def initial(config: Classifier, shape: tuple[int, int, int], n_classes: int, seed: int) -> nn.Module:
    """The network whose weights the seed decides."""
    with torch_stream(seed, "weights"):
        return networks.build(config, shape, n_classes)


def draw(cumulative: Tensor, size: int, seed: int, k: int) -> Tensor:
    """Rows of step k, int64 (size,). cumulative: float64 (n,), the running sum of the draw probabilities."""
    stream = rng(seed, "batch", k)
    strata = torch.randperm(size, generator=stream)
    u = (strata + torch.rand(size, generator=stream, dtype=torch.float64)) / size
    return torch.searchsorted(cumulative, u * cumulative[-1], right=True).clamp_(max=len(cumulative) - 1)


def fit(
    plan: TrainingPlan,
    config: Classifier,
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
    c, h, w = plan.images.shape[1:]
    network = initial(config, (c, h, w), n_classes, seed).to(where)
    optimisation = training.Optimisation(config.steps, config.lr, config.weight_decay)
    learner = training.Learner(network.train(), optimisation)
    # Rows class by class, so that stratified uniforms stratify the classes.
    order = torch.argsort(plan.soft_targets.argmax(1), stable=True)
    images, cumulative = plan.images[order].to(where), plan.draw[order].cumsum(0)
    targets = (plan.soft_targets * plan.weights[:, None])[order].to(where)
    offset, scale = plan.offset.to(where), float((plan.draw * plan.weights).sum())

    def update(k: int) -> float:
        rows = draw(cumulative, config.batch_images, seed, k).to(where)
        x, t = transforms.apply(plan.transform, images[rows], flips, rng(seed, "transform", k)), targets[rows]
        if plan.mixup_alpha is not None:
            share = numpy_rng(seed, "mixup", k).beta(plan.mixup_alpha, plan.mixup_alpha, len(x)).astype(np.float32)
            lam = torch.from_numpy(share).to(where)
            x = x.lerp(x.flip(0), 1 - lam[:, None, None, None])
            t = t.lerp(t.flip(0), 1 - lam[:, None])
        with training.autocast("fp32" if where.type == "cpu" else "bf16", where):
            logits = network(x)
        loss = learner.step(adjusted_cross_entropy(logits, t, offset, scale), k)
        if progress:
            progress(len(x))
        return loss

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        training.loop(
            {"classifier": learner}, update, steps=config.steps, seed=seed, name="classifier",
            images_per_step=config.batch_images, folder=folder, quiet=progress is not None,
        )  # fmt: skip
    return learner.finish()


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, batch: int = 500) -> np.ndarray:
    """uint8 (n, c, h, w) -> probabilities float64 (n, k)."""
    where = next(network.parameters()).device
    logits = [network(to_float(part.to(where))).double().cpu() for part in torch.split(images, batch)]
    return torch.cat(logits).softmax(1).numpy()


def balanced_accuracy(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean recall over the classes that `targets` (n,) holds; probabilities (n, k)."""
    right = probabilities.argmax(1) == targets
    return float(np.mean([right[targets == c].mean() for c in np.unique(targets)]))


def save(network: nn.Module, path: Path, config: Classifier, shape: tuple[int, int, int], n_classes: int, **notes: Any) -> None:
    """Write the weights, what rebuilds the network, and `notes` into one safetensors file."""
    card = {"classifier": config.model_dump(), "shape": list(shape), "n_classes": n_classes, **notes}
    weights.save(path, network.state_dict(), card)


def load(path: Path) -> nn.Module:
    """The network that `save` wrote, in eval mode on the device. Raises DataError where the file is missing or torn."""
    tensors, card = weights.load(path)
    network = networks.build(Classifier.model_validate(card["classifier"]), tuple(card["shape"]), card["n_classes"])
    network.load_state_dict(tensors)
    return network.to(training.device()).eval()
