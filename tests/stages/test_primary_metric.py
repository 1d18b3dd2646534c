"""Another primary metric decides everything: choices on validation rows, baselines, verdict, equivalent real images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import digits_project, toy_metric
from pipeline import config
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.errors import ConfigError
from pipeline.evaluation import measures, score
from pipeline.metrics.predictions import Predictions
from pipeline.metrics.registry import named
from pipeline.stages import evaluate, train

LEARNT: dict[str, object] = {"steps": 100, "width": 16}  # enough to tell the digits apart
METRICS = ["worst_class_recall", "error_rate"]
pytestmark = pytest.mark.usefixtures("references")
Found = tuple[dict[str, Any], list[str], dict[str, Any]]


@pytest.fixture(autouse=True)
def another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_metric.install(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_project.write(tmp_path_factory.mktemp("digits"))


def params(metric: str, **sections: dict[str, object]) -> config.Params:
    evaluation = {"metric": metric, "bootstrap": 100} | sections.pop("evaluate", {})
    arms = {"real": ["real", "augment", "mixup"], "curve": [2]} | sections.pop("arms", {})
    return digits_project.params(arms=arms, evaluate=evaluation, classifier=LEARNT, **sections)


@pytest.fixture(scope="module", params=METRICS)
def trained(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(metric, runs): the stage train for real images and for a pool, with another primary metric."""
    metric, runs = request.param, tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        toy_metric.install(patch)
        train.run(params(metric), folder / "prepared", runs / "real")
        pools = folder / "pools/naive", folder / "checked/naive"
        train.run(params(metric), folder / "prepared", runs / "naive", "naive", *pools, runs / "real")
    return metric, runs


def read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


def asked(rows: Manifest, targets: np.ndarray) -> score.Asked:
    return score.Asked(digits_project.params(), (1, 8, 8), rows, targets)


def test_validation_chooses_by_it(trained: tuple[str, Path], folder: Path) -> None:
    name, runs = trained
    metric, val = named(name), Prepared(folder / "prepared").val()
    real, pool = read(runs / "real/choice.json"), read(runs / "naive/choice.json")
    targets, found = val.targets(digits_project.CLASSES).numpy(), {}
    for arm, row in real["validation"].items():
        predicted = asked(val, targets).of(runs / "real" / arm, 2)
        assert row["scores"] == [metric.score(p, targets) for p in predicted.probabilities]
        found[arm] = row["mean"]
    least, most = min(found.values()), max(found.values())
    assert least < most and found[real["best_real_arm"]] == (most if metric.higher_is_better else least)
    cells = {(cell["synthetic_fraction"], cell["labels"]): metric.merit(cell["score"]) for cell in pool["grid"]}
    assert cells[pool["synthetic_fraction"], pool["labels"]] == max(cells.values())


@pytest.fixture
def evaluated(trained: tuple[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Found]:
    """The stage evaluate, where the share of an arm's images that is told right is what the test says."""
    name, runs = trained

    def run(**right: float) -> Found:
        def made(asked: score.Asked, place: Path, seeds: int) -> Predictions:
            targets = asked.targets
            place_in_class = [np.flatnonzero(np.flatnonzero(targets == y) == i)[0] for i, y in enumerate(targets)]
            told = np.array(place_in_class) < 20 * right.get(place.name, 0.6)
            guess = np.where(told, targets, (targets + 1) % 10)
            return Predictions(np.tile(np.eye(10)[guess] * 0.8 + 0.02, (seeds, 1, 1)), targets)

        monkeypatch.setattr(score.Asked, "of", made)
        metrics, gains = tmp_path / "metrics.json", tmp_path / "gains.csv"
        evaluate.run(params(name), folder / "prepared", runs, metrics, gains, tmp_path / "evaluation")
        return read(metrics), gains.read_text().splitlines(), read(tmp_path / "evaluation/details.json")

    return run


def test_the_verdict_follows_its_direction(trained: tuple[str, Path], evaluated: Callable[..., Found]) -> None:
    name, _ = trained
    better = 1 if named(name).higher_is_better else -1
    for share, verdict in ((1.0, "gain"), (0.2, "harm"), (0.6, "no_gain")):
        metrics, gains, _ = evaluated(synthetic=share)
        gain = metrics["gain"][name]
        assert metrics["metric"] == name and metrics["verdict"] == verdict == metrics["generators"]["naive"]["verdict"]
        assert np.sign(gain["estimate"]) == better * {"gain": 1, "harm": -1, "no_gain": 0}[verdict]
        assert sum(row.startswith(f"synthetic,{name},") for row in gains) == 1
        assert len(metrics["arms"]["synthetic"]) == 9 and all(name in row for row in metrics["reference"].values())
        parts = metrics["decomposition"]
        assert parts["regularisation"]["estimate"] + parts["new_content"]["estimate"] == pytest.approx(
            gain["estimate"], abs=4e-6
        )


def test_the_baseline_and_the_warning_follow_it(trained: tuple[str, Path], evaluated: Callable[..., Found]) -> None:
    name, runs = trained
    metric, (metrics, _, _) = named(name), evaluated(synthetic=1.0)
    scores = {
        **read(runs / "real/choice.json")["validation"],
        "replay": read(runs / "naive/choice.json")["validation"]["replay"],
    }
    assert metrics["baseline"] == metric.best({arm: row["mean"] for arm, row in scores.items()})
    for share, beaten in ((0.01, True), (1.0, False)):
        _, _, details = evaluated(synthetic=1.0, **{metrics["baseline"]: share})
        assert any("beats the best real-only arm" in w for w in details["warnings"]) == beaten


def test_equivalent_real_images_follow_its_direction(evaluated: Callable[..., Found]) -> None:
    """The curve goes from 60 % right without more images to 80 % with 2 of each class."""
    curve = {"2": 0.8}
    none, some, beyond = (evaluated(synthetic=share, **curve)[0]["equivalent_real_images"] for share in (0.5, 0.7, 0.95))
    assert none["real_images_per_class"] == 0.0 and not none["beyond"]
    assert 0 < some["real_images_per_class"] < 2 and not some["beyond"]
    assert beyond["beyond"] and beyond["real_images_per_class"] == 2.0


@pytest.mark.parametrize("name", METRICS)
def test_a_family_is_measured_by_it(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = Prepared(folder / "prepared")
    settings = params(name, measure={"seeds": 2})
    found = measures.cas(settings, data, Manifest.read(folder / "pools/naive"), tmp_path)
    targets = data.val().targets(data.classes).numpy()
    predicted = asked(data.val(), targets).of(tmp_path, 2)
    assert found is not None
    assert found["estimate"] == pytest.approx(
        np.mean([named(name).score(p, targets) for p in predicted.probabilities]), abs=1e-6
    )


def test_choices_are_made_anew_for_another_metric(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed stage left behind was scored by the metric of its time."""
    monkeypatch.chdir(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    arms: dict[str, object] = {"real": ["real"], "curve": [], "seeds": 1}
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.core.work.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            train.run(params("worst_class_recall", arms=arms), folder / "prepared", tmp_path / "real")
    train.run(params("error_rate", arms=arms), folder / "prepared", tmp_path / "real")
    (value,) = read(tmp_path / "real/choice.json")["validation"]["real"]["scores"]
    val = Prepared(folder / "prepared").val()
    targets = val.targets(digits_project.CLASSES).numpy()
    (p,) = asked(val, targets).of(tmp_path / "real/real", 1).probabilities
    assert value == named("error_rate").score(p, targets) != named("worst_class_recall").score(p, targets)


def test_an_unknown_metric_is_refused(tmp_path: Path) -> None:
    text = (digits_project.ROOT / "params.yaml").read_text().replace("metric: balanced_accuracy", "metric: accuracy")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"evaluate\.metric='accuracy'; expected one of balanced_accuracy.*error_rate"):
        config.read(tmp_path / "params.yaml")
