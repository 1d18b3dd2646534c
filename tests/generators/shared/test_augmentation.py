"""Non-leaking augmentation: what is done to an image is told to the network, whole."""

from __future__ import annotations

import math

import torch

from pipeline.generators.shared import augmentation


def test_augmentation_without_probability_is_the_identity_and_says_so() -> None:
    images = torch.rand(6, 1, 8, 8)
    maps, told = augmentation.random_maps(6, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(augmentation.apply(images, maps), images)
    assert float(told.abs().max()) == 0.0


def test_every_changed_image_is_told_to_the_network() -> None:
    maps, told = augmentation.random_maps(500, 0.3, torch.Generator().manual_seed(0))
    changed = (maps - torch.eye(2, 3)).flatten(1).abs().sum(1) > 1e-6
    assert bool(((told.abs().sum(1) > 0) == changed).all()) and 0.5 < float(changed.double().mean()) < 1.0


def test_what_is_told_is_the_whole_map() -> None:
    """The map can be rebuilt from the nine numbers: what the network is not told would leak into its samples."""
    maps, told = augmentation.random_maps(200, 0.7, torch.Generator().manual_seed(1))
    flip_x, flip_y, scale, cos, sin, stretch_cos, stretch_sin, shift_x, shift_y = told.unbind(-1)
    eye, cos = torch.eye(2), cos + 1
    growth = torch.hypot(stretch_cos, stretch_sin) / 5 * math.log(2)
    along = torch.atan2(stretch_sin, stretch_cos)
    mirror = torch.stack([along.cos(), along.sin(), along.sin(), -along.cos()], -1).view(-1, 2, 2)
    stretch = growth.cosh()[:, None, None] * eye + growth.sinh()[:, None, None] * mirror
    rotation = torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2)
    flip = torch.diag_embed(torch.stack([1 - 2 * flip_x, 1 - 2 * flip_y], -1))
    linear = flip @ ((scale / 5).exp2()[:, None, None] * stretch) @ rotation
    rebuilt = torch.cat([linear, torch.stack([shift_x, shift_y], -1)[:, :, None] / 8], -1)
    torch.testing.assert_close(rebuilt, maps, atol=1e-5, rtol=1e-4)


def test_a_flip_is_a_flip() -> None:
    image = torch.rand(1, 1, 8, 8)
    mirrored = augmentation.apply(image, torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]))
    torch.testing.assert_close(mirrored, image.flip(-1))


def test_a_nudge_turns_slightly_and_never_mirrors() -> None:
    maps = augmentation.nudges(2000, 0.5, torch.Generator().manual_seed(0))
    linear = maps[:, :, :2]
    u, _, vh = torch.linalg.svd(linear)
    angle = torch.atan2(*(u @ vh)[:, 1].unbind(1))
    assert bool((torch.linalg.det(linear) > 0).all()) and float(angle.abs().max()) < 0.8
    still = (maps == torch.eye(2, 3)).all(-1).all(-1)
    assert abs(float(still.double().mean()) - 0.5**5) < 0.015
    assert abs(float(maps[:, :, 2].square().mean()) - 0.5 * 0.125**2) < 1e-3
    growth = torch.linalg.det(linear).log2()  # twice the scale's exponent; stretches and turns keep the area
    assert abs(float(growth.square().mean()) - 0.5 * 0.4**2) < 0.015
