"""Features that are kept: an image is looked at once, and what is kept is what would be computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.digits_project import rows
from pipeline.config import Encoder
from pipeline.core.manifest import Manifest
from pipeline.encoders import store
from pipeline.encoders.base import Fixed
from pipeline.encoders.pixels import Pixels
from pipeline.errors import DataError

VIEWS = {store.STILL: torch.clone, "turned": lambda images: images.flip(3)}


class Slow(Pixels):
    """Pixels, taken for slow ones; counts the images that it looks at."""

    slow = True
    looked = 0

    def _encode(self, images: np.ndarray) -> np.ndarray:
        Slow.looked += len(images)
        return super()._encode(images)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Slow, "looked", 0)


def some(n: int, seed: int = 0) -> Manifest:
    images = np.random.default_rng(seed).integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)
    return rows(images, ["0"] * n, "train")


def encoder() -> Fixed:
    return Slow.made((1, 8, 8), Encoder())


def test_each_image_and_view_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK", 3)
    own = some(8)
    first = store.embed(own, encoder(), {store.STILL: torch.clone})
    assert first.shape == (8, 1, 64) and first.dtype == np.float16 and Slow.looked == 8
    both = store.embed(own, encoder(), VIEWS)
    assert Slow.looked == 16 and np.array_equal(both[:, :1], first)
    np.testing.assert_array_equal(both[:, 1].reshape(8, 8, 8), both[:, 0].reshape(8, 8, 8)[:, :, ::-1])
    more = Manifest(some(11).table)  # the first 8 of which are others: the generator draws whole arrays
    assert np.array_equal(store.embed(own.take(np.array([5, 2, 2])), encoder(), VIEWS), both[[5, 2, 2]])
    assert Slow.looked == 16
    store.embed(more, encoder(), VIEWS)
    new = len(set(more.column("pixel_hash")) - set(own.column("pixel_hash")))
    assert Slow.looked == 16 + 2 * new


def test_images_in_memory_and_rows_share_what_is_kept() -> None:
    own = some(5)
    z = store.features(own.images().numpy(), encoder())
    assert z.dtype == np.float32 and Slow.looked == 5
    assert np.array_equal(store.embed(own, encoder(), {store.STILL: torch.clone})[:, 0], z.astype(np.float16))
    assert Slow.looked == 5
    np.testing.assert_allclose(z, Pixels((1, 8, 8)).features(own.images().numpy()), atol=1e-3)


def test_an_encoder_that_is_quick_keeps_nothing() -> None:
    store.features(some(5).images().numpy(), Pixels((1, 8, 8)))
    assert not store.FOLDER.exists()


def test_no_rows_have_no_features() -> None:
    assert store.embed(some(3).take(np.zeros(0, int)), encoder(), VIEWS).shape == (0, 2, 64)


def test_other_weights_and_sizes_are_kept_apart() -> None:
    class Other(Slow):
        size = 4

    assert encoder().key != Other((1, 8, 8)).key
    assert store.embed(some(3), encoder(), VIEWS).shape != store.embed(some(3), Other((1, 8, 8)), VIEWS).shape


def test_a_torn_file_is_named() -> None:
    store.embed(some(3), encoder(), VIEWS)
    file = next(store.FOLDER.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=f"{file.name}.*remove it and run again"):
        store.embed(some(3), encoder(), VIEWS)


def test_features_that_float16_cannot_hold_are_refused() -> None:
    class Large(Slow):
        def _encode(self, images: np.ndarray) -> np.ndarray:
            return np.full((len(images), 2), 1e6, np.float32)

    with pytest.raises(DataError, match="features up to 1e\\+06"):
        store.embed(some(3), Large((1, 8, 8)), VIEWS)
    assert not list(store.FOLDER.rglob("*.safetensors"))
