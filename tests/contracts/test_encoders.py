"""One suite that every encoder passes, fixed or fitted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from helpers.judged import SETTINGS
from pipeline import config
from pipeline.encoders.base import Encoder, Fitted, Fixed, Shape, kind
from pipeline.errors import DataError
from pipeline.registry import ENCODERS
from pipeline.runtime import training

SHAPES = [(1, 4, 4), (1, 8, 8), (3, 16, 16), (3, 33, 33), (1, 64, 64)]
LITE0 = config.Encoder(name="tf_efficientnet_lite0.in1k", size=32)
FITTED = [name for name in ENCODERS.ours if issubclass(kind(name), Fitted)]


def images(shape: Shape, n: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def make(name: str, shape: Shape, folder: Path) -> Encoder:
    found = kind(name)
    if issubclass(found, Fixed):
        return found.made(shape, LITE0)
    few = SETTINGS.model_copy(update={"steps": 3})
    return found.fit(
        images(shape), np.arange(24) % 3, 3, settings=few, flips="none", seed=0, folder=folder, name="fit", rows="noise"
    )  # fmt: skip


def slow(encoder: Encoder) -> bool:
    """Whether others trained it."""
    return isinstance(encoder, Fixed) and encoder.slow


@pytest.fixture(scope="module", params=[(name, shape) for name in ENCODERS.ours for shape in SHAPES], ids=str)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return make(*request.param, tmp_path_factory.mktemp("fit"))


def test_features_are_finite_numbers_for_any_form_of_image(encoder: Encoder) -> None:
    z = encoder.features(images(encoder.shape))
    assert z.shape == (24, z.shape[1]) and z.dtype == np.float32 and np.isfinite(z).all()
    assert len(np.unique(z, axis=0)) == 24  # different images, different features
    assert np.isfinite(encoder.features(np.zeros((2, *encoder.shape), np.uint8))).all()


def test_no_images_have_no_features(encoder: Encoder) -> None:
    none = encoder.features(images(encoder.shape, 0))
    assert none.shape == (0, encoder.features(images(encoder.shape, 1)).shape[1]) and none.dtype == np.float32


def test_features_are_those_of_the_image_alone(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of any size, in any order, in other company, on one thread or two; memory that is read alone, or with gaps."""
    own = images(encoder.shape)
    z = encoder.features(own)

    def same(part: np.ndarray, rows: np.ndarray) -> None:
        if slow(encoder):  # in bf16
            assert (np.linalg.norm(part - z[rows], axis=1) < 0.05 * np.linalg.norm(z[rows], axis=1)).all()
        else:
            np.testing.assert_allclose(part, z[rows], rtol=1e-5, atol=1e-5)

    turned, every = np.arange(24)[::-1], np.arange(24)
    same(encoder.features(own[turned]), turned)
    same(encoder.features(np.concatenate([images(encoder.shape, 7, 1), own[3:9]]))[7:], every[3:9])
    for threads in (1, 2):
        with training.threads(threads):
            same(encoder.features(own), every)
    for size in (1, 5):
        monkeypatch.setattr(type(encoder), "batch", size)
        same(encoder.features(own), every)
    kept = own.copy()
    kept.flags.writeable = False
    same(encoder.features(kept), every)
    same(encoder.features(kept[::2]), every[::2])
    assert np.array_equal(kept, images(encoder.shape))


def test_images_of_another_form_are_refused_in_one_line(encoder: Encoder) -> None:
    channels, size, _ = encoder.shape
    for wrong in ((4 - channels, size, size), (channels, size + 1, size + 1)):
        with pytest.raises(DataError, match="expected uint8") as caught:
            encoder.features(images(wrong))
        assert "\n" not in str(caught.value) and str(wrong) in str(caught.value)
    with pytest.raises(DataError, match="float32"):
        encoder.features(images(encoder.shape).astype(np.float32))


def test_an_encoder_says_where_it_comes_from_and_what_it_looks_at(encoder: Encoder) -> None:
    assert encoder.origin.trained_on and encoder.origin.licence
    assert bool(encoder.origin.weights) == (isinstance(encoder, Fitted) or slow(encoder))
    assert encoder.interpolation in ("none", "area", "bilinear", "bicubic")
    assert (encoder.size is None) == (encoder.interpolation == "none")
    assert len(encoder.normalisation.mean) == len(encoder.normalisation.deviation) in (1, 3, encoder.shape[0])


@pytest.mark.parametrize("name", [name for name in ENCODERS.ours if name not in FITTED])
def test_it_looks_at_no_more_than_it_says(name: str) -> None:
    """Twice as large by repeating pixels is the same image, for what averages down to its size."""
    size, how = make(name, (1, 8, 8), Path()).size, make(name, (1, 8, 8), Path()).interpolation
    if size is None or how != "area":
        return
    small = images((3, size, size))
    z = [make(name, (3, *own.shape[2:]), Path()).features(own) for own in (small, small.repeat(2, 2).repeat(2, 3))]
    np.testing.assert_allclose(z[0], z[1], atol=1e-5)


@pytest.mark.parametrize("name", FITTED)
def test_a_fitted_encoder_is_saved_and_loaded_the_same(name: str, tmp_path: Path) -> None:
    one = make(name, (3, 33, 33), tmp_path)
    assert isinstance(one, Fitted) and one.origin.trained_on == "noise"
    one.save(tmp_path / "one")
    again = type(one).load(tmp_path / "one")
    own = images(one.shape, 5, 2)
    z = one.features(own)
    assert np.array_equal(again.features(own), z) and asdict(again.origin) == asdict(one.origin)
    assert np.array_equal(again.head.probabilities(z), one.head.probabilities(z)) and again.shape == one.shape
    np.testing.assert_allclose(again.head.probabilities(z).sum(1), 1, atol=1e-5)
    again.save(tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


@pytest.mark.parametrize("name", FITTED)
def test_torn_or_foreign_weights_are_one_line(name: str, tmp_path: Path) -> None:
    one, file = make(name, (1, 8, 8), tmp_path), tmp_path / "one.safetensors"
    assert isinstance(one, Fitted)
    one.save(file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"one\.safetensors") as caught:
        type(one).load(file)
    assert "\n" not in str(caught.value)
    one.head.save(file)
    with pytest.raises(DataError, match=r"one\.safetensors") as caught:
        type(one).load(file)
    assert "\n" not in str(caught.value)
