"""Images that were made elsewhere: renders, another tool, a colleague's model.

No density and no fit: the `model` is the set of images itself. The image of (label, seed) is number seed mod n_label of that
label's images, in the order in which they were read. They are judged and evaluated like any others. Where their sources are
unknown, nobody can say whether test images took part in making them, and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from pipeline.config import Section
from pipeline.core.images import to_float, to_uint8
from pipeline.errors import DataError
from pipeline.generators.shared.base import GenerativeModel, Traits

NAME = "external"


class ExternalConfig(Section):
    """No settings: `data.external` is the folder, and `prepare` reads it."""


class External(GenerativeModel):
    """A finite set of labelled images from outside."""

    traits = Traits(density="implicit", likelihood="none", sources_known=False)
    name = NAME
    Config = ExternalConfig
    config: ExternalConfig

    def build(self) -> None:
        self.images, self.labels = torch.empty(0, *self.shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None) -> Self:
        """Keep the images that came from outside (not train images) with their labels."""
        self.images, self.labels = to_uint8(images), labels.clone()
        return self

    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        out = torch.empty(len(labels), *self.shape)
        wanted = torch.tensor(list(seeds), dtype=torch.int64)
        for label in set(labels.tolist()):
            own = (self.labels == label).nonzero().squeeze(1)
            if not len(own):
                raise DataError(f"class number {label} has no external images", expected="at least one")
            rows = labels == label
            out[rows] = to_float(self.images[own[wanted[rows] % len(own)]])
        return out

    def tensors(self) -> dict[str, Tensor]:
        return {"images": self.images, "labels": self.labels}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.images, self.labels = tensors["images"], tensors["labels"]
