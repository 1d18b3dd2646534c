"""Compose on images whose every pixel is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError, DataError
from pipeline.generators.compose import Compose, ComposeConfig
from pipeline.generators.shared.base import Surroundings

SIDE = 32
NAMES = ("faultless", "dot", "spur")
GREY = 191 / 127.5 - 1  # of a dot: a level of 8 bits


def boards() -> tuple[Tensor, Tensor, Surroundings]:
    """Surfaces that are white from a row on; grey dots in the black part, and white spurs that stand on the edge."""
    images, masks = torch.full((12, 1, SIDE, SIDE), -1.0), torch.zeros(12, 1, SIDE, SIDE, dtype=torch.uint8)
    for i, edge in enumerate((12, 14, 16, 18, 20, 22, 24, 26, 16, 22, 15, 21)):
        images[i, :, edge:] = 1.0
    for i, top in ((8, 6), (9, 9)):
        images[i, :, top : top + 3, 10:12], masks[i, :, top : top + 3, 10:12] = GREY, 255
    for i, top in ((10, 10), (11, 16)):
        images[i, :, top : top + 5, 14:17], masks[i, :, top : top + 5, 14:17] = 1.0, 255
    return images, torch.tensor([0] * 8 + [1] * 2 + [2] * 2), Surroundings(masks, NAMES)


def fitted(**settings: Any) -> Compose:
    images, labels, around = boards()
    model = Compose(ComposeConfig(**{"harmony": 0.0, **settings}), shape=(1, SIDE, SIDE), n_classes=3)
    return model.fit(images, labels, seed=0, around=around)


def made(model: Compose, label: int, n: int = 40) -> tuple[Tensor, Tensor]:
    return model.sample_with_sources(torch.full((n,), label), range(n))


def grey(image: Tensor) -> Tensor:
    return (image - GREY).abs() < 1e-5


def test_an_object_keeps_its_pixels_and_its_surroundings_are_those_of_another_image() -> None:
    images, sources = made(fitted(), 1)
    real, labels, _ = boards()
    places = set()
    for image, (own, lent) in zip(images, sources.tolist(), strict=True):
        assert labels[own] == 1 and labels[lent] == 0
        dot = grey(image[0])
        y, x = (int(line.nonzero()[0]) for line in (dot.any(1), dot.any(0)))
        assert int(dot.sum()) == 6 and bool(dot[y : y + 3, x : x + 2].all())
        elsewhere = torch.ones(SIDE, SIDE, dtype=torch.bool)
        elsewhere[max(0, y - 1) : y + 4, max(0, x - 1) : x + 3] = False
        assert torch.equal(image[0][elsewhere], real[lent, 0][elsewhere])
        places.add((y, x))
    assert len(places) > 30 and len(set(sources[:, 1].tolist())) > 5


def test_an_object_goes_where_its_surroundings_agree() -> None:
    real, _, _ = boards()

    def joined(model: Compose) -> list[bool]:
        """Of each spur whether it stands on the edge of its surface, as in both images that show one."""
        images, sources = made(model, 2)
        edges = [int((real[lent, 0, :, 0] > 0).nonzero()[0]) for lent in sources[:, 1]]
        above = [(image[0, :edge] > 0.99).any(1).nonzero().flatten() for image, edge in zip(images, edges, strict=True)]
        return [rows.tolist() == list(range(edge - 5, edge)) for rows, edge in zip(above, edges, strict=True)]

    assert all(joined(fitted()))
    assert sum(joined(fitted(context=False))) < 10


def test_an_object_moves_and_turns_as_far_as_settings_say() -> None:
    images, sources = made(fitted(spread=0.0, context=False), 1)
    real, _, _ = boards()
    for image, (own, _) in zip(images, sources.tolist(), strict=True):
        assert torch.equal(grey(image), grey(real[own]))
    for symmetries, expected in (("none", {(3, 2)}), ("mirror", {(3, 2)}), ("turn", {(3, 2), (2, 3)})):
        shown = [grey(image[0]) for image in made(fitted(symmetries=symmetries), 1)[0]]
        assert {(int(dot.any(1).sum()), int(dot.any(0).sum())) for dot in shown} == expected


def test_where_an_object_lies_says_nothing_of_which_one_it_is() -> None:
    images, sources = made(fitted(surroundings=1, context=False), 1, 60)
    rows = torch.stack([grey(image[0]).any(1).int().argmax() for image in images])
    for own in set(sources[:, 0].tolist()):
        among = rows[sources[:, 0] == own]
        assert int(among.min()) < SIDE // 8 and int(among.max()) > 3 * SIDE // 4


def test_an_object_takes_the_light_of_its_surroundings() -> None:
    for harmony, expected in ((0.0, {6}), (1.0, {0, 6})):  # a dot on black is lighter than it, and so is one on white: white
        found = {int(grey(image).sum()) for image in made(fitted(harmony=harmony, context=False), 1, 100)[0]}
        assert found & {0, 6} == expected


def test_an_image_is_a_function_of_its_label_and_seed_and_so_are_its_sources() -> None:
    model = fitted(surroundings=3, block_images=5)
    images, sources = made(model, 2, 13)
    again, rows = model.sample_with_sources(torch.tensor([2, 1, 2]), [12, 3, 0])
    assert torch.equal(again[[0, 2]], images[[12, 0]]) and torch.equal(rows[[0, 2]], sources[[12, 0]])


def test_a_class_without_regions_and_one_that_lends_give_their_images() -> None:
    images, labels, _ = boards()
    faultless, sources = made(fitted(), 0, 12)
    for image, (own, other) in zip(faultless, sources.tolist(), strict=True):
        assert own == other and torch.equal(image, images[own])
    unknown = Compose(ComposeConfig(), shape=(1, SIDE, SIDE), n_classes=3).fit(images, labels, seed=0)
    for image, (own, _) in zip(*made(unknown, 2, 6), strict=True):
        assert labels[own] == 2 and torch.equal(image, images[own])


def test_classes_lend_that_are_named() -> None:
    images, labels, around = boards()
    _, sources = made(fitted(backgrounds=["dot"]), 2)
    assert set(labels[sources[:, 1]].tolist()) == {1}
    with pytest.raises(ConfigError, match=r"compose\.backgrounds=\['surface'\].*faultless, dot, spur"):
        fitted(backgrounds=["surface"])
    model = Compose(ComposeConfig(), shape=(1, SIDE, SIDE), n_classes=4).fit(images, labels, seed=0, around=around)
    with pytest.raises(DataError, match="without train images"):
        model.sample(torch.tensor([3]), [0])
