"""Ranges, forms and streams of random numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import images, seeds


def test_every_level_survives_the_way_in_and_out() -> None:
    levels = torch.arange(256).byte().view(1, 1, 16, 16)
    inside = images.to_float(levels)
    assert inside.min() == -1.0 and inside.max() == 1.0
    assert torch.equal(images.to_uint8(inside), levels)


def test_values_outside_are_clipped() -> None:
    assert images.to_uint8(torch.tensor([[[[-3.0, 3.0]]]])).flatten().tolist() == [0, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_pixels_and_bytes(channels: int) -> None:
    pixels = torch.randint(0, 256, (5, channels, 7, 6), generator=torch.Generator().manual_seed(1)).byte()
    encoded = images.encode_all(pixels)
    assert torch.equal(images.decode_all(encoded), pixels)
    assert encoded == images.encode_all(pixels.clone())


def test_the_hash_sees_pixels_and_shape_alone() -> None:
    image = torch.zeros(1, 4, 4).byte()
    assert images.pixel_hash(image) == images.pixel_hash(images.decode_png(images.encode_png(image)))
    assert images.pixel_hash(image) != images.pixel_hash(image.view(1, 2, 8))
    changed = image.clone()
    changed[0, 3, 3] = 1
    assert images.pixel_hash(image) != images.pixel_hash(changed)


@given(st.integers(0, 2**31), st.lists(st.one_of(st.text(max_size=5), st.integers()), max_size=3))
def test_a_stream_is_named_by_its_seed_and_names(seed: int, names: list[str | int]) -> None:
    value = seeds.derive(seed, *names)
    assert value == seeds.derive(seed, *names) and 0 <= value < 2**63
    assert value != seeds.derive(seed + 1, *names) and value != seeds.derive(seed, *names, "x")


def test_names_do_not_run_together() -> None:
    assert seeds.derive(0, "ab", "c") != seeds.derive(0, "a", "bc")


def test_noise_of_a_row_depends_on_its_seed_alone() -> None:
    together = seeds.noise([5, 6, 7], (2, 3))
    assert torch.equal(together[1:2], seeds.noise([6], (2, 3)))
    assert torch.equal(seeds.noise([7, 5], (2, 3)), together[[2, 0]])
