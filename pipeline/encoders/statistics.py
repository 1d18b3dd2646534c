"""Statistics: means of an image and of its steps on a grid, at several scales. Nothing is fitted, so no data are favoured.

At up to SCALES sizes, each half of the one before, on a grid of at most GRID x GRID places: the mean of each channel, and of
the absolute steps to the right and downwards. Brightness and colour, edges and their directions, blur and noise all move some
of them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.base import COMPUTED, SYMMETRIC, Fixed

GRID = 4  # places along each side of an image
SCALES = 3


class Statistics(Fixed):
    """Features (n, d), d <= 3 SCALES c GRID^2: means in [-1, 1], steps in [0, 2]."""

    size = None
    interpolation = "none"
    normalisation = SYMMETRIC
    origin = COMPUTED

    def _encode(self, images: np.ndarray) -> np.ndarray:
        x, found = self.normalisation.apply(torch.from_numpy(images)), list[Tensor]()
        for scale in range(SCALES):
            if scale:
                x = F.avg_pool2d(x, 2)
            right, down = (x.diff(dim=dim).abs() for dim in (3, 2))
            places = min(GRID, x.shape[-1] - 1)
            found += [F.adaptive_avg_pool2d(part, places).flatten(1) for part in (x, right, down)]
            if x.shape[-1] < 2 * GRID:
                break
        return np.asarray(torch.cat(found, 1))
