"""Bayes' rule against a posterior known in closed form, and for models without a likelihood."""

from __future__ import annotations

import pytest
import torch

from helpers.contracts_settings import SETTINGS, digits
from pipeline.core.images import to_uint8
from pipeline.generators import bayes
from pipeline.generators.registry import family
from pipeline.registry import GENERATORS


class Normal:
    """x | y ~ N(m_y, 0.1^2) on one pixel."""

    means = torch.tensor([-0.1, 0.1, 0.5], dtype=torch.float64)

    shape = (1, 1, 1)

    def log_prob(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -0.5 * ((images.flatten().double() - self.means[labels]) / 0.1).square()


class Joint:
    """E(x, y) of a joint energy."""

    shape = (1, 1, 1)

    def energy(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -Normal().log_prob(images, labels)


@pytest.mark.parametrize("model", [Normal(), Joint()])
def test_the_posterior_of_normals_is_a_softmax_of_their_log_densities(model: object) -> None:
    pixels = torch.arange(0, 256, 5, dtype=torch.uint8).view(-1, 1, 1, 1)
    said = bayes.posterior(model, pixels, 3, seed=0)  # type: ignore[arg-type]
    assert said.shape == (52, 3) and said.dtype == torch.float64
    torch.testing.assert_close(said.sum(1), torch.ones(52).double())
    middle = said[(pixels.flatten() - 127).abs() < 4]  # half-way between the first two
    assert bool((middle[:, 0] - middle[:, 1]).abs().max() < 0.45) and bool((middle[:, 2] < 1e-3).all())
    x = (pixels.flatten().double() + 0.5) / 128 - 1
    exact = torch.softmax(-0.5 * ((x[:, None] - Normal.means) / 0.1).square(), 1)
    torch.testing.assert_close(said, exact, atol=0.08, rtol=0)


def test_batches_do_not_change_the_answer() -> None:
    pixels = torch.randint(0, 256, (150, 1, 1, 1), generator=torch.Generator().manual_seed(0)).byte()
    whole = bayes.posterior(Normal(), pixels, 3, seed=0)  # type: ignore[arg-type]
    part = bayes.posterior(Normal(), pixels[:70], 3, seed=0)  # type: ignore[arg-type]
    torch.testing.assert_close(whole[:70], part)


def test_the_naive_model_classifies_digits() -> None:
    images, labels = digits()
    model = family("naive")(family("naive").Config(**SETTINGS["naive"]), shape=(1, 8, 8), n_classes=3)
    classifier = bayes.classifier(model.fit(images[::2], labels[::2], seed=0), 3, 0)
    assert classifier is not None
    assert (classifier(to_uint8(images[1::2])).argmax(1) == labels[1::2].numpy()).mean() > 0.97


def test_families_without_a_density_have_no_posterior() -> None:
    able = set()
    for name in GENERATORS.ours:
        kind = family(name)
        model = kind(kind.Config(**SETTINGS[name]), shape=(1, 8, 8), n_classes=3)
        assert bayes.has_posterior(model) == (kind.traits.density in ("explicit", "approximate", "unnormalised"))
        assert (bayes.classifier(model, 3, 0) is not None) == bayes.has_posterior(model)
        able |= {name} if bayes.has_posterior(model) else set()
    assert "naive" in able and "external" not in able
