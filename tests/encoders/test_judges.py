"""Judges: folds, cross-fitting, what they refuse, and that a killed fit goes on to the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.judged import CLASSES, SETTINGS, Digits, manifest
from pipeline.core.images import at_resolution
from pipeline.encoders import small
from pipeline.encoders.base import Origin
from pipeline.encoders.judges import FILE, Judges, assign_folds
from pipeline.encoders.pixels import Pixels
from pipeline.encoders.small import Small
from pipeline.errors import DataError, LeakError

SHORT = SETTINGS.model_copy(update={"steps": 4})


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=1, max_size=60), st.integers(2, 4))
@settings(max_examples=200, deadline=None)
def test_groups_are_whole_and_every_fit_knows_every_class(rows: list[tuple[int, int]], n_folds: int) -> None:
    targets, groups = np.array([c for c, _ in rows]), np.array([f"g{g}" for _, g in rows])
    folds = assign_folds(targets, groups, n_folds, 0)
    assert set(folds) <= set(range(-1, n_folds))
    for group in set(groups):
        assert len(set(folds[groups == group])) == 1
    for c in set(targets):
        for k in range(n_folds):
            assert (folds[targets == c] != k).any()
        if len(set(groups[targets == c])) == 1:
            assert (folds[targets == c] == -1).all()


def test_folds_are_stratified() -> None:
    targets = np.repeat([0, 1, 2], [60, 9, 2])
    folds = assign_folds(targets, np.arange(71).astype(str), 3, 0)
    assert [np.bincount(folds[targets == c], minlength=3).tolist() for c in (0, 1)] == [[20, 20, 20], [3, 3, 3]]
    assert sorted(np.bincount(folds[targets == 2], minlength=3)) == [0, 1, 1]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_row_that_is_not_train_is_refused(split: str, digits: Digits, tmp_path: Path) -> None:
    rows = manifest(digits.images[:30], [CLASSES[t] for t in digits.targets[:30]], "x", split=split)
    with pytest.raises(LeakError):
        Judges.fit(rows, CLASSES, settings=SHORT, flips="none", seed=0, folder=tmp_path)


def test_judges_recognise_new_images_and_survive_a_round_trip(digits: Digits, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 120})
    judges = Judges.fit(digits.train, CLASSES, settings=settings, flips="none", seed=0, folder=tmp_path)
    pixels = torch.from_numpy(digits.images)
    said = judges.probabilities(pixels)
    assert said.shape == (3, len(pixels), 10)
    np.testing.assert_allclose(said.sum(2), 1, atol=1e-5)
    assert (said.mean(0).argmax(1) == digits.targets).mean() > 0.7
    again = Judges.load(tmp_path)
    np.testing.assert_array_equal(again.embed(pixels[:9]), judges.embed(pixels[:9]))
    np.testing.assert_array_equal(again.folds, judges.folds)
    np.testing.assert_allclose(judges.embed(digits.train.images()).mean(1), 0, atol=1e-3)
    with pytest.raises(DataError, match="other train rows"):
        again.held_out(digits.train.take(np.arange(len(digits.train))[::-1].copy()))


def test_held_out_rows_are_judged_by_the_judge_that_has_not_seen_them(digits: Digits, tmp_path: Path) -> None:
    groups = ["one" if label == "9" else f"{label}-{i}" for i, label in enumerate(digits.train.column("label"))]
    rows = manifest(digits.train.images().numpy(), list(digits.train.column("label")), "t", groups=groups)
    judges = Judges.fit(rows, CLASSES, settings=SHORT, flips="none", seed=0, folder=tmp_path)
    held, said = judges.held_out(rows), judges.look(rows.images())
    only = rows.column("label") == "9"
    assert np.isnan(held.probabilities[only]).all() and np.isnan(held.embeddings[only]).all()
    assert np.isfinite(held.probabilities[~only]).all()
    for k in range(SHORT.folds):
        mine = judges.folds == k
        assert mine.any()
        np.testing.assert_array_equal(held.probabilities[mine], said.probabilities[k, mine])


def test_a_fit_never_sees_its_fold(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = Small.fit

    def spy(images: np.ndarray, *rest: Any, **settings: Any) -> Small:
        seen.append(len(images))
        return original(images, *rest, **settings)

    monkeypatch.setattr(Small, "fit", spy)
    judges = Judges.fit(digits.train, CLASSES, settings=SHORT, flips="none", seed=0, folder=tmp_path)
    assert seen == [int((judges.folds != k).sum()) for k in range(3)]
    assert max(seen) < len(digits.train)


@pytest.mark.fault(5, "judges, killed")
def test_a_killed_fit_goes_on_to_the_same_weights(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(folder: Path) -> bytes:
        Judges.fit(digits.train, CLASSES, settings=SHORT, flips="horizontal", seed=3, folder=folder)
        return b"".join(file.read_bytes() for file in sorted(folder.glob("*.safetensors")))

    whole = fit(tmp_path / "whole")
    original = Small.fit

    def killed(*arguments: Any, **settings: Any) -> Small:
        if settings["name"].startswith("judge 2"):
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Small, "fit", killed)
        fit(tmp_path / "killed")
    (finished,) = (tmp_path / "killed").glob("judge-*.safetensors")
    before = finished.stat().st_mtime_ns
    assert fit(tmp_path / "killed") == whole
    assert finished.stat().st_mtime_ns == before


def test_judges_see_at_most_32_pixels() -> None:
    pixels = torch.arange(64, dtype=torch.uint8).repeat(2, 3, 64, 1)
    seen = small.average_down(pixels, 32)
    assert seen.shape == (2, 3, 32, 32)
    assert seen[0, 0, 0].tolist()[:3] == [0, 2, 4]  # means 0.5, 2.5, 4.5, rounded half to even
    assert small.average_down(seen, 32) is seen


def test_shifts_keep_every_image_in_place_of_its_own() -> None:
    pixels = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 8, 8)
    out = small._augment(pixels, "both", torch.Generator().manual_seed(0))
    assert torch.equal(out, pixels)


@pytest.mark.parametrize("name", ["statistics", "pixels"])
def test_judges_rest_on_any_encoder(name: str, digits: Digits, tmp_path: Path) -> None:
    """On one that is fixed: features are made once, each judge has a head of its own, held-out rows are told as new ones."""
    settings = SETTINGS.model_copy(update={"encoder": name})
    judges = Judges.fit(digits.train, CLASSES, settings=settings, flips="none", seed=0, folder=tmp_path)
    again, pixels = Judges.load(tmp_path), torch.from_numpy(digits.images)
    said, held = again.look(pixels), again.held_out(digits.train)
    np.testing.assert_array_equal(said.embeddings, judges.embed(pixels))
    np.testing.assert_array_equal(said.probabilities, judges.probabilities(pixels))
    assert np.array_equal(said.embeddings[0], said.embeddings[1])
    assert not np.array_equal(said.probabilities[0], said.probabilities[1])
    assert (said.probabilities.mean(0).argmax(1) == digits.targets).mean() > 0.7
    known, targets = judges.folds >= 0, digits.train.targets(CLASSES).numpy()
    assert (held.probabilities[known].argmax(1) == targets[known]).mean() > 0.7
    assert said.flat.shape == (len(pixels), said.embeddings.shape[2])


def test_judges_of_other_weights_are_refused(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SHORT.model_copy(update={"encoder": "pixels"})
    Judges.fit(digits.train, CLASSES, settings=settings, flips="none", seed=0, folder=tmp_path)
    monkeypatch.setattr(Pixels, "origin", Origin("other images", "CC0-1.0", "other"))
    with pytest.raises(DataError, match="other weights of the encoder pixels"):
        Judges.load(tmp_path)


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"torn")
    with pytest.raises(DataError, match="judges"):
        Judges.load(tmp_path)


def test_features_that_hardly_vary_on_train_rows_stay_small_on_other_images(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a pretrained encoder, many of which are zero on a few hundred images."""
    encode = Pixels._encode

    def padded(self: Pixels, images: np.ndarray) -> np.ndarray:
        z = encode(self, images)
        return np.hstack([z, np.repeat((images.max((1, 2, 3)) == 1)[:, None], 8, 1).astype(np.float32)])

    monkeypatch.setattr(Pixels, "_encode", padded)
    settings = SHORT.model_copy(update={"encoder": "pixels"})
    judges = Judges.fit(digits.train, CLASSES, settings=settings, flips="none", seed=0, folder=tmp_path)
    faint = torch.ones(3, 1, 8, 8, dtype=torch.uint8)
    said = judges.look(faint)
    assert np.abs(said.embeddings).max() < 100
    assert said.flat.shape == (3, said.embeddings.shape[2])  # judges share the encoder: once is enough


def test_a_slow_encoder_looks_at_each_train_row_once_without_the_detail_that_judges_do_not_see(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, encode = list[np.ndarray](), Pixels._encode

    def counting(self: Pixels, images: np.ndarray) -> np.ndarray:
        looked.extend(images)
        return encode(self, images)

    monkeypatch.setattr(Pixels, "_encode", counting)
    monkeypatch.setattr(Pixels, "slow", True)
    monkeypatch.chdir(tmp_path)
    settings = SHORT.model_copy(update={"encoder": "pixels"})
    judges = Judges.fit(digits.train, CLASSES, settings=settings, resolution=4, flips="none", seed=0, folder=tmp_path)
    judges.held_out(digits.train)
    seen = np.unique(at_resolution(digits.train.images(), 4).numpy(), axis=0)
    assert len(looked) == len(seen) and np.array_equal(np.unique(looked, axis=0), seen)
