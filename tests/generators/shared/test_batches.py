"""Rows of a batch: classes in the shares asked for, images moved only where the network is told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.contracts_settings import SETTINGS
from pipeline.generators.shared.batches import Batches, train
from pipeline.generators.vae import VaeConfig

LABELS = torch.cat([torch.zeros(90), torch.ones(10)]).long()
IMAGES = torch.arange(100).float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8) / 100


def batches(images: Tensor = IMAGES, labels: Tensor = LABELS, **changes: float) -> Batches:
    settings = {"class_power": 0.0, "augment": 0.0, "batch_images": 4000} | changes
    return Batches((images, labels), VaeConfig(**{**SETTINGS["vae"], **settings}), seed=0, name="x")


def test_class_power_is_the_share_of_evenness() -> None:
    shares = [float((batches(class_power=p)(0).labels == 1).float().mean()) for p in (0.0, 0.5, 1.0)]
    assert abs(shares[0] - 0.1) < 0.02 and abs(shares[1] - 0.25) < 0.03 and abs(shares[2] - 0.5) < 0.03


def test_without_augmentation_images_are_the_rows_and_nothing_is_told() -> None:
    batch = batches()(3)
    rows = (batch.images[:, 0, 0, 0] * 100).round().long()
    assert torch.equal(LABELS[rows], batch.labels) and torch.equal(batch.images, IMAGES[rows])
    assert not batch.conditions.any()


def test_a_moved_image_is_told() -> None:
    slope = torch.linspace(-1, 1, 8).expand(1, 1, 8, 8)
    moved = batches(slope, torch.zeros(1).long(), augment=0.3, batch_images=200)(0)
    changed = (moved.images - slope).flatten(1).abs().amax(1) > 1e-4
    told = moved.conditions.abs().sum(1) > 0
    assert bool(told[changed].all()) and 0.2 < float(changed.float().mean()) < 1.0


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    one, again, other = batches()(5), batches()(5), batches()(6)
    assert torch.equal(one.images, again.images) and not torch.equal(one.images, other.images)
    assert torch.equal(torch.rand(3, generator=one.rng), torch.rand(3, generator=again.rng))


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_fit_decays_matrices_by_what_it_is_told(decay: float) -> None:
    config = VaeConfig(**{**SETTINGS["vae"], "steps": 3, "batch_images": 2, "lr": 0.1, "ema": 0.0})
    network = nn.Linear(2, 2)
    nn.init.ones_(network.weight)
    data = IMAGES, LABELS
    train(network, config, data, lambda batch: 0 * network.weight.sum(), weight_decay=decay, seed=0, name="x", folder=None)
    assert not network.training
    assert (float(network.weight.detach().mean()) < 1.0) == (decay > 0)
