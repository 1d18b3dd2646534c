"""What a teacher gives its students: soft labels, and augmented train images with soft labels.

A teacher is all runs of one recipe, and its soft labels are the mean of their p(y | x) (Hinton et al., 2015). The augmented
images are made once, `distillation_images` of each class, transformed and mixed as the teacher's recipe does it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from pipeline.arms import Recipe
from pipeline.classifier import mixing, train, transforms
from pipeline.classifier.packed import Campaign, Run
from pipeline.core.images import to_uint8
from pipeline.core.seeds import derive, numpy_rng, rng
from pipeline.runtime import training

AUGMENTED_AT_ONCE = 10_000  # images


class Augmented(NamedTuple):
    """Train images, augmented and mixed."""

    images: np.ndarray  # uint8 (d, c, h, w), or float16 (d, 1, dimension) of features
    targets: np.ndarray  # int64 (d,)


def taught(shared: Campaign, teacher: Sequence[Run]) -> Campaign:
    """`shared` with augmented train images, and the teacher's soft labels of them and of the pool.

    Where the pool's resolution is lower, there are the same at that resolution too.
    """
    data, recipe = shared.data, teacher[0].arm.recipe
    made = augmented(shared, recipe)
    data = replace(
        data,
        pool_soft_labels=soft_labels(teacher, data.pool_images) if len(data.pool_images) else None,
        augmented_images=made.images,
        augmented_targets=made.targets,
        augmented_soft_labels=soft_labels(teacher, made.images),
    )
    if data.low_images is not None:
        low = augmented(replace(shared, data=replace(data, images=data.low_images)), recipe).images
        data = replace(data, low_augmented_images=low, low_augmented_soft_labels=soft_labels(teacher, low))
    return replace(shared, data=data)


def soft_labels(teacher: Sequence[Run], images: np.ndarray) -> np.ndarray:
    """p(y | x) float64 (n, k) of images as they are: the mean over finished runs. Of features the first view counts."""
    images = images[:, :1] if images.ndim == 3 else images
    networks = [train.load(run.file) for run in teacher]
    with training.threads(1):  # the same bits for any number of cores
        return np.asarray(np.mean([train.predict(network, torch.from_numpy(images)) for network in networks], 0))


def augmented(shared: Campaign, recipe: Recipe) -> Augmented:
    """Equally many train images of each class, transformed and mixed as `recipe` says."""
    # A stream's name decides results, and so it stays when words change.
    data, n, seed = shared.data, shared.config.distillation_images, derive(shared.seed, "moved")
    own = [np.flatnonzero(data.targets == c) for c in np.unique(data.targets)]
    rows = np.concatenate([np.resize(numpy_rng(seed, "rows", i).permutation(o), n) for i, o in enumerate(own)])
    # Mixing pairs rows from both ends, and these stand class by class.
    shuffled = numpy_rng(seed, "pairs").permutation(len(rows))
    features = data.images.ndim == 3
    out = np.empty((len(rows), *((1, data.images.shape[2]) if features else data.images.shape[1:])), data.images.dtype)
    for k, part in enumerate(np.array_split(shuffled, math.ceil(len(rows) / AUGMENTED_AT_ONCE))):
        images = torch.from_numpy(data.images[rows[part]])
        x = transforms.apply(recipe.transform, images, shared.flips, rng(seed, "transform", k))
        if recipe.mix != "none":
            unlabelled = torch.zeros(len(x), data.n_classes)
            x = mixing.MIXES[recipe.mix](x, unlabelled, recipe.mix_alpha, numpy_rng(seed, recipe.mix, k)).images
        out[part] = x[:, None].half().numpy() if features else to_uint8(x).numpy()
    return Augmented(out, data.targets[rows])
