"""Batched augmentation."""

from __future__ import annotations

import pytest
import torch

from pipeline.classifier import transforms
from pipeline.core.images import to_float


def batch(n: int = 32, c: int = 3, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (n, c, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["none", "affine", "flip_affine", "trivial"])
@pytest.mark.parametrize("channels", [1, 3])
def test_form_range_and_seed(name: str, channels: int) -> None:
    x = batch(c=channels)
    before = x.clone()
    y = transforms.apply(name, x, "both", rng())
    assert y.shape == x.shape and y.dtype == torch.float32
    assert float(y.min()) >= -1 and float(y.max()) <= 1
    assert torch.equal(x, before)
    assert torch.equal(y, transforms.apply(name, x, "both", rng()))
    assert name == "none" or not torch.equal(y, transforms.apply(name, x, "both", rng(1)))


def test_an_unknown_transform_is_refused() -> None:
    with pytest.raises(ValueError, match="wobble"):
        transforms.apply("wobble", batch(), "none", rng())


def test_affine_without_range_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROTATION", "SCALE", "SHIFT"):
        monkeypatch.setattr(transforms, name, 0.0)
    x = to_float(batch())
    torch.testing.assert_close(transforms.affine(x, rng()), x, atol=1e-5, rtol=0)


def test_affine_moves_each_image_by_its_own_draw() -> None:
    x = to_float(batch(1)).repeat(8, 1, 1, 1)
    y = transforms.affine(x, rng())
    assert len({tuple(image.flatten().tolist()) for image in y}) == 8


def test_a_shift_of_the_map_is_a_shift_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "ROTATION", 0.0)
    monkeypatch.setattr(transforms, "SCALE", 0.0)
    monkeypatch.setattr(transforms, "_uniform", lambda n, limit, rng, where: torch.full((n,), 2 / 16 if limit else 0.0))
    x = to_float(batch())
    torch.testing.assert_close(transforms.affine(x, rng())[..., :-1, :-1], x[..., 1:, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("flips", "kinds"), [("none", 1), ("horizontal", 2), ("both", 4)])
def test_flips_are_those_that_were_declared(flips: str, kinds: int) -> None:
    x = batch(1).repeat(64, 1, 1, 1)
    assert len({tuple(image.flatten().tolist()) for image in transforms.flip(x, flips, rng())}) == kinds


def test_shift_moves_whole_pixels_and_keeps_the_border() -> None:
    x = torch.arange(16, dtype=torch.uint8).expand(64, 1, 16, 16).contiguous()
    y = transforms.shift(x, rng())
    rows = {tuple(image[0, 0].tolist()) for image in y}
    assert rows == {tuple(min(15, max(0, i + d)) for i in range(16)) for d in range(-2, 3)}
    assert y.shape == x.shape


@pytest.mark.parametrize("name", transforms.OPERATIONS)
@pytest.mark.parametrize("strength", [-1.0, 0.3, 1.0])
def test_every_operation_runs_at_every_strength(name: str, strength: float) -> None:
    x = batch(4)
    y = transforms._operation(name, strength)(x)
    assert y.shape == x.shape and y.dtype == torch.uint8
    assert name == "identity" or not torch.equal(x, y)


def test_trivial_uses_every_operation_and_one_per_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, int]] = []

    def spy(name: str, strength: float) -> object:
        return lambda x: (used.append((name, len(x))), x)[1]

    monkeypatch.setattr(transforms, "_operation", spy)
    assert torch.equal(transforms.trivial(batch(2000, size=8), rng()), batch(2000, size=8))
    assert {name for name, _ in used} == set(transforms.OPERATIONS)
    assert {n for _, n in used} == {transforms.CHUNK}
    used.clear()
    transforms.trivial(batch(2000, c=1, size=8), rng())
    assert {name for name, _ in used} == set(transforms.OPERATIONS) - {"color"}
