"""Thumbnails: the luminance of an image, averaged down to at most 16 x 16 pixels. Near-duplicates are told by them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipeline.encoders.base import COMPUTED, LEVELS, Fixed


class Thumbnails(Fixed):
    """Features (n, s s), s = min(16, h): levels, whole numbers in [0, 255]."""

    size = 16
    interpolation = "area"
    normalisation = LEVELS
    origin = COMPUTED

    def _encode(self, images: np.ndarray) -> np.ndarray:
        side = min(self.size, self.shape[1])
        return np.stack([_thumbnail(image, side) for image in images]).reshape(len(images), -1).astype(np.float32)


def _thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 (c, h, w) -> uint8 (side, side)."""
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).convert("L")
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BOX)
    return np.asarray(picture)
