"""Losses, R1 and projection against closed forms, the watch for mode collapse, resumed fits, and what the settings refuse."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers.contracts_settings import SETTINGS, digits
from pipeline.errors import ConfigError
from pipeline.generators.gan import Discriminator, Gan, GanConfig, Generator
from pipeline.generators.shared import adversarial
from pipeline.generators.shared.batches import Batch
from pipeline.generators.stylegan2 import StyleGan2
from pipeline.runtime import training

SHAPE = (1, 8, 8)


def build(shape: tuple[int, int, int] = SHAPE, **changes: object) -> Gan:
    return Gan(GanConfig(**{**SETTINGS["gan"], **changes}), shape=shape, n_classes=3)


def test_losses_are_the_cross_entropy_and_its_non_saturating_form() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    p_real, p_fake = torch.sigmoid(real), torch.sigmoid(fake)
    cross_entropy = -(p_real.log().mean() + (1 - p_fake).log().mean())
    torch.testing.assert_close(adversarial.discriminator_loss(real, fake), cross_entropy)
    torch.testing.assert_close(adversarial.generator_loss(fake), -p_fake.log().mean())
    undecided = torch.zeros(3)
    assert float(adversarial.discriminator_loss(undecided, undecided)) == pytest.approx(2 * math.log(2))


def test_a_sure_discriminator_leaves_the_generator_its_gradient() -> None:
    fake = torch.tensor([-20.0], requires_grad=True)
    adversarial.generator_loss(fake).backward()
    assert float(fake.grad) == pytest.approx(-1.0)  # log(1 - sigmoid) would give -2e-9


def test_r1_is_the_squared_gradient_and_can_be_learned_from() -> None:
    """D(x) = a |x|^2 + <b, x> has the gradient 2 a x + b, so R1 = E |2 a x + b|^2 and dR1/da = E <4 x, 2 a x + b>."""
    rng = torch.Generator().manual_seed(0)
    x, b = torch.randn(5, 1, 4, 4, generator=rng).requires_grad_(), torch.randn(1, 4, 4, generator=rng)
    a = torch.tensor(0.3, requires_grad=True)
    penalty = adversarial.gradient_penalty((a * x.square() + b * x).flatten(1).sum(1), x)
    gradient = (2 * a * x + b).detach()
    torch.testing.assert_close(penalty.detach(), gradient.square().flatten(1).sum(1).mean())
    penalty.backward()
    torch.testing.assert_close(a.grad, (4 * x.detach() * gradient).flatten(1).sum(1).mean())


def test_the_logit_is_a_projection_on_the_label() -> None:
    discriminator = Discriminator(SHAPE, 3, width=8, depth=1)
    nn.init.normal_(discriminator.label.weight)
    images, labels = torch.rand(6, *SHAPE) * 2 - 1, torch.tensor([0, 1, 2, 0, 1, 2])
    phi = discriminator.phi(images, labels)
    psi = phi @ discriminator.psi.weight[0] + discriminator.psi.bias
    expected = torch.stack([discriminator.label.weight[y] @ row for y, row in zip(labels, phi, strict=True)]) + psi
    torch.testing.assert_close(discriminator(images, labels), expected)


def test_the_deviation_within_a_class_shows_what_is_alike() -> None:
    x = torch.zeros(5, 2, 4, 4)
    x[0], x[1] = 1.0, -1.0  # class 0 deviates by 1 everywhere, class 1 not at all, class 2 has one image
    labels = torch.tensor([0, 0, 1, 1, 2])
    out = adversarial.class_deviation(x, labels)
    assert torch.equal(out[:, :2], x)
    torch.testing.assert_close(out[:, 2].mean((1, 2)), torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]), atol=1e-3, rtol=0)
    apart = adversarial.class_deviation(x + 5 * labels.view(-1, 1, 1, 1), labels)  # classes that differ are no spread
    torch.testing.assert_close(apart[:, 2], out[:, 2], atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", [Gan, StyleGan2])
def test_the_discriminator_is_shown_what_the_generator_made(
    family: type[Gan] | type[StyleGan2], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(adversarial, "moved", lambda images, p, rng: seen.append(images.detach().clone()) or images)
    config = family.Config(**{**SETTINGS[family.name], "steps": 1})
    family(config, shape=SHAPE, n_classes=3).fit(*digits(), seed=0)
    real, shown, judged = seen  # the two of the discriminator's step, the one of the generator's
    torch.testing.assert_close(shown, judged)
    assert float(shown.std()) > 1e-3 and not torch.equal(real, shown)


def test_more_than_half_of_the_images_stay_where_they_are_and_gradients_pass() -> None:
    images = torch.rand(400, *SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = adversarial.moved(images, 0.1, torch.Generator().manual_seed(1))
    same = (out == images).flatten(1).all(1)
    assert 0.5 < float(same.double().mean()) < 0.68  # (1 - 0.1)^5 = 0.59
    out.sum().backward()
    assert images.grad is not None and bool((images.grad[same] == 1).all())
    assert torch.equal(adversarial.moved(images, 0.0, torch.Generator().manual_seed(1)), images)


def test_a_moved_image_is_not_mirrored() -> None:
    images = torch.linspace(1, -1, 8).expand(300, 1, 8, 8)
    out = adversarial.moved(images, 0.8, torch.Generator().manual_seed(0))
    assert bool((out[..., :4].mean((1, 2, 3)) > out[..., 4:].mean((1, 2, 3))).all()) and not torch.equal(out, images)


def test_a_fit_draws_unmoved_rows_and_gives_each_network_its_plan() -> None:
    images, labels = digits()
    plans: list[training.Optimisation] = []

    def update(batch: Batch, making: training.Learner, telling: training.Learner) -> float:
        plans.extend([making.plan, telling.plan])
        assert all(any(torch.equal(image, row) for row in images) for image in batch.images)
        return 0.0

    config = GanConfig(**{**SETTINGS["gan"], "augment": 0.8, "steps": 1, "lr": 0.01, "ema": 0.9})
    networks = Generator(SHAPE, 3, latent=8, width=8, depth=1), Discriminator(SHAPE, 3, width=8, depth=1)
    adversarial.fit(config, "gan", networks, (images, labels), update, clip=7.0, seed=0, folder=None)
    making, telling = plans
    assert (making.lr, making.ema, making.clip, making.betas) == (0.01, 0.9, 7.0, (0.0, 0.99))
    assert (telling.lr, telling.ema, telling.clip) == (adversarial.HASTE * 0.01, None, 7.0)


def test_a_frozen_network_passes_gradients_to_its_input_alone() -> None:
    network, x = nn.Linear(3, 1), torch.ones(2, 3, requires_grad=True)
    with adversarial.frozen(network):
        network(x).sum().backward()
    assert network.weight.grad is None and x.grad is not None
    assert network.weight.requires_grad


def test_the_watch_measures_spread_against_that_of_real_images(capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = digits()
    watch = adversarial.Watch(images, labels, 3)
    own = {c: images[labels == c][-adversarial.WATCHED :] for c in range(3)}
    shares = watch.shares(lambda y: own[int(y[0])])
    adversarial.warn(shares, 0.5, "gan", "at step 1")
    assert bool(((shares > 0.7) & (shares < 1.3)).all()) and capsys.readouterr().err == ""
    collapsed = watch.shares(lambda y: own[int(y[0])] if int(y[0]) != 1 else own[1][:1].expand(len(y), -1, -1, -1))
    adversarial.warn(collapsed, 0.5, "gan", "at step 1")
    assert float(collapsed[1]) == 0.0 and torch.equal(collapsed[[0, 2]], shares[[0, 2]])
    said = capsys.readouterr().err
    assert "mode collapse at step 1" in said and "class 1 (0.00)" in said and "gan.r1" in said


def test_a_class_of_one_image_is_measured_by_the_others() -> None:
    images, labels = torch.randn(5, *SHAPE), torch.tensor([0, 0, 0, 0, 1])
    watch = adversarial.Watch(images, labels, 2)
    assert float(watch.real[1]) == float(watch.real[0]) > 0


def test_a_fit_that_collapses_says_so_and_keeps_the_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, z, labels: forward(self, torch.zeros_like(z), labels))
    model = build(steps=4).fit(*digits(), seed=0)
    said = capsys.readouterr().err
    assert said.count("mode collapse at step") == 4 and "mode collapse of the averaged weights" in said
    model.save(tmp_path)
    kept = Gan.load(tmp_path).generator.spread
    assert kept.shape == (3,) and float(kept.max()) < 1e-3


class Killed(Exception):
    pass


def test_both_networks_go_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runtime.training.CHECKPOINT_SECONDS", 0.0)
    kept: list[dict[str, Tensor]] = []
    loop = training.loop

    def spied(learners: dict[str, training.Learner], *args: object, **rest: object) -> None:
        loop(learners, *args, **rest)  # type: ignore[arg-type]
        kept.append({f"{n}.{k}": v.clone() for n, learner in learners.items() for k, v in learner.tensors().items()})

    monkeypatch.setattr(adversarial, "loop", spied)
    build(steps=10).fit(*digits(), seed=5)
    step, calls = training.Learner.step, []

    def dies_between(self: training.Learner, loss: Tensor, k: int) -> float:
        calls.append(k)
        if calls.count(6) == 2:  # after the discriminator's step, before the generator's
            raise Killed
        return step(self, loss, k)

    with monkeypatch.context() as patch:
        patch.setattr(training.Learner, "step", dies_between)
        with pytest.raises(Killed):
            build(steps=10).fit(*digits(), seed=5, folder=tmp_path)
    build(steps=10).fit(*digits(), seed=5, folder=tmp_path)
    undisturbed, resumed = kept
    assert undisturbed.keys() == resumed.keys()
    assert {"generator.network.spread", "discriminator.network.label.weight"} <= undisturbed.keys()
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 20), (3, 96, 96)])
def test_other_sizes_and_colours_are_built(shape: tuple[int, int, int]) -> None:
    images, labels = torch.rand(4, *shape) * 2 - 1, torch.tensor([0, 1, 2, 0])
    model = build(shape, steps=1, batch_images=2, block_images=2).fit(images, labels, seed=0)
    assert model.sample(labels[:2], [1, 2]).shape == (2, *shape)


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (18, {}, "image_size=18.*doubled.*image_size=16"),
        (512, {}, "at most 256.*image_size=256"),
        (8, {"augment": 0.9}, r"gan\.augment=0\.9.*at most 0\.8.*augment=0\.4"),
    ],
)
def test_settings_that_cannot_work_are_refused(size: int, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build((1, size, size), **changes)
