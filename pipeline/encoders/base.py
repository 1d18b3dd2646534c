"""The contract of encoders: an image becomes a row of features.

    images      uint8 (n, c, h, w) in [0, 255], as a manifest has them
    features    float32 (n, d), finite; d is one number for an encoder and a form of image

A row of features is a function of its image and the encoder alone: neither the other images of a batch, nor their order, nor
the number of threads changes it, but for the rounding of its sums, which a pretrained one does in bf16. So features may be kept
by the hash of an image.

An encoder says what it looks at (`size`, `interpolation`, `normalisation`) and where it comes from (`origin`). There are two
kinds, and the table ENCODERS of pipeline/registry.py has classes of both:

    Fixed     no image of this project has shaped it: arithmetic, or weights that others trained. `kind(shape)` makes one.
    Fitted    a network that learned from train rows. `kind.fit(…)` makes one, with the head by which it told the classes, and
              it is saved. Judges (encoders/judges.py) fit one for each fold.

Who only asks for features takes an Encoder, and knows neither the kind nor the network. This module imports no torch, so that
thumbnails cost no more than they compute.
"""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self, final

import numpy as np

from pipeline import config
from pipeline.errors import ConfigError, DataError
from pipeline.registry import ENCODERS

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.encoders.heads import Head

Shape = tuple[int, int, int]  # (c, h, w)
Interpolation = Literal["none", "area", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Normalisation:
    """x = (u / 255 - mean) / deviation of levels u in [0, 255]; one value for all channels, or one for each."""

    mean: Sequence[float]
    deviation: Sequence[float]

    def apply(self, images: Tensor) -> Tensor:
        """uint8 (n, c, h, w) -> float32 of the same shape."""
        x = images.float()
        scale = [255 * deviation for deviation in self.deviation]
        shift = [mean / deviation for mean, deviation in zip(self.mean, self.deviation, strict=True)]
        if len(scale) == 1:
            return x.div_(scale[0]).sub_(shift[0])
        return x.div_(x.new_tensor(scale)[:, None, None]).sub_(x.new_tensor(shift)[:, None, None])


SYMMETRIC = Normalisation((0.5,), (0.5,))  # [-1, 1], as pipeline.core.images has it
LEVELS = Normalisation((0.0,), (1 / 255,))  # [0, 255], as they are


@dataclass(frozen=True)
class Origin:
    """What shaped an encoder, the licence of its weights, and their hash, empty where it has none."""

    trained_on: str
    licence: str
    weights: str = ""


COMPUTED = Origin("nothing: it is arithmetic", "no weights")


class Encoder(ABC):
    """Images of one form -> features. Abstract; see the head of this module for what holds of every encoder."""

    shape: Shape  # of the images that it is handed
    size: int | None  # pixels a side that it looks at; None: whatever the image has
    interpolation: Interpolation  # to that size. area: only larger images, averaged down; bilinear, bicubic: smaller ones too
    normalisation: Normalisation
    origin: Origin
    batch: ClassVar[int] = 512  # images that it looks at together

    @final
    def features(self, images: np.ndarray) -> np.ndarray:
        """float32 (n, d) of uint8 images (n, c, h, w). Raises DataError for images of another form than `shape`."""
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            raise DataError(
                f"an encoder was handed images {images.dtype} {images.shape[1:]}",
                expected=f"uint8 {self.shape}",
                remedy="run the stage that fitted or made it on images of this form",
            )
        if len(images) == 0:
            return self._encode(np.zeros((1, *self.shape), np.uint8))[:0]
        parts = (images[i : i + self.batch] for i in range(0, len(images), self.batch))
        return np.concatenate([self._encode(np.require(part, requirements=["C", "W"])) for part in parts])

    @abstractmethod
    def _encode(self, images: np.ndarray) -> np.ndarray:
        """float32 (n, d) of at least one and at most `batch` images uint8 (n, c, h, w), contiguous and writable."""


class Fixed(Encoder):
    """Made for images of `shape` (c, h, w) alone. Equal `key`, equal features: it is not saved, but made again.

    Features of one that is `slow` are kept by content (store.py), so that an image is looked at once.
    """

    slow: ClassVar[bool] = False

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    @classmethod
    def made(cls, shape: Shape, settings: config.Encoder) -> Self:
        """One for images of `shape`. `settings` is the section `encoder` of params.yaml, which most need not."""
        return cls(shape)

    @property
    def key(self) -> str:
        """What decides its features besides the image: features of equal keys may be compared and kept together."""
        name = f"{type(self).__module__}.{type(self).__qualname__}".removeprefix("pipeline.encoders.")
        return "-".join([name, str(self.size or "any"), self.origin.weights[:16], source_hash(type(self).__module__)])


class Fitted(Encoder):
    """Fitted on train rows, with the linear `head` on its last features by which it told the classes."""

    head: Head

    @classmethod
    @abstractmethod
    def fit(
        cls,
        images: np.ndarray,
        targets: np.ndarray,
        n_classes: int,
        *,
        settings: config.Judges,
        flips: str,
        seed: int,
        folder: Path,
        name: str,
        rows: str,
    ) -> Self:
        """Fit on uint8 images (n, c, h, w) with classes int64 (n,), each class as often as another.

        `flips` is data.flips of params.yaml, `folder` keeps checkpoints, `name` is shown beside the progress, and `rows` says
        for `origin` what the images are.
        """

    @abstractmethod
    def save(self, file: Path) -> None:
        """Write weights and head to `file`."""

    @classmethod
    @abstractmethod
    def load(cls, file: Path) -> Self:
        """The encoder that `save` wrote. Raises DataError where the file is missing, torn or of something else."""


def source_hash(*modules: str) -> str:
    """Hash of the sources of modules that are imported already; of one without a file, of its name."""
    files = [(name, getattr(sys.modules[name], "__file__", None)) for name in modules]
    texts = [Path(file).read_bytes() if file else name.encode() for name, file in files]
    return hashlib.blake2b(b"\0".join(texts), digest_size=6).hexdigest()


def kind(name: str) -> type[Fixed] | type[Fitted]:
    """The class that ENCODERS names. Raises ConfigError where a package brings something else by that name."""
    found = ENCODERS.load(name)
    if not (isinstance(found, type) and issubclass(found, (Fixed, Fitted))):
        raise ConfigError(
            f"encoder {name} of {ENCODERS.origin(name)} is {found!r}",
            expected="a subclass of pipeline.encoders.base.Fixed or Fitted",
            remedy=f"take {name} out of params.yaml",
        )
    return found


def fixed(name: str, shape: Shape, settings: config.Encoder, asked_by: str) -> Fixed:
    """The fixed encoder `name` for images of `shape`. Raises ConfigError for one that is fitted; `asked_by` is the setting."""
    found = kind(name)
    if not issubclass(found, Fixed):
        raise ConfigError(
            f"{asked_by}={name!r}: this encoder learns from train rows",
            expected="one that no image of the project has shaped",
            remedy=f"set {asked_by}: statistics",
        )
    return found.made(shape, settings)
