"""What a mode hands to its classifier.

    scratch    images uint8 (n, c, h, w). They are transformed anew in each step (transforms.py)
    frozen     features float16 (n, 1 + v, d) of the encoder: of the image as it is, then of v moved views of it. A step draws
               one of the moved views where a recipe transforms its images. They are computed once (encoders/store.py)

View i is the same map for all images, so that its features are a function of the image alone. A frozen classifier is asked
about an image and about its mirror images, where data.flips says that they keep the label: the mean of its answers counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.classifier import transforms
from pipeline.config import Mode, Params
from pipeline.core.images import MIRRORED, at_resolution
from pipeline.core.manifest import Manifest
from pipeline.encoders import store
from pipeline.encoders.base import Fixed, Shape, fixed, source_hash
from pipeline.encoders.store import STILL


@dataclass(frozen=True)
class Inputs:
    """The inputs of one mode. Without an encoder they are the images."""

    encoder: Fixed | None
    resolution: int | None  # pixels a side beyond which images that are learned from have no detail
    learned_from: Mapping[str, store.Move]
    asked_about: Mapping[str, store.Move]

    @classmethod
    def of(cls, params: Params, shape: Shape, mode: Mode) -> Inputs:
        """For images of `shape` (c, h, w). Raises ConfigError where the mode wants an encoder and none is named."""
        if mode == "scratch":
            return cls(None, None, {}, {})
        name, flips = params.classifier.augment, params.data.flips
        code, numbers = source_hash(transforms.__name__), range(1, params.frozen.views + 1)
        moved = {f"{name}-{flips}-{code}-{i}": partial(transforms.view, name, flips, i) for i in numbers}
        encoder = fixed("pretrained", shape, params.encoder, "classifier.mode=frozen")
        mirrored = {f"mirrored-{'-'.join(map(str, axes))}": partial(torch.flip, dims=axes) for axes in MIRRORED[flips]}
        return cls(encoder, None, {STILL: torch.clone, **moved}, {STILL: torch.clone, **mirrored})

    def at(self, resolution: int) -> Inputs:
        """The same with images that have no more detail than those of so many pixels a side."""
        return replace(self, resolution=resolution)

    def to_learn(self, rows: Manifest) -> np.ndarray:
        """Of rows that a classifier is trained on, with all views."""
        views = self.learned_from
        if self.resolution is not None:
            lower, code = partial(at_resolution, size=self.resolution), source_hash(at_resolution.__module__)
            views = {f"{name}-at-{self.resolution}-{code}": partial(_then, lower, move) for name, move in views.items()}
        if self.encoder is not None:
            return store.embed(rows, self.encoder, views)
        images = rows.images()
        return (images if self.resolution is None else at_resolution(images, self.resolution)).numpy()

    def to_score(self, rows: Manifest) -> np.ndarray:
        """Of rows that a classifier is asked about: features (n, 1 + m, d) of an image and its m mirror images."""
        return rows.images().numpy() if self.encoder is None else store.embed(rows, self.encoder, self.asked_about)

    def of_images(self, images: np.ndarray) -> np.ndarray:
        """The same of images uint8 (n, c, h, w)."""
        return images if self.encoder is None else store.embed_images(images, self.encoder, self.asked_about)


def _then(first: store.Move, second: store.Move, images: Tensor) -> Tensor:
    return second(first(images))
