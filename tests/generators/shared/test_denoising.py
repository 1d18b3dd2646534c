"""What diffusion and flow matching share: guidance, the pull between classes, the second network, refused settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers.contracts_settings import SETTINGS, digits
from pipeline.errors import ConfigError
from pipeline.generators.diffusion import Diffusion
from pipeline.generators.flow_matching import FlowMatching, FlowMatchingConfig
from pipeline.generators.shared import denoising
from pipeline.generators.shared.denoising import Denoising, Example
from pipeline.runtime import training

SHAPE = (1, 8, 8)
Family = type[Diffusion] | type[FlowMatching]
FAMILIES = pytest.mark.parametrize("family", [Diffusion, FlowMatching])
GUIDED = {"guidance": "autoguidance", "guide_steps": 6}


def settings(**changes: object) -> Denoising:
    return FlowMatchingConfig(**{**SETTINGS["flow_matching"], **changes})


class Table(nn.Module):
    """A network that answers each class with its own number."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, conditions: Tensor) -> Tensor:
        self.asked.append(labels)
        return self.values[labels].view(-1, 1, 1, 1).expand_as(x)


def predicted(network: Table, guide: Table, t: float = 0.5, **changes: object) -> list[float]:
    networks = nn.ModuleDict({"network": network, "guide": guide})
    predict = denoising.guided(networks, settings(**changes), 3, torch.tensor([0, 1, 2]))
    return [round(float(v), 4) for v in predict(torch.zeros(3, 1, 2, 2), t)[:, 0, 0, 0].detach()]


def test_guidance_moves_away_from_the_worse_prediction() -> None:
    network, guide = Table([1.0, 2.0, 3.0, 0.5]), Table([0.0, 1.0, 5.0, 9.0])
    assert predicted(network, guide, guidance="classifier_free", guidance_scale=2.0) == [1.5, 3.5, 5.5]
    assert predicted(network, guide, guidance="autoguidance", guidance_scale=2.0) == [2.0, 3.0, 1.0]


def test_no_guidance_scale_one_and_an_equal_guide_are_plain() -> None:
    network, guide = Table([1.0, 2.0, 3.0, 0.5]), Table([0.0, 1.0, 5.0, 9.0])
    plain = [1.0, 2.0, 3.0]
    assert predicted(network, guide, guidance="none", guidance_scale=3.0) == plain and len(network.asked) == 1
    for kind in ("classifier_free", "autoguidance"):
        assert predicted(network, guide, guidance=kind, guidance_scale=1.0) == plain
    assert len(network.asked) == 3 and not guide.asked  # what is not needed is not computed
    assert predicted(network, network, guidance="autoguidance", guidance_scale=3.0) == plain


@pytest.mark.parametrize(("t", "inside"), [(0.1, False), (0.2, True), (0.5, True), (0.7, True), (0.9, False)])
def test_guidance_keeps_to_its_interval(t: float, inside: bool) -> None:
    network = Table([1.0, 2.0, 3.0, 0.5])
    where = {"guidance_from": 0.2, "guidance_to": 0.7, "guidance": "classifier_free", "guidance_scale": 2.0}
    assert (predicted(network, network, t, **where) != [1.0, 2.0, 3.0]) == inside


def loss(network: Table, balance: float, others: list[int]) -> Tensor:
    example = Example(torch.zeros(2, 1, 2, 2), torch.tensor([0.5, 1.0]), torch.zeros(2, 1, 2, 2))
    return denoising.loss(network, example, torch.tensor([0, 1]), torch.tensor(others), torch.zeros(2, 9), balance)


def test_the_pull_between_classes_is_off_at_no_cost_and_nothing_where_they_agree() -> None:
    network = Table([1.0, 3.0])
    with torch.no_grad():
        assert float(loss(network, 0.0, [1, 0])) == 5.0 and len(network.asked) == 1
        assert float(loss(network, 2.0, [0, 1])) == 5.0  # y' = y
        assert float(loss(Table([2.0, 2.0]), 2.0, [1, 0])) == 4.0
        assert float(loss(network, 2.0, [1, 0])) == pytest.approx(5.0 + 2 * 0.75 * 4 * 1.25)  # mean t, squared gap, 1 + 1/4


def test_the_pull_goes_both_ways_the_second_with_a_quarter() -> None:
    network = Table([0.0, 3.0])
    (loss(network, 1.0, [1, 1]) - loss(network, 0.0, [1, 1])).backward()
    gap, t = 3.0, 0.5  # of row 0; row 1 has y' = y
    assert network.values.grad is not None
    torch.testing.assert_close(network.values.grad, torch.tensor([-2 * gap, 2 * gap / 4]) * t / 2)


@FAMILIES
def test_a_killed_fit_with_a_guide_goes_on_to_the_same_weights(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = digits()
    monkeypatch.setattr("pipeline.runtime.training.CHECKPOINT_SECONDS", 0.0)
    name = family.name

    def fit(folder: Path | None = None) -> dict[str, Tensor]:
        config = family.Config(**{**SETTINGS[name], **GUIDED, "steps": 9, "dropout": 0.2, "balance": 0.5})
        return family(config, shape=SHAPE, n_classes=3).fit(images, labels, seed=5, folder=folder).networks.state_dict()

    undisturbed = fit()
    assert any(key.startswith("guide.") for key in undisturbed)
    step = training.Learner.step
    for dies in (4, 7):  # while the guide learns, and after
        folder = tmp_path / str(dies)
        folder.mkdir()

        def stop(self: training.Learner, value: Tensor, k: int, dies: int = dies) -> float:
            if k == dies:
                raise KeyboardInterrupt
            return step(self, value, k)

        with monkeypatch.context() as patch:
            patch.setattr(training.Learner, "step", stop)
            with pytest.raises(KeyboardInterrupt):
                fit(folder)
        resumed = fit(folder)
        assert all(torch.equal(undisturbed[key], resumed[key]) for key in undisturbed)


@FAMILIES
def test_the_guide_is_smaller_stops_early_and_is_saved(family: Family, tmp_path: Path) -> None:
    images, labels = digits()
    name = family.name
    trained: list[dict[str, Tensor]] = []
    for steps in (6, 9):
        config = family.Config(**{**SETTINGS[name], **GUIDED, "width": 32, "steps": steps, "guidance_scale": 2.0})
        model = family(config, shape=SHAPE, n_classes=3).fit(images, labels, seed=5)
        trained.append(model.networks["guide"].state_dict())
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])
    sizes = {key: sum(p.numel() for p in net.parameters()) for key, net in model.networks.items()}
    assert sizes["guide"] < sizes["network"] / 2
    model.save(tmp_path)
    y, seeds = torch.tensor([0, 1]), [1, 2]
    assert torch.equal(family.load(tmp_path).sample(y, seeds), model.sample(y, seeds))
    plain = model.config.model_copy(update={"guidance": "none"})
    guided = model.sample(y, seeds)
    model.config = plain
    assert not torch.equal(model.sample(y, seeds), guided)


@FAMILIES
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 3}, "multiple of 6.*patch=1"),
        ({"guidance": "classifier_free", "label_dropout": 0.0}, "label_dropout=0.1"),
        ({"guidance": "autoguidance", "guide_steps": 500}, "guide_steps=500.*at most steps=200"),
        ({"guidance_from": 0.6, "guidance_to": 0.4}, "guidance_from=0.6"),
    ],
)
def test_settings_that_cannot_work_are_refused(family: Family, changes: dict[str, object], message: str) -> None:
    name = family.name
    with pytest.raises(ConfigError, match=message):
        family(family.Config(**{**SETTINGS[name], **changes}), shape=SHAPE, n_classes=3)
