"""Checks against real images that nobody has seen, and against images that are wrong in a known way."""

from __future__ import annotations

import gzip
import json
import os
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.judged import CLASSES, PARAMS, PIXELS, SETTINGS, Digits, manifest
from pipeline.core.images import at_resolution
from pipeline.encoders.base import LEVELS
from pipeline.encoders.judges import Judges
from pipeline.encoders.pixels import Pixels
from pipeline.errors import DataError, LeakError
from pipeline.validation.checks import FARTHEST, SAME, Checks

GATED = ("blank", "copy", "moved_copy", "label", "outlier", "statistics")


def failed(checks: Checks, images: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Which image fails which check, and under "any" which fails at all."""
    seen = checks.measure(torch.from_numpy(np.ascontiguousarray(images)), targets)
    out = {name: ~checks.bands[name].passes(seen.values[name], targets) for name in GATED}
    return out | {"any": np.any(list(out.values()), axis=0)}


def test_new_real_images_are_accepted_in_every_class(checks: Checks, digits: Digits) -> None:
    rejected = failed(checks, digits.images, digits.targets)
    assert rejected["any"].mean() < 0.1
    assert not rejected["copy"].any() and rejected["moved_copy"].mean() < 0.02
    for c in range(10):
        # A class of 3 or 4 images is hard to recognise; the outlier threshold must not punish it for being rare.
        assert max(rejected[name][digits.targets == c].mean() for name in ("outlier", "statistics")) < 0.15
        assert rejected["any"][digits.targets == c].mean() < 0.4


def test_copies_are_rejected_with_noise_or_another_contrast(checks: Checks, digits: Digits) -> None:
    images, targets = digits.train.images().numpy(), digits.train.targets(CLASSES).numpy()
    noise = np.random.default_rng(0).normal(0, 6, images.shape)
    for copied in (images, images * 0.7 + 20, np.clip(images + noise, 0, 255)):
        seen = checks.measure(torch.from_numpy(copied.astype(np.uint8)), targets)
        assert (~checks.bands["copy"].passes(seen.values["copy"], targets)).mean() > 0.98
        assert (seen.nearest == np.arange(len(images))).mean() > 0.98


def test_what_lies_in_the_surroundings_of_another_image_is_no_copy_of_that_one(checks: Checks, digits: Digits) -> None:
    images, targets = digits.train.images()[:40].clone(), digits.train.targets(CLASSES).numpy()[:40]
    images[:, :, 0, 0] ^= 16  # a small object
    rows, elsewhere = np.arange(40), (np.arange(40) + 1) % 40
    for lent, share in ((None, 0.0), (np.full(40, -1), 0.0), (elsewhere, 0.0), (rows, 0.8)):
        seen = checks.measure(images, (targets + 1) % 10, lent)
        for name in ("copy", "moved_copy"):
            passed = checks.bands[name].passes(seen.values[name], (targets + 1) % 10).mean()
            assert passed >= share if share else passed < 0.3, (name, passed)
    assert (seen.nearest != rows).all()


def test_noise_wrong_labels_and_blank_images_are_rejected(checks: Checks, digits: Digits) -> None:
    chance = np.random.default_rng(1)
    some, targets = digits.images[::3], digits.targets[::3]
    noise = chance.integers(0, 256, some.shape, dtype=np.uint8)
    assert failed(checks, noise, targets)["any"].mean() > 0.95
    inverted, blurred = 255 - some, at_resolution(torch.from_numpy(some), 2).numpy()
    assert failed(checks, inverted, targets)["outlier"].mean() > 0.95
    for spoilt in (noise, inverted, blurred):
        assert failed(checks, spoilt, targets)["statistics"].mean() > 0.9
    wrong = (targets + chance.integers(1, 10, len(targets))) % 10
    assert failed(checks, some, wrong)["any"].mean() > 0.9
    assert failed(checks, some, wrong)["label"].mean() > 0.85
    assert failed(checks, np.full_like(some, 77), targets)["blank"].all()


def test_blank_looks_at_each_channel_alone(checks: Checks) -> None:
    # A picture of one colour is blank although its channels differ.
    pixels = torch.tensor([10, 200, 90], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 8, 8)
    spread = pixels.double().flatten(2).std(2, correction=0).amax(1)
    assert float(spread) == 0.0 and float(pixels.double().std()) > 50


def test_copies_are_found_that_were_mirrored_turned_or_moved(checks: Checks, digits: Digits) -> None:
    images, targets = digits.train.images().numpy(), digits.train.targets(CLASSES).numpy()
    shifted = np.concatenate([images[..., 1:], images[..., -1:]], -1)
    for moved in (images[..., ::-1], images[..., ::-1, :], np.rot90(images, 1, (2, 3)), shifted[..., ::-1]):
        # A shift cuts a column off, which is an eighth of a digit.
        assert failed(checks, moved, targets)["copy"].mean() > (0.3 if moved.base is shifted else 0.9)


def test_features_tell_copies_that_no_move_of_pixels_brings_back(checks: Checks, digits: Digits) -> None:
    """A slight blur or noise leaves an image where no other real image is."""
    images, targets = digits.train.images(), digits.train.targets(CLASSES).numpy()
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 6, images.shape))
    assert failed(checks, (images + noise).clamp(0, 255).byte().numpy(), targets)["moved_copy"].mean() > 0.98


def test_duplicates_keep_the_first(checks: Checks, digits: Digits) -> None:
    images = np.concatenate(
        [digits.images[:200], digits.images[:50], np.clip(digits.images[50:100] + 3.0, 0, 255).astype(np.uint8)]
    )
    hashes = np.array([str(i) for i in range(200)] + [str(i) for i in range(50)] + [f"x{i}" for i in range(50)])
    distance = checks.duplicates(checks.directions(torch.from_numpy(images)).astype(np.float16), hashes)
    assert (distance[200:250] == 0).all()
    assert (distance[250:] < 2 * SAME).mean() > 0.95
    assert (distance[:200] > checks.bands["copy"].low.max()).all()
    assert checks.duplicates(np.zeros((1, 64), np.float16), np.array(["a"])).tolist() == [FARTHEST]


def test_the_search_for_duplicates_finds_all_near_ones(checks: Checks) -> None:
    chance = np.random.default_rng(2)
    vectors = chance.standard_normal((1500, 64)).astype(np.float32)
    near = vectors + 0.1 * chance.standard_normal(vectors.shape).astype(np.float32)
    both = np.concatenate([vectors, near])
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    distance = checks.duplicates(both.astype(np.float16), np.arange(3000).astype(str))
    assert (distance[1500:] < 0.2).mean() > 0.97


def test_what_is_measured_does_not_depend_on_the_company(checks: Checks, digits: Digits) -> None:
    pixels, targets = torch.from_numpy(digits.images[:60]), digits.targets[:60]
    whole, part = checks.measure(pixels, targets), checks.measure(pixels[40:], targets[40:])
    for name in GATED:
        np.testing.assert_allclose(whole.values[name][40:], part.values[name], rtol=1e-4, atol=1e-4)


def test_small_classes_lean_on_all_classes(checks: Checks) -> None:
    """t_c = w q_c + (1 - w) q_pool: in closed form for two classes of constant distances."""
    distances = np.concatenate([np.full((60, 10), 1.0), np.full((3, 10), 3.0)])
    classes = np.repeat([0, 1], [60, 3])
    out = checks._shrunk(distances, classes, 0.5, empty=np.inf)
    shrinkage = PARAMS.validate_.shrinkage
    assert out[0] == pytest.approx(1.0)
    assert out[1] == pytest.approx(3 / (3 + shrinkage) * 3.0 + shrinkage / (3 + shrinkage) * 1.0)
    assert out[5] == pytest.approx(1.0)
    assert np.isinf(checks._shrunk(distances[:0], classes[:0], 0.5, empty=np.inf)).all()


def test_the_outlier_threshold_of_a_rare_class_is_that_of_few_references(checks: Checks) -> None:
    """Two classes of one distribution, 300 rows and 4: the pooled distances of the small one are to 3 or 2 references."""
    few = copy(checks)
    few.targets, few.classes = np.repeat([0, 1], [300, 4]), ["common", "rare"]
    few._embeddings = np.random.default_rng(0).standard_normal((2, 304, 6)).astype(np.float32)
    few.judges = copy(checks.judges)
    few.judges.folds = np.arange(304, dtype=np.int16) % 2
    rare = few._outlier_quantiles(few._embeddings, 0.95)[1]
    few._shrinkage = 1e9  # all classes alone
    common, pooled = few._outlier_quantiles(few._embeddings, 0.95)
    assert pooled > 1.5 * common and rare > 1.3 * common


def test_calibration_refuses_other_rows(digits: Digits, judges: Judges) -> None:
    with pytest.raises(DataError, match="other train rows"):
        Checks(digits.val, judges, PIXELS, CLASSES, settings=PARAMS.validate_, seed=0)
    leaking = digits.train.table.set_column(3, "split", [["test"] + ["train"] * (len(digits.train) - 1)])
    with pytest.raises(LeakError):
        Checks(type(digits.train)(leaking), judges, PIXELS, CLASSES, settings=PARAMS.validate_, seed=0)


def test_real_duplicates_in_train_do_not_let_copies_pass(digits: Digits, tmp_path: Path) -> None:
    images = np.repeat(digits.train.images().numpy(), 2, axis=0)
    rows = manifest(images, list(np.repeat(digits.train.column("label"), 2)), "twice")
    judges = Judges.fit(rows, CLASSES, settings=SETTINGS.model_copy(update={"steps": 2}), flips="none", seed=0, folder=tmp_path)
    checks = Checks(rows, judges, PIXELS, CLASSES, settings=PARAMS.validate_, seed=0)
    assert failed(checks, images, rows.targets(CLASSES).numpy())["copy"].all()
    assert (checks.bands["copy"].low > 3 * SAME).all()


@pytest.mark.skipif(
    "TAILFORGE_DATASETS" not in os.environ,
    reason="real data are no part of the project: set TAILFORGE_DATASETS to their folder",
)
def test_mnist_with_its_long_tail(tmp_path: Path) -> None:
    folder = Path(os.environ["TAILFORGE_DATASETS"]) / "mnist"
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    ids = json.loads((folder / "mnist_lt_ir100.json").read_text())["ids"]
    images = np.ascontiguousarray(images.reshape(-1, 1, 14, 2, 14, 2).mean((3, 5)).round().astype(np.uint8))
    train = np.concatenate([ids[c][:100] for c in CLASSES])
    rest = np.random.default_rng(0).choice(
        np.setdiff1d(np.arange(len(images)), np.concatenate([ids[c] for c in CLASSES])), 600, False
    )
    rows = manifest(images[train], [CLASSES[c] for c in labels[train]], "train")
    settings = SETTINGS.model_copy(update={"steps": 250, "batch_images": 32})
    judges = Judges.fit(rows, CLASSES, settings=settings, flips="none", seed=0, folder=tmp_path)
    checks = Checks(rows, judges, Pixels(judges.shape, LEVELS), CLASSES, settings=PARAMS.validate_, seed=0)
    targets = labels[rest].astype(np.int64)
    assert failed(checks, images[rest], targets)["any"].mean() < 0.08
    assert failed(checks, images[rest], (targets + 1) % 10)["any"].mean() > 0.7
    assert failed(checks, images[train], labels[train].astype(np.int64))["copy"].all()
    shuffled = np.random.default_rng(1).permuted(images[rest].reshape(600, -1), axis=1).reshape(600, 1, 14, 14)
    assert failed(checks, shuffled, targets)["outlier"].mean() > 0.6
