"""Probabilities against enumeration of all images, causality, the cache against full passes, and draws against the density."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers.contracts_settings import SETTINGS
from pipeline.core.images import to_uint8
from pipeline.errors import ConfigError
from pipeline.generators.autoregressive import Autoregressive, AutoregressiveConfig, cosines, neighbours, raster
from pipeline.generators.shared import augmentation, density

Shape = tuple[int, int, int]


def build(shape: Shape, **changes: object) -> Autoregressive:
    settings = {**SETTINGS["autoregressive"], "levels": 4, "patch": 1, "width": 16, "dropout": 0.0, **changes}
    return Autoregressive(AutoregressiveConfig(**settings), shape=shape, n_classes=2)


def wild(shape: Shape, **changes: object) -> Autoregressive:
    """A model with large random weights: every input matters."""
    model, rng = build(shape, **changes), torch.Generator().manual_seed(3)
    for parameter in model.network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng) * (0.5 if parameter.ndim > 1 else 0.1)
    model.network.base.data /= 30
    return model


def every_image(shape: Shape, levels: int) -> Tensor:
    """All levels^D images (levels^D, c, h, w), each number in the middle of its cell."""
    grid = torch.cartesian_prod(*[torch.arange(levels)] * math.prod(shape))
    return ((grid + 0.5) * 2 / levels - 1).view(-1, *shape).float()


def probabilities(model: Autoregressive, images: Tensor, label: int) -> Tensor:
    volume = (2 / model.config.levels) ** images[0].numel()
    return model.log_prob(images, torch.full((len(images),), label)).exp() * volume


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("shape", "patch"), [((1, 1, 2), 1), ((1, 2, 2), 1), ((1, 2, 2), 2), ((3, 1, 1), 1), ((1, 1, 4), 1)])
def test_the_probabilities_of_all_images_sum_to_one(shape: Shape, patch: int, temperature: float) -> None:
    model = wild(shape, patch=patch, temperature=temperature)
    p = probabilities(model, every_image(shape, 4), 1)
    assert float(p.max()) > 3 * float(p.median())  # not the uniform distribution
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_density_is_flat_in_the_cell_of_a_level_and_drops_outside() -> None:
    model, rng = wild((1, 4, 4), levels=16), torch.Generator().manual_seed(0)
    grey = torch.randint(0, 256, (8, 1, 4, 4), generator=rng)
    images, labels = grey / 127.5 - 1, torch.zeros(8).long()
    torch.testing.assert_close(model.log_prob(density.dequantise(images, rng), labels), model.log_prob(images, labels))
    assert torch.equal(model._levels(images), grey.flatten(1) // 16)
    assert not torch.equal(model._levels(((grey + 16) % 256) / 127.5 - 1), grey.flatten(1) // 16)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_number_changes_no_logits_up_to_its_own(patch: int) -> None:
    network = wild((3, 4, 4), patch=patch, depth=2).network.eval()
    rng = torch.Generator().manual_seed(0)
    levels, y = torch.randint(0, 4, (1, 48), generator=rng), torch.zeros(1).long()
    a = torch.randn(1, augmentation.CONDITIONS, generator=rng)
    before = network(levels, y, a)
    for j in range(48):
        changed = levels.clone()
        changed[0, j] = 3 - changed[0, j]
        after = network(changed, y, a)
        assert torch.equal(after[:, : j + 1], before[:, : j + 1])
        if j < 47:
            assert not torch.equal(after[:, j + 1], before[:, j + 1])


def test_the_global_network_sees_beyond_the_window() -> None:
    network = wild((1, 8, 8), patch=2, window=1).network.eval()
    levels, y, none = torch.zeros(1, 64).long(), torch.zeros(1).long(), torch.zeros(1, augmentation.CONDITIONS)
    changed = levels.clone()
    changed[0, 0] = 3
    assert not torch.equal(network(levels, y, none)[0, -1], network(changed, y, none)[0, -1])


@pytest.mark.parametrize("patch", [1, 2])
def test_cached_sampling_is_sampling_by_full_passes(patch: int) -> None:
    network = wild((3, 4, 4), patch=patch, depth=2, levels=16).network.eval()
    uniform = torch.rand(16, 48, generator=torch.Generator().manual_seed(0))
    y, none = torch.arange(16) % 2, torch.zeros(16, augmentation.CONDITIONS)
    slow = torch.zeros(16, 48).long()
    with torch.no_grad():
        for i in range(48):
            below = (network(slow, y, none)[:, i] / 0.8).softmax(-1).cumsum(-1)
            slow[:, i] = (below <= uniform[:, i : i + 1] * below[:, -1:]).sum(-1)
        assert torch.equal(network.draw(y, uniform, 0.8), slow)
    assert len(slow.unique()) > 8


def test_samples_are_as_frequent_as_they_are_probable() -> None:
    model, n = wild((1, 1, 2), temperature=0.8, block_images=1000), 8000
    cells = density.cells(model.sample(torch.ones(n).long(), range(n))).flatten(1) // 64
    seen = torch.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16) / n
    p = probabilities(model, every_image((1, 1, 2), 4), 1)
    assert bool(((seen - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1e-4).all())


def test_temperature_zero_is_the_likeliest_level_after_the_likeliest() -> None:
    model = wild((1, 1, 2), temperature=1e-4, block_images=8)
    drawn = density.cells(model.sample(torch.zeros(8).long(), range(8))).flatten(1) // 64
    joint = probabilities(wild((1, 1, 2)), every_image((1, 1, 2), 4), 0).view(4, 4)
    first = joint.sum(1).argmax()
    assert drawn.tolist() == [[int(first), int(joint[first].argmax())]] * 8


def test_a_coarse_level_is_filled_with_all_of_its_grey_levels() -> None:
    grey = to_uint8(wild((1, 4, 4), levels=2, block_images=64).sample(torch.zeros(256).long(), range(256)))
    seen = torch.bincount(grey.flatten().long(), minlength=256)
    assert bool((seen > 0).all()) and float(seen[:128].max()) < 3 * float(seen[:128].double().mean())


def test_fitted_to_two_correlated_pixels_it_gives_back_their_table() -> None:
    """Two classes over 4 x 4 pairs of levels: equal pixels in class 0, opposite ones in class 1, and some chance."""
    rng = torch.Generator().manual_seed(0)
    tables = torch.stack([0.7 * torch.eye(4) / 4 + 0.3 / 16, 0.7 * torch.eye(4).flip(0) / 4 + 0.3 / 16])
    pairs = torch.multinomial(tables.view(2, 16), 500, replacement=True, generator=rng).flatten()
    labels = torch.arange(2).repeat_interleave(500)
    images = ((torch.stack([pairs // 4, pairs % 4], 1) + 0.5) / 2 - 1).view(-1, 1, 1, 2)
    model = build((1, 1, 2), steps=150, batch_images=256, augment=0.0).fit(images, labels, seed=0)
    for c in range(2):
        empirical = torch.bincount(pairs[labels == c], minlength=16) / 500
        learned = probabilities(model, every_image((1, 1, 2), 4), c)
        assert float((learned - empirical).abs().sum()) / 2 < 0.06  # in total variation; the independent model has 0.5


def test_the_order_is_patch_by_patch_and_the_window_holds_what_came_before() -> None:
    assert raster((1, 2, 4), 2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert raster((3, 1, 2), 1).tolist() == [0, 2, 4, 1, 3, 5]
    order = raster((1, 4, 6), 2)
    window = neighbours((1, 4, 6), order, 1)
    rows, columns = order // 6, order % 6
    for i in range(24):
        near = ((rows - rows[i]).abs() <= 1) & ((columns - columns[i]).abs() <= 1)
        expected = [j for j in range(i) if near[j]]
        assert sorted(j for j in window[i].tolist() if j < 24) == expected
    plain = neighbours((1, 4, 6), raster((1, 4, 6), 1), 2)
    assert plain.shape == (24, 12)  # of 24 offsets those above and to the left


def test_cosines_are_orthogonal_and_few_of_them_are_smooth() -> None:
    basis = cosines(16, 16)
    torch.testing.assert_close(basis.mT @ basis, torch.diag(torch.tensor([16.0] + [8.0] * 15)), atol=1e-4, rtol=0)
    assert float((cosines(256, 8)[1:] - cosines(256, 8)[:-1]).abs().max()) < 0.1


def test_patches_that_do_not_tile_the_image_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"patch=3.*divisor.*patch=1"):
        build((1, 8, 8), patch=3)


def test_a_model_leaves_the_state_of_torch_random_numbers_alone() -> None:
    before = torch.random.get_rng_state()
    build((1, 4, 4), steps=2, dropout=0.2).fit(torch.zeros(4, 1, 4, 4), torch.tensor([0, 0, 1, 1]), seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
