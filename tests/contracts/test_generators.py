"""One suite that every family of generative models passes, chosen by its traits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from helpers.contracts_settings import CLASSES, SETTINGS, SHAPE, digits
from pipeline.core.images import to_uint8
from pipeline.errors import DataError
from pipeline.generators.registry import family
from pipeline.generators.shared import density
from pipeline.generators.shared.base import GenerativeModel, HasEnergy, HasLogProb
from pipeline.generators.shared.batches import Trained
from pipeline.registry import GENERATORS
from pipeline.runtime import training

FAMILIES = tuple(GENERATORS.ours)
EXAMPLE = "mean"  # the family that docs/generators.md writes out
PAGE = Path(__file__).parents[2] / "docs/generators.md"


@pytest.fixture(scope="module", autouse=True)
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The example of the page is a module, and registered as a package would register it."""
    module = tmp_path_factory.mktemp("package") / "module_of_the_page.py"
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module.write_text(code, encoding="utf-8")
    points = {EXAMPLE: EntryPoint(EXAMPLE, f"{module.stem}:Mean", GENERATORS.group)}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(module.parent)
        patch.setitem(GENERATORS.__dict__, "outside", points)
        yield


@pytest.fixture(scope="module", params=[*FAMILIES, EXAMPLE])
def fitted(request: pytest.FixtureRequest) -> GenerativeModel:
    kind = family(request.param)
    model = kind(kind.Config(**SETTINGS.get(request.param, {})), shape=SHAPE, n_classes=CLASSES)
    return model.fit(*digits(), seed=1)


@pytest.mark.parametrize("name", [*FAMILIES, EXAMPLE])
def test_every_setting_has_a_valid_default_and_a_line_that_explains_it(name: str) -> None:
    kind = family(name)
    assert kind.name == name
    assert kind.Config.model_validate(kind.Config().model_dump()) == kind.Config()
    for key, field in kind.Config.model_fields.items():
        assert field.description and "\n" not in field.description and len(field.description) <= 110, key


LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 1])
SEEDS = [11, 22, 33, 44, 55, 66, 77]


def test_samples_are_finite_in_range_and_of_the_declared_form(fitted: GenerativeModel) -> None:
    out = fitted.sample(LABELS, SEEDS)
    assert out.shape == (7, *SHAPE) and out.dtype == torch.float32
    assert bool(out.isfinite().all()) and float(out.abs().max()) <= 1.0


def test_an_image_is_a_function_of_label_and_seed_whatever_the_batch(fitted: GenerativeModel) -> None:
    together = to_uint8(fitted.sample(LABELS, SEEDS))
    for i in (0, 3, 6):
        assert torch.equal(to_uint8(fitted.sample(LABELS[i : i + 1], [SEEDS[i]])), together[i : i + 1])
    turned = torch.arange(6, -1, -1)
    assert torch.equal(to_uint8(fitted.sample(LABELS[turned], SEEDS[::-1])), together[turned])


def test_other_seeds_give_other_images(fitted: GenerativeModel) -> None:
    a, b = fitted.sample(torch.tensor([1, 1]), [1, 2])
    assert not torch.equal(a, b)


def test_no_labels_give_no_images(fitted: GenerativeModel) -> None:
    assert fitted.sample(torch.empty(0, dtype=torch.int64), []).shape == (0, *SHAPE)


def test_saved_and_loaded_it_samples_the_same(fitted: GenerativeModel, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    assert [f.suffix for f in tmp_path.iterdir()] == [".safetensors"]
    again = type(fitted).load(tmp_path)
    assert torch.equal(again.sample(LABELS, SEEDS), fitted.sample(LABELS, SEEDS))


@pytest.mark.fault(15, "each family: a torn model file, or one of another family")
def test_a_torn_or_foreign_file_is_refused(fitted: GenerativeModel, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"model\.safetensors"):
        type(fitted).load(tmp_path)
    other = family("naive" if type(fitted) is not family("naive") else "external")
    kind = other(other.Config(**SETTINGS[other.name]), shape=SHAPE, n_classes=CLASSES)
    kind.fit(*digits(), seed=0).save(tmp_path)
    with pytest.raises(DataError, match="family"):
        type(fitted).load(tmp_path)


def test_classes_look_like_themselves(fitted: GenerativeModel) -> None:
    """The mean sample of a class is nearest to the mean real image of that class: labels arrive where they belong."""
    images, labels = digits()
    real = torch.stack([images[labels == c].mean(0) for c in range(CLASSES)]).flatten(1)
    for c in range(CLASSES):
        mean = fitted.sample(torch.full((48,), c), range(48)).mean(0).flatten()
        assert int((real - mean).square().sum(1).argmin()) == c


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.fault(6, "each family: killed, the newest checkpoint torn, the same model")
def test_a_killed_fit_goes_on_to_the_same_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = family(name)
    if not issubclass(kind.Config, Trained):
        return  # nothing to go on with: no training loop
    monkeypatch.setattr("pipeline.runtime.training.CHECKPOINT_SECONDS", 0.0)
    step = training.Learner.step

    def model(folder: Path | None, seed: int = 5) -> bytes:
        config = kind.Config(**{**SETTINGS[name], "steps": 10})
        place = tmp_path / "model"
        kind(config, shape=SHAPE, n_classes=CLASSES).fit(*digits(), seed=seed, folder=folder).save(place)
        return (place / "model.safetensors").read_bytes()

    def dies_at_7(self: training.Learner, loss: torch.Tensor, k: int) -> float:
        if k == 7:
            raise Killed
        return step(self, loss, k)

    undisturbed = model(None)
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(training.Learner, "step", dies_at_7)
        with pytest.raises(Killed):
            model(checkpoints)
    newest = sorted(checkpoints.glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1] + b"\xff")  # a torn checkpoint: the one before it is taken
    assert model(checkpoints) == undisturbed
    assert model(None, seed=6) != undisturbed


def test_the_density_prefers_real_images_to_noise_and_the_right_class(fitted: GenerativeModel) -> None:
    if type(fitted).traits.likelihood == "none":
        assert not isinstance(fitted, HasLogProb)
        return
    assert isinstance(fitted, HasLogProb)
    images, labels = (part[:180] for part in digits())  # a third; their classes alternate
    images = density.dequantise(images, torch.Generator().manual_seed(1))
    noise = torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    right = fitted.log_prob(images, labels)
    assert right.shape == (len(images),) and right.dtype == torch.float64 and bool(right.isfinite().all())
    torch.testing.assert_close(fitted.log_prob(images[5:8], labels[5:8]), right[5:8], rtol=1e-4, atol=1e-3)
    assert float(right.median()) > float(fitted.log_prob(noise, torch.zeros(64).long()).median())
    assert float((right > fitted.log_prob(images, (labels + 1) % CLASSES)).double().mean()) > 0.9


def test_an_energy_prefers_real_images_to_noise_and_is_no_likelihood(fitted: GenerativeModel) -> None:
    if type(fitted).traits.density != "unnormalised":
        assert not isinstance(fitted, HasEnergy)
        return
    assert isinstance(fitted, HasEnergy) and not isinstance(fitted, HasLogProb)
    images, labels = digits()
    noise = torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert float(fitted.energy(images, labels).median()) < float(fitted.energy(noise, torch.zeros(64).long()).median())
