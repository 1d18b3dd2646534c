"""Features that are kept by content: an image is looked at once, whichever stage, arm or run asks.

    .tailforge/features/ENCODER/VIEW/NAME.safetensors    names uint8 (m, 16), features float16 (m, d) of m images

A row is found by the hash of the image's pixels. The folder says what else decides it: the encoder with its weights, size and
code, and the view, a map of the image that is looked at in its place. Views are named by who makes them, after all that decides
the map. So nothing here is ever out of date, and all of it may be removed at any time. Images are decoded CHUNK at a time, and
only those that have not been looked at yet.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.core import weights
from pipeline.core.images import pixel_hash
from pipeline.core.manifest import Manifest
from pipeline.encoders.base import Encoder, Fixed
from pipeline.errors import DataError

FOLDER = Path(".tailforge/features")
CHUNK = 1024  # images that are decoded at a time
LARGEST = float(np.finfo(np.float16).max)

Move = Callable[[Tensor], Tensor]  # uint8 (n, c, h, w) -> the same; image i of the result is a function of image i alone
STILL = "still"  # the view of an image as it is


def features(images: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Features float32 (n, d) of images uint8 (n, c, h, w) as they are; those of an encoder that is slow are kept."""
    if not (isinstance(encoder, Fixed) and encoder.slow):
        return encoder.features(images)
    return embed_images(images, encoder, {STILL: torch.clone})[:, 0].astype(np.float32)


def embed_images(images: np.ndarray, encoder: Fixed, views: Mapping[str, Move]) -> np.ndarray:
    """As `embed`, of images uint8 (n, c, h, w)."""
    names = _names([pixel_hash(image) for image in images])
    return _kept(names, lambda part: torch.from_numpy(images[part]), encoder, views)


def embed(rows: Manifest, encoder: Fixed, views: Mapping[str, Move]) -> np.ndarray:
    """Features float16 (n, v, d) of n images under v views. Raises DataError for features that float16 cannot hold."""
    return _kept(_names(rows.column("pixel_hash")), lambda part: rows.take(part).images(), encoder, views)


def _kept(
    wanted: np.ndarray, images_of: Callable[[np.ndarray], Tensor], encoder: Fixed, views: Mapping[str, Move]
) -> np.ndarray:
    """Features of the images `wanted` (n,), by name; `images_of` gives those at some of their places."""
    places = {view: FOLDER / encoder.key / view for view in views}
    known = {view: _Known.read(place) for view, place in places.items()}
    lacking = {view: ~np.isin(wanted, known[view].names) for view in views}
    _, first = np.unique(wanted, return_index=True)
    some = np.sort(first[np.any([mask[first] for mask in lacking.values()], axis=0)])
    total = sum(int(mask[first].sum()) for mask in lacking.values())
    every = 0.5 if sys.stderr.isatty() else 10.0
    with tqdm(total=total, desc="embed", unit=" images", mininterval=every, dynamic_ncols=True, disable=not total) as bar:
        for part in (some[i : i + CHUNK] for i in range(0, len(some), CHUNK)):
            images = images_of(part)
            for view, move in views.items():
                own = lacking[view][part]
                if own.any():
                    z = encoder.features(move(images[torch.from_numpy(own)]).numpy())
                    known[view] = known[view].and_(_Known.write(places[view], wanted[part[own]], z))
                    bar.update(int(own.sum()))
    if not len(wanted):
        z = encoder.features(np.zeros((0, *encoder.shape), np.uint8))
        return np.zeros((0, len(views), z.shape[1]), np.float16)
    return np.stack([known[view].rows(wanted) for view in views], 1)


class _Known:
    """The features of some images: names (m,) of 16 bytes, in any order, and blocks of features that follow one another."""

    def __init__(self, names: np.ndarray, features: Sequence[np.ndarray]) -> None:
        self.names, self.features = names, features

    @classmethod
    def read(cls, place: Path) -> _Known:
        names, features = [np.zeros(0, "S16")], list[np.ndarray]()
        for file in sorted(place.glob("*.safetensors")):
            tensors, _ = weights.load(file)
            names.append(tensors["names"].numpy().view("S16")[:, 0])
            features.append(tensors["features"].numpy())
        return cls(np.concatenate(names), features)

    @classmethod
    def write(cls, place: Path, names: np.ndarray, features: np.ndarray) -> _Known:
        """Keep `features` (m, d) at `place`."""
        if not np.isfinite(features).all() or np.abs(features).max(initial=0.0) > LARGEST:
            raise DataError(
                f"{place.parent.name}: features up to {np.abs(features).max():.3g}",
                expected=f"finite ones up to {LARGEST:g}",
                remedy="choose another encoder.name",
            )
        kept = features.astype(np.float16)
        tensors = {"names": torch.from_numpy(names[:, None].view(np.uint8)), "features": torch.from_numpy(kept)}
        digest = hashlib.blake2b(names.tobytes(), digest_size=12).hexdigest()
        weights.save(place / f"{digest}.safetensors", tensors, {"rows": len(names)})
        return cls(names, [kept])

    def and_(self, other: _Known) -> _Known:
        return _Known(np.concatenate([self.names, other.names]), [*self.features, *other.features])

    def rows(self, wanted: np.ndarray) -> np.ndarray:
        """float16 (n, d) of the images `wanted` (n,), all of which are known."""
        order = np.argsort(self.names, kind="stable")
        place = order[np.searchsorted(self.names, wanted, sorter=order)]
        return np.asarray(np.concatenate(self.features)[place])


def _names(hashes: Iterable[str]) -> np.ndarray:
    """Hashes (n,) in hexadecimal -> (n,) of 16 bytes."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), "S16")
