"""Pixels: an image averaged down to at most 16 x 16 pixels, channel by channel."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.encoders.base import COMPUTED, SYMMETRIC, Fixed, Normalisation, Shape


class Pixels(Fixed):
    """Features (n, c s s), s = min(16, h), in [-1, 1] or as another `normalisation` has them."""

    size = 16
    interpolation = "area"
    origin = COMPUTED

    def __init__(self, shape: Shape, normalisation: Normalisation = SYMMETRIC) -> None:
        super().__init__(shape)
        self.normalisation = normalisation

    def _encode(self, images: np.ndarray) -> np.ndarray:
        x = self.normalisation.apply(torch.from_numpy(images))
        return np.asarray(F.adaptive_avg_pool2d(x, min(self.size, self.shape[1])).flatten(1))
