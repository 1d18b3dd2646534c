"""What every metric must do, those that come with tailforge and one of another package; and where their names stand."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, recall_score

from helpers import toy_metric
from helpers.sources import ROOT, mentions
from pipeline.errors import ConfigError
from pipeline.metrics import Metric, Predictions, repeated
from pipeline.metrics.registry import installed, named, primary, title
from pipeline.registry import METRICS

OURS = tuple(METRICS.ours)
K, S, N, R = 4, 3, 60, 9


@pytest.fixture(autouse=True)
def another_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    toy_metric.install(monkeypatch)
    yield


def sample(classes: int = K) -> tuple[Predictions, np.ndarray]:
    """Predictions of S runs for rows of the first `classes` of K classes, and weights that some rows do not have."""
    r = np.random.default_rng(0)
    targets = np.concatenate([np.arange(classes), r.integers(0, classes, N - classes)])
    p = r.random((S, N, K))
    p[:, np.arange(N), targets] += 0.5
    return Predictions(p / p.sum(2, keepdims=True), targets), r.integers(0, 4, (N, R)).astype(np.uint8)


@pytest.mark.parametrize("name", [*OURS, "error_rate"])
class TestContract:
    def test_it_has_the_name_that_it_is_registered_by_and_a_title(self, name: str) -> None:
        metric = named(name)
        assert metric.name == name and metric.title and metric.title != name and not metric.title[0].isspace()

    def test_score_and_resample_lie_between_0_and_1(self, name: str) -> None:
        predicted, weights = sample()
        values = named(name).resample(predicted, weights)
        assert values.shape == (R, S) and ((values >= 0) & (values <= 1)).all()
        assert isinstance(named(name).score(predicted.probabilities[0], predicted.targets), float)

    @pytest.mark.parametrize("classes", [K, K - 1])
    def test_with_all_weights_1_a_resample_is_the_score(self, name: str, classes: int) -> None:
        metric, (predicted, _) = named(name), sample(classes)
        scores = [metric.score(p, predicted.targets) for p in predicted.probabilities]
        np.testing.assert_allclose(metric.resample(predicted, np.ones((N, 1), np.uint8))[0], scores, atol=1e-6)

    @pytest.mark.parametrize("classes", [K, K - 1])
    def test_a_weight_is_so_many_copies(self, name: str, classes: int) -> None:
        metric, (predicted, weights) = named(name), sample(classes)
        expected = repeated(metric.score, predicted, weights)
        np.testing.assert_allclose(metric.resample(predicted, weights), expected, atol=1e-6)

    def test_a_class_that_a_resample_lacks_is_left_out(self, name: str) -> None:
        metric, (predicted, weights) = named(name), sample()
        weights[predicted.targets == K - 1] = 0
        expected = repeated(metric.score, predicted, weights)
        np.testing.assert_allclose(metric.resample(predicted, weights), expected, atol=1e-6)

    def test_to_be_right_is_the_best_score(self, name: str) -> None:
        metric, (predicted, _) = named(name), sample()
        right = np.eye(K)[predicted.targets]
        assert metric.score(right, predicted.targets) == (1.0 if metric.higher_is_better else 0.0)
        assert metric.merit(metric.score(right, predicted.targets)) > metric.merit(metric.score(right[::-1], predicted.targets))

    def test_workers_can_get_it(self, name: str) -> None:
        # Bytes made on this line: processes hand a metric to one another so. Nothing is read from a file.
        assert pickle.loads(pickle.dumps(named(name))).name == name


def test_scores_are_those_of_sklearn() -> None:
    predicted, _ = sample()
    p, y = predicted.probabilities[0], predicted.targets
    guess = p.argmax(1)
    recalls = recall_score(y, guess, average=None)
    expected = {
        "balanced_accuracy": balanced_accuracy_score(y, guess),
        "macro_f1": f1_score(y, guess, average="macro"),
        "worst_class_recall": min(recalls),
        "average_precision": np.mean([average_precision_score(y == c, p[:, c]) for c in range(K)]),
    }
    assert set(expected) == set(OURS)
    assert {name: named(name).score(p, y) for name in OURS} == pytest.approx(expected, abs=1e-6)
    assert max(recalls) - min(recalls) > 0.05


def test_balanced_accuracy_s_score_is_that_mean_of_recalls_to_the_last_bit() -> None:
    predicted, _ = sample()
    for p in predicted.probabilities:
        right = p.argmax(1) == predicted.targets
        expected = float(np.mean([right[predicted.targets == c].mean() for c in np.unique(predicted.targets)]))
        assert named("balanced_accuracy").score(p, predicted.targets) == expected


def test_the_best_is_the_first_of_equals_in_the_metric_s_direction() -> None:
    scores = {"a": 0.2, "b": 0.9, "c": 0.9, "d": 0.2}
    assert named("macro_f1").best(scores) == "b" and named("error_rate").best(scores) == "a"


class Misnamed(Metric):
    name, title = "another_name", "another name"
    score = resample = None  # type: ignore[assignment]


@pytest.mark.parametrize("place", ["collections:Counter", "test_metrics:Misnamed", "math:pi"])
def test_what_is_registered_and_is_no_metric_is_refused(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_metric.install(monkeypatch, "wrong", place.replace("test_metrics", __name__))
    with pytest.raises(ConfigError, match=r"expected a subclass of pipeline\.metrics\.Metric whose name is wrong"):
        named("wrong")


def test_an_unknown_one_is_refused_and_has_its_name_as_title() -> None:
    with pytest.raises(ConfigError, match=r"metric 'accuracy'; expected one of balanced_accuracy, .*error_rate"):
        named("accuracy")
    assert installed("gone_metric") is None and title("gone_metric") == "gone metric" and title("macro_f1") == "macro F1"


def test_results_that_name_no_metric_were_decided_by_balanced_accuracy() -> None:
    assert primary({"verdict": "gain"}) == "balanced_accuracy" and primary({"metric": "macro_f1"}) == "macro_f1"


def test_nothing_but_the_definition_and_the_default_names_balanced_accuracy() -> None:
    assert mentions("balanced_accuracy") == {"metrics/standard.py", "registry.py", "config.py"}
    for folder in ("flows", "tailforge", "benchmarks"):
        assert mentions("balanced_accuracy", ROOT / folder) == set()
    assert mentions("balanced accuracy") == {"metrics/standard.py"}
    stated = [file for file in ("dvc.yaml", "pipeline/report/template.html.j2") if "balanced" in (ROOT / file).read_text()]
    assert stated == []
