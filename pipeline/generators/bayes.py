"""p(y | x) from a generative model p(x | y), by Bayes' rule with even priors.

    p(y | x) = p(x | y) / sum_y' p(x | y')

With a bound in the place of log p(x | y) the rule takes the bound's slack for equal in all classes (Li et al., 2023, eq. 5, for
diffusion). A joint energy, p(x, y) = exp(-E(x, y)) / Z, gives softmax(-E(x, .)), in which Z cancels (Grathwohl et al., 2020,
eq. 4).

On few images a generative classifier errs less than a discriminative one of the same form (Ng & Jordan, 2001); with many more
it errs more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.core.images import resized, to_float
from pipeline.core.seeds import rng
from pipeline.generators.shared import density
from pipeline.generators.shared.base import GenerativeModel, HasEnergy, HasLogProb

BATCH = 64  # images asked at once, so that progress is seen


def has_posterior(model: GenerativeModel) -> bool:
    """Whether the model has a likelihood, a bound of it or a joint energy."""
    return isinstance(model, HasEnergy) or (isinstance(model, HasLogProb) and model.traits.likelihood != "none")


def log_likelihoods(model: GenerativeModel, images: Tensor, n_classes: int, *, seed: int) -> Tensor:
    """log p(x | y), or -E(x, y), of uint8 images (n, c, h, w) under every class, float64 (n, k).

    Images are brought to the model's size, and dequantised at one place in the cells, which `seed` decides, so that none
    depends on its neighbours. Shows progress.
    """
    images = resized(images, model.shape[1])
    place = torch.rand(images.shape[1:], generator=rng(seed, "dequantise"))
    x = density.within(to_float(images), place)
    columns = [torch.full((BATCH,), c) for c in range(n_classes)]
    bar = tqdm(
        total=len(x) * n_classes, desc="p(x | y)", unit=" images", dynamic_ncols=True, disable=len(x) <= BATCH,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,
    )  # fmt: skip
    parts = [torch.empty(0, n_classes, dtype=torch.float64)]
    with bar:
        for part in torch.split(x, BATCH):
            scores = []
            for column in columns:
                y = column[: len(part)]
                scores.append(model.log_prob(part, y) if isinstance(model, HasLogProb) else -_energy(model, part, y))
                bar.update(len(part))
            parts.append(torch.stack(scores, 1).double().cpu())
    return torch.cat(parts)


def posterior(model: GenerativeModel, images: Tensor, n_classes: int, *, seed: int) -> Tensor:
    """p(y | x) of uint8 images (n, c, h, w), float64 (n, k)."""
    return log_likelihoods(model, images, n_classes, seed=seed).softmax(1)


def classifier(model: GenerativeModel, n_classes: int, seed: int) -> Callable[[Tensor], np.ndarray] | None:
    """`posterior` of this model as a function of uint8 images, float64 (n, k); None where the family has none."""
    if not has_posterior(model):
        return None
    return lambda images: posterior(model, images, n_classes, seed=seed).numpy()


def _energy(model: GenerativeModel, images: Tensor, labels: Tensor) -> Tensor:
    if not isinstance(model, HasEnergy):
        raise TypeError(f"{type(model).__module__} has neither log_prob nor energy")
    return model.energy(images, labels)
