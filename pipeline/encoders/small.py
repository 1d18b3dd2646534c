"""Small: a small residual network, fitted on some of the train rows; its features tell blur and noise as well as classes.

    features    per block the mean and the standard deviation of each channel over the pixels, then the activations before the
                head: early blocks tell noise and blur, late ones tell classes

Images above SIZE pixels are averaged down to it before the network sees them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import config
from pipeline.core import weights
from pipeline.core.seeds import derive
from pipeline.encoders.base import SYMMETRIC, Fitted, Origin, Shape
from pipeline.encoders.heads import Head, fit_evenly
from pipeline.encoders.resnet import SmallResNet
from pipeline.errors import DataError
from pipeline.runtime.training import device

SIZE = 32  # pixels


class Small(Fitted):
    """A fitted SmallResNet. `rows` says what it was fitted on."""

    size = SIZE
    interpolation = "area"
    normalisation = SYMMETRIC

    def __init__(self, network: SmallResNet, shape: Shape, rows: str) -> None:
        self.network, self.shape = network.eval(), shape
        self.head = Head.of(network.head)
        self.origin = Origin(rows, "as the images of this project", _hash(network.state_dict()))

    @classmethod
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
    ) -> Small:
        """See Fitted. Images are shifted by a pixel or two, and mirrored where `flips` allows."""
        where, shape = device(), (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(seed, "weights"))
            network = build(shape, n_classes, settings.width).to(where)
        pixels = torch.cat([average_down(part, SIZE) for part in torch.split(torch.from_numpy(images), cls.batch)])

        def batch(chosen: Tensor, draw: torch.Generator) -> Tensor:
            return cls.normalisation.apply(_augment(pixels[chosen], flips, draw).to(where))

        fit_evenly(
            network, batch, torch.from_numpy(targets), n_classes, settings=settings, seed=seed, folder=folder, name=name
        )  # fmt: skip
        return cls(network, shape, rows)

    def save(self, file: Path) -> None:
        """Write weights, and in the metadata what builds the network anew."""
        card = {"encoder": "small", "shape": self.shape, "width": self.network.width, "rows": self.origin.trained_on}
        weights.save(file, self.network.state_dict(), card)

    @classmethod
    def load(cls, file: Path) -> Small:
        """See Fitted."""
        tensors, card = weights.load(file)
        if card.get("encoder") != "small":
            raise DataError(f"{file} is no encoder of the kind small", remedy="run the stage judges")
        shape = (card["shape"][0], card["shape"][1], card["shape"][2])
        network = build(shape, len(tensors["head.bias"]), card["width"])
        network.load_state_dict(tensors)
        return cls(network, shape, card["rows"])

    @torch.inference_mode()
    def _encode(self, images: np.ndarray) -> np.ndarray:
        where = device()
        pixels = average_down(torch.from_numpy(images), SIZE).to(where)
        return np.asarray(self.network.to(where).levels(self.normalisation.apply(pixels)).cpu())


def seen(shape: Shape) -> Shape:
    """What the network sees of images of `shape` (c, h, w)."""
    side = min(shape[1], SIZE)
    return shape[0], side, side


def build(shape: Shape, n_classes: int, width: int) -> SmallResNet:
    """An unfitted network for images of `shape`."""
    return SmallResNet(seen(shape), n_classes, width)


def average_down(images: Tensor, size: int) -> Tensor:
    """uint8 (n, c, h, w) -> uint8, averaged down to at most size x size pixels."""
    return images if images.shape[-1] <= size else F.adaptive_avg_pool2d(images.float(), size).round_().byte()


def _augment(pixels: Tensor, flips: str, draw: torch.Generator) -> Tensor:
    """Shift each image by up to a sixteenth of its size (one pixel at least), edges repeated; mirror it where allowed."""
    n, _, size, _ = pixels.shape
    far = max(1, size // 16)
    grid = torch.arange(size)
    y, x = ((grid + torch.randint(-far, far + 1, (n, 1), generator=draw)).clamp(0, size - 1) for _ in range(2))
    for axis, allowed in ((x, flips != "none"), (y, flips == "both")):
        if allowed:
            mirrored = torch.rand(n, generator=draw) < 0.5
            axis[mirrored] = axis[mirrored].flip(1)
    return pixels[torch.arange(n)[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].cpu().numpy().tobytes())
    return digest.hexdigest()
