"""What a mode hands to its classifier.

    scratch, finetune    images uint8 (n, c, h, w), in scratch of classifier.image_size pixels. They are transformed anew in
                         each step (transforms.py)
    frozen               features float16 (n, 1 + v, d) of the encoder: of the image as it is, then of v moved views of it. A
                         step draws one of the moved views where a recipe transforms its images. They are computed once
                         (encoders/store.py)

View i is the same map for all images, so that its features are a function of the image alone. A frozen classifier is asked
about all views of an image, and the mean of its answers counts.
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
from pipeline.core.images import at_resolution, resized
from pipeline.core.manifest import Manifest
from pipeline.encoders import store
from pipeline.encoders.base import Fixed, Shape, fixed, source_hash
from pipeline.encoders.store import STILL


@dataclass(frozen=True)
class Inputs:
    """The inputs of one mode. Without an encoder they are the images."""

    encoder: Fixed | None
    size: int  # pixels a side of images that are handed to the network
    resolution: int | None  # pixels a side beyond which images that are learned from have no detail
    views: Mapping[str, store.Move]

    @classmethod
    def of(cls, params: Params, shape: Shape, mode: Mode) -> Inputs:
        """For images of `shape` (c, h, w). Raises ConfigError where the mode wants an encoder and none is named."""
        size = params.classifier.image_size if mode == "scratch" else 0
        size = min(size or shape[1], shape[1])
        if mode != "frozen":
            return cls(None, size, None, {})
        name, flips = params.classifier.augment, params.data.flips
        code, numbers = source_hash(transforms.__name__), range(1, params.frozen.views + 1)
        moved = {f"{name}-{flips}-{code}-{i}": partial(transforms.view, name, flips, i) for i in numbers}
        encoder = fixed("pretrained", shape, params.encoder, "classifier.mode=frozen")
        return cls(encoder, size, None, {STILL: torch.clone, **moved})

    def at(self, resolution: int) -> Inputs:
        """The same with images that have no more detail than those of so many pixels a side."""
        return replace(self, resolution=resolution)

    def to_learn(self, rows: Manifest) -> np.ndarray:
        """Of rows that a classifier is trained on."""
        views = self.views
        if self.resolution is not None:
            lower, code = partial(at_resolution, size=self.resolution), source_hash(at_resolution.__module__)
            views = {f"{name}-at-{self.resolution}-{code}": partial(_then, lower, move) for name, move in views.items()}
        if self.encoder is not None:
            return store.embed(rows, self.encoder, views)
        images = rows.images()
        return self._sized(images if self.resolution is None else at_resolution(images, self.resolution))

    def to_score(self, rows: Manifest) -> np.ndarray:
        """Of rows that a classifier is asked about."""
        return self._sized(rows.images()) if self.encoder is None else store.embed(rows, self.encoder, self.views)

    def of_images(self, images: np.ndarray) -> np.ndarray:
        """The same of images uint8 (n, c, h, w)."""
        if self.encoder is None:
            return self._sized(torch.from_numpy(images))
        return store.embed_images(images, self.encoder, self.views)

    def _sized(self, images: Tensor) -> np.ndarray:
        return resized(images, self.size).numpy()


def _then(first: store.Move, second: store.Move, images: Tensor) -> Tensor:
    return second(first(images))
