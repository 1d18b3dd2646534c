"""Demodulation, truncation, style mixing, noise inputs and adaptive augmentation against what the papers say of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.contracts_settings import SETTINGS, digits
from pipeline.core.seeds import noise, torch_stream
from pipeline.errors import ConfigError
from pipeline.generators import stylegan2
from pipeline.generators.shared import adversarial
from pipeline.generators.stylegan2 import Discriminator, Generator, StyleGan2, StyleGan2Config, crossover, mixed, modulated
from pipeline.runtime import training

SHAPE = (1, 8, 8)


def build(shape: tuple[int, int, int] = SHAPE, **changes: object) -> StyleGan2:
    return StyleGan2(StyleGan2Config(**{**SETTINGS["stylegan2"], **changes}), shape=shape, n_classes=3)


def untrained(**changes: object) -> StyleGan2:
    """A model of random weights whose noise inputs count."""
    model = build(**changes)
    with torch_stream(0, "test"):
        generator, _ = model.players()
    for layer in generator.convolutions:
        nn.init.constant_(layer.strength, 0.3)
    generator.take_averages(torch.Generator().manual_seed(0))
    model.generator = generator
    return model


def explicit(x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool) -> Tensor:
    """Karras et al., 2020, eq. 1 and 3, with a filter of its own for each image."""
    own = weight[None] * style[:, None, :, None, None]
    if demodulate:
        own = own / (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    return torch.cat([F.conv2d(x[i : i + 1], own[i], padding=weight.shape[-1] // 2) for i in range(len(x))])


@pytest.mark.parametrize("demodulate", [True, False])
def test_scaled_activations_equal_a_filter_for_each_image(demodulate: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    x, style = torch.randn(4, 6, 5, 5, generator=rng), torch.randn(4, 6, generator=rng)
    weight = torch.randn(7, 6, 3, 3, generator=rng)
    out = modulated(x, weight, style, demodulate=demodulate)
    torch.testing.assert_close(out, explicit(x, weight, style, demodulate=demodulate), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_demodulated_outputs_have_variance_one_whatever_the_style(scale: float) -> None:
    rng = torch.Generator().manual_seed(0)
    x, weight = torch.randn(16, 32, 12, 12, generator=rng), torch.randn(32, 32, 3, 3, generator=rng)
    style = scale * torch.randn(16, 32, generator=rng).exp()
    inside = modulated(x, weight, style, demodulate=True)[:, :, 1:-1, 1:-1]
    assert float(inside.std()) == pytest.approx(1.0, abs=0.03)
    assert float(modulated(x, weight, style, demodulate=False).std()) != pytest.approx(1.0, abs=0.5)


def test_equalised_weights_are_of_scale_one_and_keep_the_scale_of_activations() -> None:
    with torch_stream(0, "test"):
        linear, conv = stylegan2.Linear(500, 400), stylegan2.Conv(64, 64)
        slow = stylegan2.Linear(500, 400, rate=0.1)
        x, images = torch.randn(200, 500), torch.randn(8, 64, 10, 10)
    for weight in (linear.weight, conv.weight):
        assert float(weight.detach().std()) == pytest.approx(1.0, abs=0.02)
    for out in (linear(x), slow(x), conv(images)[:, :, 1:-1, 1:-1]):
        assert float(out.detach().std()) == pytest.approx(1.0, abs=0.05)


def test_without_truncation_all_is_as_it_was_and_with_it_whole_the_average_remains() -> None:
    labels, seeds = torch.tensor([0, 1, 2, 1]), [1, 2, 3, 4]
    plain, average = untrained(), untrained(truncation=0.0)
    for model in (plain, average):
        for layer in model.generator.convolutions:
            nn.init.zeros_(layer.strength)  # noise inputs are not truncated
    generator = plain.generator
    with torch.no_grad():
        drawn = noise(seeds, (generator.draws,))
        z, noises = drawn.tensor_split([generator.latent], dim=1)
        styles = generator.mapping(z, labels)[:, None].expand(-1, generator.layers, -1)
        torch.testing.assert_close(plain.sample(labels, seeds), generator.synthesis(styles, noises))
        means = generator.average[labels][:, None].expand(-1, generator.layers, -1)
        torch.testing.assert_close(average.sample(labels, seeds), generator.synthesis(means, noises))
    assert torch.equal(average.sample(labels, seeds), average.sample(labels, [9, 8, 7, 6]))
    assert not torch.equal(plain.sample(labels, seeds), plain.sample(labels, [9, 8, 7, 6]))
    images = average.sample(torch.tensor([0, 1, 2]), [1, 1, 1])
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])


def test_the_average_style_is_the_mean_over_z() -> None:
    generator = untrained().generator
    with torch.no_grad():
        z = torch.randn(4000, generator.latent, generator=torch.Generator().manual_seed(9))
        mean = generator.mapping(z, torch.full((4000,), 2)).mean(0)
    torch.testing.assert_close(generator.average[2], mean, atol=0.15, rtol=0)
    assert float((generator.average[1] - mean).abs().max()) > 0.3


def test_noise_inputs_change_details_and_come_from_the_seed() -> None:
    model = untrained()
    generator = model.generator
    drawn = torch.randn(1, generator.draws, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    drawn[1, generator.latent :] = torch.randn(generator.draws - generator.latent, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([1, 1])
    with torch.no_grad():
        a, b = generator(drawn, label)
        drawn[1] = torch.randn(generator.draws, generator=torch.Generator().manual_seed(1))
        _, other = generator(drawn, label)
    assert 0 < float((a - b).norm()) < float((a - other).norm())
    one, again, another = model.sample(torch.tensor([1, 1, 1]), [5, 5, 6])
    assert torch.equal(one, again) and not torch.equal(one, another)


def test_mixing_takes_the_other_style_from_a_random_layer_on() -> None:
    rng = torch.Generator().manual_seed(0)
    w, other = torch.zeros(4, 3), torch.ones(4, 3)
    out = mixed(w, other, torch.tensor([1, 2, 4, 5]), 5)
    assert out[:, :, 0].tolist() == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    cut = crossover(4000, 5, 0.5, rng)
    assert float((cut == 5).double().mean()) == pytest.approx(0.5, abs=0.03)
    assert set(cut.tolist()) == {1, 2, 3, 4, 5}
    assert bool((crossover(100, 5, 0.0, rng) == 5).all()) and bool((crossover(100, 5, 1.0, rng) < 5).all())


def test_a_seldom_penalty_counts_for_the_steps_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "gradient_penalty", lambda logits, images: 0 * logits.sum() + 8.0)
    step, losses = training.Learner.step, dict[int, list[float]]()

    def noted(self: training.Learner, loss: Tensor, k: int) -> float:
        losses.setdefault(k, []).append(float(loss.detach()))
        return step(self, loss, k)

    monkeypatch.setattr(training.Learner, "step", noted)
    first: dict[float, float] = {}
    for r1 in (0.0, 0.5):
        losses.clear()
        build(steps=2, r1=r1, r1_every=4).fit(*digits(), seed=0)
        first[r1] = losses[0][0]
        assert losses[1][0] < 4  # no penalty in the second step
    assert first[0.5] - first[0.0] == pytest.approx(0.5 * 0.5 * 4 * 8.0, rel=1e-3)


def test_augmentation_rises_where_the_discriminator_is_sure_and_falls_otherwise() -> None:
    discriminator = Discriminator(SHAPE, 3, width=8)
    sure, unsure, seen = torch.ones(16), torch.tensor([1.0, -1.0] * 8), []
    for _ in range(40):
        discriminator.adapt(sure, target=0.6, step=0.01, most=0.2)
        seen.append(float(discriminator.p))
    assert seen == sorted(seen) and seen[30] > 0.1 and seen[-1] == pytest.approx(0.2)  # never above `most`
    for _ in range(60):
        discriminator.adapt(unsure, target=0.6, step=0.01, most=0.2)
    assert float(discriminator.p) == 0.0 and float(discriminator.sure) == pytest.approx(0.0, abs=0.01)
    assert {"p", "sure"} <= discriminator.state_dict().keys()


def test_the_logit_is_a_projection_on_the_label() -> None:
    discriminator = Discriminator(SHAPE, 3, width=8)
    images, labels = torch.rand(6, *SHAPE) * 2 - 1, torch.tensor([0, 1, 2, 0, 1, 2])
    phi = discriminator.phi(images, labels)
    projected = torch.stack([discriminator.label.weight[y] @ row for y, row in zip(labels, phi, strict=True)])
    expected = discriminator.psi(phi).squeeze(1) + projected / phi.shape[1] ** 0.5
    torch.testing.assert_close(discriminator(images, labels), expected)


class Killed(Exception):
    pass


def test_both_networks_go_on_to_the_same_weights_p_and_averages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runtime.training.CHECKPOINT_SECONDS", 0.0)
    settings = {"steps": 12, "ada_images": 500, "ada_target": 0.0, "r1_every": 3}
    kept: list[dict[str, Tensor]] = []
    loop = training.loop

    def spied(learners: dict[str, training.Learner], *args: object, **rest: object) -> None:
        loop(learners, *args, **rest)  # type: ignore[arg-type]
        kept.append({f"{n}.{k}": v.clone() for n, learner in learners.items() for k, v in learner.tensors().items()})

    monkeypatch.setattr(adversarial, "loop", spied)
    whole = build(**settings).fit(*digits(), seed=5).generator.state_dict()
    step, calls = training.Learner.step, []

    def dies_between(self: training.Learner, loss: Tensor, k: int) -> float:
        calls.append(k)
        if calls.count(6) == 2:  # after the discriminator's step, before the generator's
            raise Killed
        return step(self, loss, k)

    with monkeypatch.context() as patch:
        patch.setattr(training.Learner, "step", dies_between)
        with pytest.raises(Killed):
            build(**settings).fit(*digits(), seed=5, folder=tmp_path)
    again = build(**settings).fit(*digits(), seed=5, folder=tmp_path).generator.state_dict()
    undisturbed, resumed = kept
    assert float(undisturbed["discriminator.network.p"]) > 0  # it moved
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert float(whole["average"].abs().max()) > 0 and all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_fit_that_collapses_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, drawn, *rest: forward(self, torch.ones_like(drawn), *rest))
    model = build(steps=4).fit(*digits(), seed=0)
    assert "mode collapse of the averaged weights" in capsys.readouterr().err
    assert float(model.generator.spread.max()) < 1e-3


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 256, 256)])
def test_other_sizes_and_colours_are_built(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "WATCHED", 2)
    images, labels = torch.rand(4, *shape) * 2 - 1, torch.tensor([0, 1, 2, 0])
    model = build(shape, width=4, steps=1, batch_images=2, block_images=1).fit(images, labels, seed=0)
    assert model.sample(labels[:1], [1]).shape == (1, *shape)


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [(18, {}, "image_size=18.*image_size=16"), (8, {"augment": 0.9}, r"stylegan2\.augment=0\.9.*at most 0\.8")],
)
def test_settings_that_cannot_work_are_refused(size: int, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build((1, size, size), **changes)
