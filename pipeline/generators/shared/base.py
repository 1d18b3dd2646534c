"""The contract of every family of generative models: p(x | y) for images x and classes y.

    build    checks the settings against the size of the images, and lays out what fit or restore fills
    fit      learns from train images and their classes
    sample   one image per (label, seed): a function of the weights, the label and its own seed, whatever the batch
    tensors  all that was learned; save writes it with the settings in the file's metadata: safetensors, never pickle
    restore  takes those tensors; load builds the same model again

A method is abstract, and each family has its own, or final, and all share it. tests/contracts runs one suite over all families,
chosen by their traits.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self, final, runtime_checkable

import torch
from torch import Tensor

from pipeline.config import Section, parse
from pipeline.core import weights
from pipeline.errors import DataError, OutOfMemory
from pipeline.runtime.training import out_of_memory


@dataclass(frozen=True)
class Traits:
    """What a family can do.

    density      explicit | approximate (a bound of it) | unnormalised (up to a constant) | implicit (samples alone)
    likelihood   exact | bound | none: what `log_prob` gives; exact to the error of its solver where it integrates an ODE
    data_parallel  whether several processes can share the batches of its fit (pipeline/runtime/parallel.py)
    regions      whether `fit` takes `around`, a Surroundings
    """

    density: Literal["explicit", "approximate", "unnormalised", "implicit"]
    likelihood: Literal["exact", "bound", "none"]
    conditional: bool = True
    pretrained: bool = False
    sources_known: bool = True
    data_parallel: bool = False
    regions: bool = False


@dataclass(frozen=True)
class Surroundings:
    """What a fit may be told of n train images beside their classes."""

    regions: Tensor  # uint8 (n, 1, h, w): 255 where the object is, 0 everywhere where that is unknown
    classes: Sequence[str]  # names in the order of labels


class GenerativeModel(ABC):
    """A class-conditional generative model. Images are float32 (n, c, h, w) in [-1, 1], labels int64 (n,)."""

    name: ClassVar[str]  # in params.yaml and in the file of a model
    traits: Traits  # of the class; of an instance where settings take something away
    Config: ClassVar[type[Section]]
    config: Section

    @final
    def __init__(self, config: Section, *, shape: tuple[int, int, int], n_classes: int) -> None:
        """`config` is the family's section of params.yaml, `shape` is (c, h, w). Raises ConfigError where these conflict."""
        assert isinstance(config, self.Config)
        self.config, self.shape, self.n_classes = config, shape, n_classes
        self.build()

    @abstractmethod
    def build(self) -> None:
        """Lay out what `fit` or `restore` fills. Raises ConfigError where settings do not suit `self.shape`."""

    @abstractmethod
    def fit(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None) -> Self:
        """Learn from train images. `folder` keeps checkpoints: a fit that is killed goes on there, to the same weights.

        Raises Diverged where the loss becomes non-finite.
        """

    @abstractmethod
    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """float32 images (n, c, h, w) in [-1, 1], one per label and seed."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that `fit` learned and the other methods need."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take what `tensors` gave."""

    @final
    def save(self, folder: Path) -> None:
        """Write model.safetensors into `folder`."""
        card = {"family": self.name, "config": self.config.model_dump(), "shape": self.shape, "n_classes": self.n_classes}
        weights.save(folder / "model.safetensors", self.tensors(), card)

    @final
    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model that `save` wrote. Raises DataError where the file is torn or of another family."""
        tensors, card = weights.load(folder / "model.safetensors")
        if card.get("family") != cls.name:
            raise DataError(f"{folder}: a model of family {card.get('family')!r}", expected=cls.name)
        c, h, w = card["shape"]
        model = cls(parse(cls.Config, card["config"], cls.name), shape=(c, h, w), n_classes=card["n_classes"])
        model.restore(tensors)
        return model


@runtime_checkable
class HasLogProb(Protocol):
    """A model with a density, or a lower bound of one (`traits.likelihood` says which)."""

    def log_prob(self, images: Tensor, labels: Tensor) -> Tensor:
        """log p(x | y) in nats float64 (n,), density with respect to x in [-1, 1]^(c h w). Row i depends on row i alone.

        Densities are of dequantised images (shared/density.py); a model of grey levels spreads each level's mass evenly
        over its cell of width 2 / 256.
        """


@runtime_checkable
class HasEnergy(Protocol):
    """A model known up to a constant: p(x | y) = exp(-E(x, y)) / Z_y."""

    def energy(self, images: Tensor, labels: Tensor) -> Tensor:
        """E(x, y) float64 (n,). Low for likely images; not a likelihood, since Z_y is unknown."""


@runtime_checkable
class HasSources(Protocol):
    """A model that knows of each image which train images it was made of."""

    def sample_with_sources(self, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What `sample` gives, and int64 (n, s): rows of the train images that `fit` was handed, which may repeat."""


def in_blocks(
    make: Callable[[Tensor, list[int]], Tensor], labels: Tensor, seeds: Sequence[int], size: int, shape: tuple[int, ...]
) -> Tensor:
    """Images (n, *shape) from `make`, called with always `size` labels and seeds, the last block filled up with its last row.

    The shapes of matrices, and so roundings, then never vary with the batch: an image does not depend on its neighbours. Where
    memory runs out, blocks are halved, and a line on stderr says so. A seed's image is then the same but for roundings: a grey
    level in few pixels.

    Raises OutOfMemory where a block of one is too large.
    """
    n, start, done = len(labels), 0, list[Tensor]()
    while start < n:
        rows = torch.arange(start, start + size).clamp(max=n - 1)
        try:
            done.append(make(labels[rows], [seeds[int(i)] for i in rows]).cpu())
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if size == 1:
                raise OutOfMemory(
                    f"memory ran out at a single image: {str(error).partition(chr(10))[0]}",
                    expected="room for one",
                    remedy="lower data.image_size, or free some memory",
                ) from error
        else:
            start += size
            continue
        # Outside the handler, which would keep the block's tensors alive.
        size = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"memory ran out: going on in blocks of {size} images", file=sys.stderr)
    return torch.cat(done)[:n] if done else torch.empty(0, *shape)
