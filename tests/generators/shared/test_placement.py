"""Placement against its definition, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.generators.shared.placement import Objects, Places, seam

SIDE, REACH = 16, 2


def spot(top: int, left: int, height: int = 3, width: int = 4) -> Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8)
    mask[:, :, top : top + height, left : left + width] = 255
    return mask


def noisy(n: int, channels: int = 2) -> Tensor:
    return torch.rand(n, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(n)) * 2 - 1


def objects_of(mask: Tensor) -> Objects:
    return Objects.of(noisy(1), mask, seam(mask, REACH), REACH)


def repeated(objects: Objects, n: int) -> Objects:
    return Objects(*(part.repeat(n, *[1] * (part.ndim - 1)) for part in objects))


def test_the_seam_falls_over_the_margin_and_the_ring_lies_around_it() -> None:
    found = objects_of(spot(6, 6))
    row = found.alpha[0, 0, 7]
    assert row[6:10].tolist() == [1.0] * 4
    torch.testing.assert_close(row[[3, 4, 5, 10, 11, 12]], torch.tensor([0, 1 / 3, 2 / 3, 2 / 3, 1 / 3, 0]))
    assert found.ring[0, 0, 7].nonzero().flatten().tolist() == [2, 3, 12, 13]
    assert found.box.tolist() == [[6, 8, 6, 9]]


@pytest.mark.parametrize("at", [(6, 6), (1, 2), (10, 11)])
def test_the_transform_gives_the_mean_square_over_the_ring(at: tuple[int, int]) -> None:
    objects, others = objects_of(spot(*at)), noisy(3)
    places = Places(SIDE, REACH)
    found = places.disagreement(objects, others[None])[0]
    allowed = places.allowed(objects, torch.inf)[0]
    assert int(allowed.sum()) == (SIDE - 3 + 1) * (SIDE - 4 + 1)
    index = allowed.flatten().nonzero().flatten()
    for place in index[:: len(index) // 20]:
        [by] = places.shift(place[None], objects).tolist()
        differences = []
        for y, x in objects.ring[0, 0].nonzero().tolist():
            if 0 <= y + by[0] < SIDE and 0 <= x + by[1] < SIDE:
                differences.append((objects.pixels[0, :, y, x] - others[:, :, y + by[0], x + by[1]]).square().mean(1))
        enough = len(differences) >= int(objects.ring.sum()) / 2
        expected = torch.stack(differences).mean(0) if enough else torch.full((3,), torch.inf)
        torch.testing.assert_close(found.flatten(1)[:, place], expected, rtol=1e-4, atol=1e-4)


def test_what_the_border_cuts_stays_at_it_and_no_box_leaves_the_image() -> None:
    places = Places(SIDE, REACH)
    for mask, rows, columns in ((spot(0, 5), {0}, None), (spot(5, 12), None, {0}), (spot(6, 6), None, None)):
        objects = objects_of(mask)
        index = places.allowed(objects, torch.inf).flatten().nonzero().flatten()
        shifts = places.shift(index, repeated(objects, len(index)))
        assert rows is None or set(shifts[:, 0].tolist()) == rows
        assert columns is None or set(shifts[:, 1].tolist()) == columns
        boxes = repeated(objects, len(index)).shifted(shifts).box
        assert int(boxes.min()) >= 0 and int(boxes.max()) < SIDE


def test_a_shift_carries_the_whole_object_and_lets_nothing_in() -> None:
    objects = objects_of(spot(6, 6))
    moved = objects.shifted(torch.tensor([[-3, 5]]))
    for before, after in zip(objects[:3], moved[:3], strict=True):
        assert torch.equal(after[:, :, :-3, 5:], before[:, :, 3:, :-5])
        assert not after[:, :, -3:].any() and not after[:, :, :, :5].any()
    assert moved.box.tolist() == [[3, 5, 11, 14]]


def test_the_eight_symmetries_are_different_and_keep_every_pixel() -> None:
    objects = repeated(objects_of(spot(2, 9)), 8)
    turned = objects.turned(torch.arange(8))
    assert len({tuple(part.flatten().tolist()) for part in turned.pixels}) == 8
    assert torch.equal(turned.pixels.flatten(1).sort(1).values, objects.pixels.flatten(1).sort(1).values)
    assert torch.equal(turned.pixels[0], objects.pixels[0]) and torch.equal(turned.pixels[4], objects.pixels[0].flip(2))
    for i in range(8):
        first, last, left, right = turned.box[i].tolist()
        assert bool((turned.alpha[i, 0, first : last + 1, left : right + 1] == 1).all())
        assert (last - first + 1) * (right - left + 1) == 12
