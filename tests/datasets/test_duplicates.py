"""The search finds copies and keeps distinct images apart."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.making import picture
from pipeline.datasets.duplicates import components, equal_pairs, near_pairs
from pipeline.encoders.thumbnails import Thumbnails


def thumbnails(images: list[np.ndarray]) -> np.ndarray:
    together = np.stack(images)
    return Thumbnails(together.shape[1:]).features(together).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image[0]).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))[None]


def distinct(n: int, size: int) -> list[np.ndarray]:
    return [np.asarray(picture(i, size))[None] for i in range(n)]


@pytest.mark.parametrize("n", [2, 10, 200, 2000])
def test_each_image_finds_its_jpeg_copy_and_nothing_else(n):
    images = distinct(n, 32)
    copies = [jpeg(image, 85) for image in images]
    pairs = near_pairs(thumbnails(images + copies), 2.0)
    assert {tuple(p) for p in pairs.tolist()} <= {(i, n + i) for i in range(n)}
    assert len(pairs) >= 0.99 * n


def test_many_copies_of_one_image_are_one_component():
    copies = [jpeg(distinct(1, 32)[0], quality) for quality in range(70, 99)] + distinct(40, 32)
    found = components(len(copies), near_pairs(thumbnails(copies), 3.0))
    assert len(set(found[:29])) == 1 and len(set(found[30:])) == 39


def test_distinct_faint_images_are_kept_apart():
    """Nearly blank images differ by less than two levels, and yet are different."""
    rng = np.random.default_rng(0)
    faint = [(np.kron(rng.integers(0, 4, (4, 4)), np.ones((4, 4))) + 100).astype(np.uint8)[None] for _ in range(300)]
    assert len(near_pairs(thumbnails(faint), 2.0)) == 0


def test_a_small_difference_in_one_place_is_a_difference():
    image = distinct(1, 16)[0].copy()
    other = image.copy()
    other[0, 4:6, 4:6] ^= 0x80
    assert np.abs(image.astype(int) - other).mean() < 2.1
    assert len(near_pairs(thumbnails([image, other]), 2.1)) == 0


def test_tiny_images_keep_their_own_resolution():
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    assert np.array_equal(thumbnails([image])[0], image.ravel())
    assert thumbnails([np.zeros((3, 100, 100), np.uint8)]).shape == (1, 256)


def test_nothing_to_compare():
    for n in (0, 1):
        assert near_pairs(np.zeros((n, 256), np.uint8), 2.0).shape == (0, 2)


def test_a_memory_map_gives_the_same_pairs(tmp_path):
    array = thumbnails(distinct(50, 16) + distinct(50, 16))
    array.tofile(tmp_path / "t")
    mapped = np.memmap(tmp_path / "t", np.uint8, "r", shape=array.shape)
    assert np.array_equal(near_pairs(mapped, 2.0), near_pairs(array, 2.0))
    assert len(near_pairs(array, 2.0)) == 50


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 8), max_size=40))
def test_equal_codes_are_one_component_named_by_its_first_row(codes):
    array = np.array(codes, dtype=np.int64)
    found = components(len(codes), equal_pairs(array))
    assert found.tolist() == [codes.index(code) for code in codes]
