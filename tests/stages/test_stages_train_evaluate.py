"""The stages train and evaluate on real digits, with held-out digits in the place of synthetic images."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from helpers import digits_project
from pipeline import config
from pipeline.arms import Arm, accepted_rows, recipe_of, recipes
from pipeline.arms.data import pixels
from pipeline.classifier import curve, selection
from pipeline.classifier import train as classifier
from pipeline.classifier.choice import Scores
from pipeline.classifier.packed import Campaign, Run, runs_of
from pipeline.classifier.teaching import augmented
from pipeline.classifier.teaching import taught as taught_by
from pipeline.core import weights
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.errors import DataError, InputError, LeakError
from pipeline.metrics.standard import BalancedAccuracy
from pipeline.stages import evaluate, train

pytestmark = pytest.mark.usefixtures("references")


class Project:
    """A prepared folder with the paths that dvc.yaml gives the stages."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.prepared, self.runs = folder, folder / "prepared", folder / "runs"

    def real(self, params: config.Params) -> dict[str, Any]:
        train.run(params, self.prepared, self.runs / "real")
        return dict(json.loads((self.runs / "real/choice.json").read_text()))

    def family(self, params: config.Params, name: str = "naive") -> dict[str, Any]:
        member = name if (self.folder / "pools" / name).exists() else "naive"
        pools = (self.folder / "pools" / member, self.folder / "checked" / member)
        train.run(params, self.prepared, self.runs / name, name, *pools, self.runs / "real")
        return dict(json.loads((self.runs / name / "choice.json").read_text()))

    def evaluate(self, params: config.Params) -> tuple[dict[str, Any], list[dict[str, str]], dict[str, Any]]:
        metrics, gains = self.folder / "metrics.json", self.folder / "gains.csv"
        evaluate.run(params, self.prepared, self.runs, metrics, gains, self.folder / "evaluation")
        details = json.loads((self.folder / "evaluation/details.json").read_text())
        return json.loads(metrics.read_text()), list(csv.DictReader(io.StringIO(gains.read_text()))), details


PARAMS = digits_project.params(evaluate={"bootstrap": 200})


def trained(folder: Path, params: config.Params) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        project = Project(digits_project.write(folder))
        project.real(params)
        project.family(params)
        yield project


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    yield from trained(tmp_path_factory.mktemp("digits"), PARAMS)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    return Project(digits_project.write(tmp_path))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def choice(project: Project, name: str) -> dict[str, Any]:
    return dict(json.loads((project.runs / name / "choice.json").read_text()))


def test_every_arm_has_every_seed_and_nothing_else_lies_there(done: Project) -> None:
    arms = {"real": ["real", "augment"], "naive": ["synthetic", "synthetic_unfiltered", "synthetic_only", "replay"]}
    for name, held in arms.items():
        expected = {f"{arm}/{i}.safetensors" for arm in held for i in range(2)} | {"choice.json"}
        assert set(contents(done.runs / name)) == expected


def test_null_controls_are_the_best_arm_with_other_seeds_and_shuffled_labels(project: Project) -> None:
    params = digits_project.params(arms={"null_controls": True}, evaluate={"bootstrap": 100})
    best = project.real(params)["best_real_arm"]
    chosen = project.family(params)
    assert {"aa_control", "shuffled"} <= set(chosen["validation"])
    cards = [weights.load(project.runs / "naive/aa_control" / f"{i}.safetensors")[1] for i in range(2)]
    assert [card["number"] for card in cards] == [2, 3] and {card["synthetic_fraction"] for card in cards} == {0.0}
    recipe = weights.load(project.runs / "real" / best / "0.safetensors")
    assert {name: value.shape for name, value in recipe[0].items()} == {
        name: value.shape for name, value in weights.load(project.runs / "naive/aa_control/0.safetensors")[0].items()
    }
    metrics, gains, details = project.evaluate(params)
    assert {"aa_control", "shuffled"} <= {row["arm"] for row in gains}
    for arm, row in metrics["arms"].items():
        seeds = details["per_seed"][arm]["balanced_accuracy"]
        assert len(seeds) == 2 and np.mean(seeds) == pytest.approx(row["balanced_accuracy"]["estimate"], abs=1e-6)


def test_the_teacher_is_the_mean_of_the_best_real_only_runs(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    best = project.real(PARAMS)["best_real_arm"]
    seen: list[Campaign] = []
    monkeypatch.setattr("pipeline.classifier.selection.train_all", lambda shared, runs: seen.append(shared))
    with pytest.raises(DataError):  # nothing was trained
        project.family(PARAMS)
    data = seen[0].data
    networks = [classifier.load(project.runs / "real" / best / f"{i}.safetensors") for i in range(2)]
    for images, soft_labels in (
        (data.augmented_images, data.augmented_soft_labels), (data.pool_images, data.pool_soft_labels),
    ):  # fmt: skip
        expected = np.mean([classifier.predict(network, torch.from_numpy(images)) for network in networks], 0)
        np.testing.assert_allclose(soft_labels, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["logit_adjustment", "augment", "cutmix", "mixup"])
def test_train_images_are_augmented_and_mixed_as_the_teachers_recipe_does(name: str, project: Project) -> None:
    pool = Manifest.read(project.folder / "pools/naive")
    shared = Campaign.of(PARAMS, Prepared(project.prepared), "scratch", pool)
    recipe, n = recipes(PARAMS.classifier)[name], PARAMS.classifier.distillation_images
    made, targets = augmented(shared, recipe)
    train = shared.data
    assert targets.tolist() == np.repeat(np.unique(train.targets), n).tolist()  # equally many of each class
    own = {(image.tobytes(), int(c)) for image, c in zip(train.images, train.targets, strict=True)}
    found = [(image.tobytes(), int(c)) in own for image, c in zip(made, targets, strict=True)]
    assert all(found) == (name == "logit_adjustment")
    if name == "logit_adjustment":  # each image of a class as often as the others
        for c in np.unique(targets):
            often = np.unique(made[targets == c], axis=0, return_counts=True)[1]
            assert often.max() - often.min() <= 1
    assert np.array_equal(made, augmented(shared, recipe).images)
    if name == "cutmix":  # most of each image is as without a partner
        alone = augmented(shared, recipes(PARAMS.classifier)["augment"]).images
        assert 0.3 < (np.abs(made.astype(int) - alone) < 1).mean() < 0.9


def test_validation_scores_are_those_of_the_weights(done: Project) -> None:
    val = Manifest.read(done.prepared / "val.parquet")
    targets = val.targets(digits_project.CLASSES).numpy()
    for name in ("real", "naive"):
        for arm, row in choice(done, name)["validation"].items():
            networks = [classifier.load(done.runs / name / arm / f"{i}.safetensors") for i in range(2)]
            scores = [BalancedAccuracy().score(classifier.predict(n, val.images()), targets) for n in networks]
            assert row["scores"] == scores
            assert row["mean"] == pytest.approx(np.mean(scores))
    best = choice(done, "real")
    assert best["validation"][best["best_real_arm"]]["mean"] == max(row["mean"] for row in best["validation"].values())


def test_fraction_and_labels_are_the_best_of_the_grid_and_ties_go_to_the_smaller_fraction(done: Project) -> None:
    chosen = choice(done, "naive")
    assert [(g["synthetic_fraction"], g["labels"]) for g in chosen["grid"]] == [(0.0, "hard"), (0.5, "soft")]
    best = max(chosen["grid"], key=lambda g: (g["score"], -g["synthetic_fraction"]))
    assert (chosen["synthetic_fraction"], chosen["labels"]) == (best["synthetic_fraction"], best["labels"])


def test_runs_that_the_choice_trained_are_those_of_the_arm(project: Project) -> None:
    params = digits_project.params(arms={"synthetic_fractions": [0.6], "labels": ["hard"]})
    project.real(params)
    chosen = project.family(params)
    assert (chosen["synthetic_fraction"], chosen["labels"]) == (0.6, "hard")
    assert chosen["grid"][0]["score"] == chosen["validation"]["synthetic"]["scores"][0]


def test_when_nothing_helps_synthetic_fraction_zero_is_the_real_recipe(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = digits_project.params(evaluate={"bootstrap": 100})
    best = project.real(params)["best_real_arm"]
    # Every trial of the grid is as good as every other: a tie.
    monkeypatch.setattr("pipeline.classifier.selection.scores_of", lambda runs: Scores.of([0.5] * len(runs)))
    chosen = project.family(params)
    assert (chosen["synthetic_fraction"], chosen["labels"]) == (0.0, "hard")
    for arm in ("synthetic", "synthetic_unfiltered", "replay"):
        assert contents(project.runs / "naive" / arm) == contents(project.runs / "real" / best)
    metrics, _, details = project.evaluate(params)
    assert metrics["verdict"] == "no_gain"
    assert metrics["gain"]["balanced_accuracy"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}
    assert any("synthetic fraction 0" in warning for warning in details["warnings"])


@pytest.mark.parametrize("made", [120, 0])
def test_a_pool_without_an_accepted_image_gives_the_real_recipe(made: int, project: Project) -> None:
    params = digits_project.params(evaluate={"bootstrap": 100}, arms={"real": ["augment"]})
    file, pool = project.folder / "checked/naive/images.parquet", project.folder / "pools/naive/part-00000.parquet"
    table = pq.read_table(file)[:made]
    pq.write_table(table.set_column(2, "accepted", [[False] * len(table)]), file)
    pq.write_table(pq.read_table(pool)[:made], pool)
    project.real(params)
    assert project.family(params)["synthetic_fraction"] == 0.0
    metrics, _, details = project.evaluate(params)
    assert "synthetic_only" not in metrics["arms"] and metrics["verdict"] == "no_gain"
    assert any("no accepted image" in warning for warning in details["warnings"])


def test_the_ensemble_pools_what_was_accepted_of_all_families(project: Project) -> None:
    both = digits_project.params(
        generators=["naive", "vae"], arms={"synthetic_fractions": [1.0], "ensemble": True}, evaluate={"bootstrap": 100}
    )  # fmt: skip
    rows = Manifest.read(project.folder / "pools/naive").table
    for n in (2, 6):  # the second family's images are the first's, under names of their own
        kind = "generator" if n == 6 else "sample_id"
        rows = rows.set_column(
            rows.column_names.index(kind), kind, [[f"vae-{i}" if n == 2 else "vae" for i in range(len(rows))]]
        )
    checked = pq.read_table(project.folder / "checked/naive/images.parquet")
    checked = checked.set_column(0, "sample_id", [rows["sample_id"].to_pylist()])
    for folder, table, name in (("pools", rows, "part-00000"), ("checked", checked, "images")):
        (project.folder / folder / "vae").mkdir()
        pq.write_table(table, project.folder / folder / "vae" / f"{name}.parquet")
    project.real(both)
    project.family(both)
    project.family(both, "vae")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        with_pool = train.selection.with_pool
        patch.setattr(
            train.selection, "with_pool", lambda shared, *rest, **more: seen.append(shared) or with_pool(shared, *rest, **more)
        )
        everything = (project.folder / "pools", project.folder / "checked")
        train.run(both, project.prepared, project.runs / "ensemble", "ensemble", *everything, project.runs / "real")
    assert len(seen[0].data.pool_targets) == 2 * len(rows)
    assert int(seen[0].data.accepted.sum()) == 2 * sum(checked["accepted"].to_pylist())
    metrics, _, _ = project.evaluate(both)
    assert set(metrics["generators"]) == {"naive", "vae", "ensemble"}


def test_no_ensemble_is_trained_where_none_is_wanted(project: Project) -> None:
    everything = (project.folder / "pools", project.folder / "checked")
    project.real(PARAMS)
    for params in (PARAMS, digits_project.params(arms={"ensemble": True})):  # one family is no ensemble
        train.run(params, project.prepared, project.runs / "ensemble", "ensemble", *everything, project.runs / "real")
        assert contents(project.runs / "ensemble") == {}


def test_a_stage_that_was_killed_goes_on_run_by_run(done: Project, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = contents(done.runs / "real")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.core.work.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            project.real(PARAMS)
    assert not (project.runs / "real").exists()
    partial = {f: f.stat().st_mtime_ns for f in (project.folder / ".tailforge/partial").rglob("*.safetensors")}
    assert len(partial) == 4
    next(iter(partial)).unlink()
    project.real(PARAMS)
    assert contents(project.runs / "real") == whole


CURVE = digits_project.params(arms={"curve": [2, 4, 6, 9], "synthetic_fractions": [0.5]}, evaluate={"bootstrap": 200})
HELD = np.array(digits_project.RESERVE)


@pytest.fixture(scope="module")
def curved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    yield from trained(tmp_path_factory.mktemp("curve"), CURVE)


def test_the_curve_has_every_seed_at_each_point_that_adds_rows(done: Project, curved: Project) -> None:
    plain, with_curve = contents(done.runs / "real"), contents(curved.runs / "real")
    # No class has 9 images in reserve, so that 9 would be 6 once more.
    extra = {f"curve/{m}/{i}.safetensors" for m in (2, 4, 6) for i in range(2)}
    assert set(with_curve) == set(plain) | extra
    found = choice(curved, "real")
    points, room, alone = found.pop("curve"), found.pop("headroom"), choice(done, "real")
    assert room == alone.pop("headroom") | {"curve": room["curve"], "curve_extra": 6}
    assert room["curve"] == pytest.approx(points[-1]["validation"]["mean"] - room["score"])
    assert found == alone
    assert [(p["extra"], p["added"]) for p in points] == [(m, np.minimum(HELD, m).tolist()) for m in (2, 4, 6)]
    assert all(plain[f] == with_curve[f] for f in plain if f != "choice.json")  # the other runs are as without a curve
    assert len({with_curve[f] for f in extra}) == len(extra)
    for m in (2, 4, 6):
        cards = [weights.load(curved.runs / f"real/curve/{m}/{i}.safetensors")[1] for i in range(2)]
        assert [(card["arm"], card["number"], card["synthetic_fraction"]) for card in cards] == [
            (f"curve/{m}", i, 0.0) for i in range(2)
        ]


def test_a_point_of_the_curve_is_the_recipe_on_the_enlarged_train_set(curved: Project, project: Project) -> None:
    """The rows in reserve put into train.parquet give the same weights, and so the same steps, seeds and priors."""
    import pyarrow as pa

    from pipeline.arms import TrainingData
    from pipeline.core.prepared import Prepared

    data = Prepared(curved.prepared)
    held = TrainingData.of(data.train(), data.classes).with_reserve(data.reserve(), data.classes, most=9, seed=0)
    chosen = held.enlarged(2).images[len(data.train()) :]
    rows = data.reserve()
    pixels = [image.tobytes() for image in rows.images().numpy()]
    taken = rows.take(np.array([pixels.index(image.tobytes()) for image in chosen])).table
    taken = taken.set_column(taken.schema.get_field_index("split"), "split", [["train"] * len(taken)])
    pq.write_table(pa.concat_tables([data.train().table, taken]), project.prepared / "train.parquet")
    best = choice(curved, "real")["best_real_arm"]
    project.real(digits_project.params(arms={"real": [best]}))
    for i in range(2):
        ours, whole = (weights.load(f)[0] for f in (
            curved.runs / f"real/curve/2/{i}.safetensors", project.runs / "real" / best / f"{i}.safetensors"
        ))  # fmt: skip
        assert all(torch.equal(ours[name], whole[name]) for name in whole)


TAUGHT = digits_project.params(
    arms={"real": ["real", "self_distillation", "augment"], "curve": [2], "synthetic_fractions": [0.25], "null_controls": True},
    evaluate={"bootstrap": 200},
)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose best real-only arm is the student of `augment`."""
    with pytest.MonkeyPatch.context() as patch:
        best = selection._best

        def student(runs: dict[Any, list[Run]], metric: Any) -> Any:
            arms = [arm for arm in ("self_distillation", "augment") if arm in runs]
            return arms[0] if arms else best(runs, metric)

        patch.setattr(selection, "_best", student)
        made = trained(tmp_path_factory.mktemp("taught"), TAUGHT)
        project = next(made)
    yield project
    made.close()


def test_self_distillation_is_the_student_of_the_best_recipe(done: Project, taught: Project) -> None:
    found, runs = choice(taught, "real"), taught.runs / "real"
    assert (found["best_real_arm"], found["teacher"]) == ("self_distillation", "augment")
    assert set(found["validation"]) == {"real", "augment", "self_distillation"}
    for arm in ("real", "augment"):  # as if there were no student
        assert contents(runs / arm) == contents(done.runs / "real" / arm)
    shared = Campaign.of(TAUGHT, Prepared(taught.prepared), "scratch")
    as_they_are = shared.data.images
    shared = taught_by(shared, runs_of(Arm("augment", recipes(TAUGHT.classifier)["augment"]), range(2), runs / "augment"))
    known = {image.tobytes() for image in as_they_are}
    assert not all(image.tobytes() in known for image in shared.data.augmented_images)
    arm = Arm("self_distillation", recipe_of(TAUGHT.classifier, "self_distillation", "augment"))
    assert arm.recipe == replace(recipes(TAUGHT.classifier)["augment"].student(), distilled=0.5)
    run = Run(arm, 1, taught.folder / "again/1.safetensors")
    shared.execute(run, lambda _: None)
    assert run.file.read_bytes() == (runs / "self_distillation/1.safetensors").read_bytes()


def test_a_point_of_the_student_s_curve_has_a_teacher_of_the_same_rows(taught: Project) -> None:
    runs, data = taught.runs / "real/curve/2", Prepared(taught.prepared)
    assert set(contents(taught.runs / "real/curve")) == {f"2/{p}{i}.safetensors" for p in ("", "teacher/") for i in range(2)}
    shared = curve.with_reserve(Campaign.of(TAUGHT, data, "scratch"), data, most=2, look=pixels)
    here = replace(shared, data=shared.data.enlarged(2))
    arm = Arm("curve/2/teacher", recipes(TAUGHT.classifier)["augment"])
    teacher = Run(arm, 0, taught.folder / "again/teacher/0.safetensors")
    here.execute(teacher, lambda _: None)
    assert teacher.file.read_bytes() == (runs / "teacher/0.safetensors").read_bytes()
    student = Arm("curve/2", recipe_of(TAUGHT.classifier, "self_distillation", "augment"))
    run = Run(student, 0, taught.folder / "again/0.safetensors")
    taught_by(here, runs_of(arm, range(2), runs / "teacher")).execute(run, lambda _: None)
    assert run.file.read_bytes() == (runs / "0.safetensors").read_bytes()


def test_synthetic_images_alone_are_treated_as_the_teacher_treats_real_ones(taught: Project) -> None:
    pool, checked = (taught.folder / name / "naive" for name in ("pools", "checked"))
    rows = Manifest.read(pool)
    accepted = accepted_rows(rows, [checked / "images.parquet"])
    shared = Campaign.of(TAUGHT, Prepared(taught.prepared), "scratch", rows, accepted)
    recipe = recipes(TAUGHT.classifier)["augment"]
    run = Run(Arm("synthetic_only", recipe, "accepted", keeps_real=False), 0, taught.folder / "again/only/0.safetensors")
    shared.execute(run, lambda _: None)
    assert run.file.read_bytes() == (taught.runs / "naive/synthetic_only/0.safetensors").read_bytes()


def test_a_student_needs_its_teacher_for_hard_labels_too(taught: Project, project: Project) -> None:
    params = digits_project.params(arms={**TAUGHT.arms.model_dump(), "labels": ["hard"], "curve": []})
    shutil.copytree(taught.runs / "real", project.runs / "real")
    found = project.family(params)
    assert (found["synthetic_fraction"], found["labels"]) == (0.25, "hard")
    assert contents(project.runs / "naive/synthetic") != contents(taught.runs / "naive/synthetic")


def test_a_student_s_controls_need_no_accepted_image(taught: Project, project: Project) -> None:
    shutil.copytree(taught.runs / "real", project.runs / "real")
    file = project.folder / "checked/naive/images.parquet"
    table = pq.read_table(file)
    rejected = table.set_column(table.schema.get_field_index("accepted"), "accepted", [[False] * len(table)])
    pq.write_table(rejected, file)
    found = project.family(TAUGHT)
    assert found["synthetic_fraction"] == 0 and set(found["validation"]) == {
        "synthetic",
        "synthetic_unfiltered",
        "replay",
        "aa_control",
    }


def test_synthetic_images_come_beside_the_student_s_and_are_compared_with_it(taught: Project) -> None:
    found = choice(taught, "naive")
    assert found["best_real_arm"] == "self_distillation" and (found["synthetic_fraction"], found["labels"]) == (0.25, "soft")
    assert not list(taught.runs.rglob("naive/self_distillation"))
    metrics, _, details = taught.evaluate(TAUGHT)
    assert set(metrics["arms"]) == {"real", "augment", "self_distillation", *found["validation"]}
    assert details["choice"]["recipe"] == "self_distillation" and details["choice"]["teacher"] == "augment"
    part = metrics["decomposition"]["regularisation"]
    assert (part["arm"], part["over"]) == ("replay", "self_distillation")
    best = metrics["arms"]["self_distillation"]["balanced_accuracy"]
    assert metrics["equivalent_real_images"]["curve"][0] == [0, *(best[key] for key in ("estimate", "low", "high"))]


def test_equivalent_real_images_stand_in_the_metrics(curved: Project) -> None:
    from sklearn.metrics import balanced_accuracy_score

    metrics, gains, details = curved.evaluate(CURVE)
    equal, best = metrics["equivalent_real_images"], choice(curved, "real")["best_real_arm"]
    assert metrics["arms"][best] != metrics["arms"]["synthetic"]
    assert [point[0] for point in equal["curve"]] == [0, 2, 4, 6]
    assert equal["added"] == [0, *(int(np.minimum(HELD, m).sum()) for m in (2, 4, 6))]
    assert equal["curve"][0][1:] == [metrics["arms"][best]["balanced_accuracy"][key] for key in ("estimate", "low", "high")]
    test = Manifest.read(curved.prepared / "test.parquet")
    y = test.targets(digits_project.CLASSES).numpy()
    for m, estimate, low, high in equal["curve"][1:]:
        networks = [classifier.load(curved.runs / f"real/curve/{m}/{i}.safetensors") for i in range(2)]
        scores = [balanced_accuracy_score(y, classifier.predict(n, test.images()).argmax(1)) for n in networks]
        assert estimate == pytest.approx(np.mean(scores), abs=1e-6) and low <= high
    assert 0 <= equal["low"] <= equal["high"] <= 6 and 0 <= equal["real_images_per_class"] <= 6
    assert any("fewer than 6 more images of 0, 1" in w for w in details["warnings"])
    assert not any("curve" in row["arm"] for row in gains) and set(details["per_seed"]) == set(metrics["arms"])


def test_without_a_curve_nothing_is_trained_opened_or_written(done: Project, project: Project) -> None:
    (project.prepared / "reserve.parquet").unlink()
    project.real(PARAMS)
    project.family(PARAMS)
    assert contents(project.runs) == contents(done.runs)
    metrics, _, details = project.evaluate(PARAMS)
    assert "equivalent_real_images" not in metrics and "curve" not in choice(project, "real")
    assert not any("curve" in warning for warning in details["warnings"])


def test_an_empty_reserve_is_told(project: Project) -> None:
    file = project.prepared / "reserve.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    assert project.real(CURVE)["curve"] == []
    project.family(CURVE)
    metrics, _, details = project.evaluate(CURVE)
    assert "equivalent_real_images" not in metrics and any("learning curve" in warning for warning in details["warnings"])


def test_a_killed_curve_goes_on_run_by_run(curved: Project, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.core.work.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            project.real(CURVE)
    partial = list((project.folder / ".tailforge/partial").rglob("curve/*/*.safetensors"))
    assert len(partial) == 6
    partial[0].unlink()
    kept = {f"{f.parent.name}/{f.name}": f.stat().st_mtime_ns for f in partial[1:]}
    project.real(CURVE)
    assert kept == {name: (project.runs / "real/curve" / name).stat().st_mtime_ns for name in kept}
    assert contents(project.runs / "real") == contents(curved.runs / "real")


def test_a_reserve_that_knows_validation_or_test_rows_stops_the_stage(project: Project) -> None:
    file = project.prepared / "reserve.parquet"
    table = pq.read_table(file)
    val = Manifest.read(project.prepared / "val.parquet").column("group")[0]
    groups = [val, *table["group"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("group"), "group", [groups]), file)
    with pytest.raises(LeakError, match="validation"):
        project.real(CURVE)
    pq.write_table(pq.read_table(project.prepared / "test.parquet"), file)
    with pytest.raises(LeakError, match="test"):
        project.real(CURVE)
    assert not (project.runs / "real").exists()


def test_the_parts_of_a_gain_are_paired_differences(curved: Project, project: Project) -> None:
    params = digits_project.params(arms={"real": ["real", "logit_adjustment"]}, evaluate={"bootstrap": 100})
    project.real(params)
    project.family(params)
    for made, settings in ((curved, CURVE), (project, params)):
        metrics, best = made.evaluate(settings)[0], choice(made, "real")["best_real_arm"]
        parts = metrics["decomposition"]
        pairs = {"regularisation": ("replay", best), "new_content": ("synthetic", "replay")}
        if made is project:  # no arm of the other has an offset
            pairs["prior_shift"] = ("logit_adjustment", "real")
        assert {name: (part["arm"], part["over"]) for name, part in parts.items()} == pairs
        score = {arm: row["balanced_accuracy"]["estimate"] for arm, row in metrics["arms"].items()}
        for part in parts.values():
            assert part["estimate"] == pytest.approx(score[part["arm"]] - score[part["over"]], abs=2e-6)
            assert part["low"] <= part["high"]
        whole = parts["regularisation"]["estimate"] + parts["new_content"]["estimate"]
        assert whole == pytest.approx(score["synthetic"] - score[best], abs=4e-6)


def test_metrics_have_the_promised_form(done: Project) -> None:
    metrics, gains, details = done.evaluate(PARAMS)
    assert metrics["verdict"] in ("gain", "no_gain", "harm")
    assert set(metrics["arms"]) == {"real", "augment", "synthetic", "synthetic_unfiltered", "synthetic_only", "replay"}
    assert set(metrics["reference"]) == {"logistic_regression", "random_forest", "gradient_boosting"}
    named = {
        "balanced_accuracy", "macro_f1", "head_recall", "middle_recall", "tail_recall", "auroc", "average_precision",
        "calibration_error",
    }  # fmt: skip
    for row in [metrics["gain"], *metrics["arms"].values(), *metrics["reference"].values()]:
        assert set(row) == named
        for value in row.values():
            assert value["low"] <= value["high"] and all(map(math.isfinite, value.values()))
    assert {(g["arm"], g["metric"]) for g in gains} == {
        (a, m) for a in metrics["arms"] if a != metrics["baseline"] for m in named
    }
    mine = next(g for g in gains if (g["arm"], g["metric"]) == ("synthetic", "balanced_accuracy"))
    assert float(mine["estimate"]) == metrics["gain"]["balanced_accuracy"]["estimate"]
    assert details["strata"] == {"head": ["0", "1", "2"], "middle": ["3", "4", "5", "6"], "tail": ["7", "8", "9"]}
    assert details["train_counts"]["9"] == 3 and details["test_counts"]["9"] == 20
    for metric in ("recall", "auroc", "average_precision"):
        assert set(details[metric]) == set(metrics["arms"])
        assert set(details[metric]["real"]) == set(digits_project.CLASSES)
    assert details["settings"]["validate"]["agreement"] == PARAMS.validate_.agreement
    assert set(details["choice"]["validation"]) == set(metrics["arms"])


def test_estimates_are_those_of_sklearn_and_differences_are_paired(done: Project) -> None:
    from sklearn.metrics import balanced_accuracy_score, recall_score

    metrics, gains, details = done.evaluate(PARAMS)
    test = Manifest.read(done.prepared / "test.parquet")
    y = test.targets(digits_project.CLASSES).numpy()
    scores = {}
    for family, arm in (("real", "real"), ("real", "augment"), ("naive", "replay"), ("naive", "synthetic")):
        networks = [classifier.load(done.runs / family / arm / f"{i}.safetensors") for i in range(2)]
        guesses = [classifier.predict(n, test.images()).argmax(1) for n in networks]
        scores[arm] = np.mean([balanced_accuracy_score(y, g) for g in guesses])
        assert metrics["arms"][arm]["balanced_accuracy"]["estimate"] == pytest.approx(scores[arm], abs=1e-6)
        recall = np.mean([recall_score(y, g, average=None) for g in guesses], 0)
        assert details["recall"][arm]["9"]["estimate"] == pytest.approx(recall[9], abs=1e-6)
        assert metrics["arms"][arm]["tail_recall"]["estimate"] == pytest.approx(recall[7:].mean(), abs=1e-6)
    best = metrics["baseline"]
    for row in gains:
        if row["metric"] == "balanced_accuracy" and row["arm"] in scores:
            assert float(row["estimate"]) == pytest.approx(scores[row["arm"]] - scores[best], abs=2e-6)


def test_evaluate_is_a_function_of_its_inputs(done: Project, references: dict[object, object]) -> None:
    first = done.evaluate(PARAMS)
    references.clear()
    assert done.evaluate(PARAMS) == first and references


def test_the_baseline_is_the_best_on_validation_with_replay_among_them(done: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    file = done.runs / "naive/choice.json"
    before = file.read_text()
    changed = json.loads(before)
    changed["validation"]["replay"]["mean"] = 2.0
    try:
        file.write_text(json.dumps(changed))
        assert done.evaluate(PARAMS)[0]["baseline"] == "replay"
    finally:
        file.write_text(before)
    rows = {**choice(done, "real")["validation"], "replay": choice(done, "naive")["validation"]["replay"]}
    assert done.evaluate(PARAMS)[0]["baseline"] == max(rows, key=lambda arm: rows[arm]["mean"])


def test_groups_are_resampled_and_not_images(done: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.evaluation import score

    file = done.prepared / "test.parquet"
    before, table = file.read_bytes(), pq.read_table(file)
    groups = [f"object {i // 2}" for i in range(len(table))]
    seen: list[list[str]] = []
    original = score.resample
    monkeypatch.setattr(score, "resample", lambda y, g, **rest: (seen.append(list(g)), original(y, g, **rest))[1])
    try:
        pq.write_table(table.set_column(table.schema.get_field_index("group"), "group", [groups]), file)
        done.evaluate(PARAMS)
    finally:
        file.write_bytes(before)
    assert seen == [groups]


def test_of_several_generators_the_best_on_validation_is_the_primary_one(project: Project) -> None:
    params = digits_project.params(generators=["naive", "flow_matching"], evaluate={"bootstrap": 100})
    project.real(params)
    project.family(params)
    changed = project.family(params, "flow_matching")
    changed["validation"]["synthetic"]["mean"] = 2.0
    (project.runs / "flow_matching/choice.json").write_text(json.dumps(changed))
    metrics = project.evaluate(params)[0]
    assert metrics["generator"] == "flow_matching"
    assert set(metrics["generators"]) == {"naive", "flow_matching"}
    assert metrics["generators"]["flow_matching"]["gain"] == metrics["gain"]
    assert metrics["generators"]["naive"]["verdict"] in ("gain", "no_gain", "harm")


def test_a_test_row_in_train_stops_the_stage(project: Project) -> None:
    train_file = project.prepared / "train.parquet"
    rows = Manifest.read(train_file).table, Manifest.read(project.prepared / "test.parquet").table.slice(0, 1)
    import pyarrow as pa

    pq.write_table(pa.concat_tables(rows), train_file)
    with pytest.raises(LeakError, match="test"):
        project.real(PARAMS)
    assert not (project.runs / "real").exists()


def test_bad_input_is_one_line(done: Project, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--pool"):
        train.run(PARAMS, done.prepared, tmp_path / "x", "naive")
    with pytest.raises(DataError, match=r"choice\.json"):
        evaluate.run(PARAMS, done.prepared, tmp_path, tmp_path / "m", tmp_path / "g", tmp_path)
    short = tmp_path / "checked"
    short.mkdir()
    pq.write_table(pq.read_table(done.folder / "checked/naive/images.parquet").slice(1), short / "images.parquet")
    with pytest.raises(DataError, match="lacks"):
        train.run(PARAMS, done.prepared, tmp_path / "x", "naive", done.folder / "pools/naive", short, done.runs / "real")


def test_weights_hold_no_code_and_their_config(done: Project) -> None:
    card = weights.load(done.runs / "naive/synthetic_only/1.safetensors")[1]
    assert (card["arm"], card["number"], card["n_classes"], card["shape"]) == ("synthetic_only", 1, 10, [1, 8, 8])


def test_a_campaign_is_one_for_all_arms() -> None:
    assert "config" in Campaign.__dataclass_fields__ and "steps" not in Campaign.__dataclass_fields__
