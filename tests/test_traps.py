"""The nine traps that make a reported gain worthless: for each a guard, and what happens without it.

The list and the guards are explained in docs/evaluation.md.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from helpers import digits_project
from helpers.digits_project import CLASSES
from helpers.sources import callers, mentions
from pipeline import config
from pipeline.arms import Arm, TrainingData, recipes, synthetic_arms
from pipeline.classifier import networks, train
from pipeline.classifier.choice import Missing, PoolChoice, RealChoice, Scores
from pipeline.core.images import encode_png
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.datasets import duplicates
from pipeline.encoders.base import Origin
from pipeline.encoders.judges import Judges
from pipeline.errors import LeakError
from pipeline.evaluation import score
from pipeline.evaluation.intervals import Interval, interval, resample
from pipeline.evaluation.results import ArmResult
from pipeline.evaluation.verdict import strata
from pipeline.generators import registry
from pipeline.generators.shared.base import Traits
from pipeline.metrics.predictions import Predictions
from pipeline.metrics.standard import BalancedAccuracy
from pipeline.stages import fit as fit_stage
from pipeline.stages import judges as judges_stage
from pipeline.stages import prepare as prepare_stage
from pipeline.stages import train as train_stage

ROOT = Path(__file__).parents[1]
SHIPPED = config.read(ROOT / "params.yaml")
METRIC = BalancedAccuracy()


@pytest.fixture
def leaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with one test row among its train rows."""
    monkeypatch.chdir(tmp_path)
    digits_project.write(tmp_path)
    file = tmp_path / "prepared/train.parquet"
    stray = Manifest.read(tmp_path / "prepared/test.parquet").table.slice(0, 1)
    pq.write_table(pa.concat_tables([Manifest.read(file).table, stray]), file)
    yield tmp_path


# 1. The best epoch picked on the test set.


def test_1_the_test_rows_are_opened_by_evaluate_alone(tmp_path: Path) -> None:
    assert callers("test") == {"stages/evaluate.py"}
    assert mentions("test.parquet") == {"core/prepared.py"}
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert [name for name, stage in stages.items() if any("test.parquet" in str(d) for d in stage["deps"])] == ["evaluate"]
    # Another stage that opens them would be seen.
    (tmp_path / "peek.py").write_text("def run(data):\n    return data.test(), 'prepared/test.parquet'\n")
    assert callers("test", tmp_path) == mentions("test.parquet", tmp_path) == {"peek.py"}


def test_1_no_epoch_is_chosen_at_all() -> None:
    """A fit sees the plan and nothing that it could choose by; validation rows meet finished weights alone."""
    assert list(inspect.signature(train.fit).parameters) == ["plan", "config", "seed", "flips", "folder", "progress"]
    scoring = {"classifier/packed.py", "evaluation/measures.py"}
    # curve.py compares their groups, score.py their features with those of test rows.
    assert callers("val") == scoring | {"classifier/curve.py", "stages/validate.py", "evaluation/score.py"}


# 2. The generator, the filter or a threshold fitted on validation or test rows.


def fits(folder: Path) -> dict[str, Any]:
    params, prepared = digits_project.params(), folder / "prepared"
    rows = Prepared(prepared).train
    return {
        "generator": lambda: fit_stage.run(params, "naive", prepared, prepared, folder / "model", folder / "fit.json"),
        "judges": lambda: judges_stage.run(params, prepared, folder / "judges"),
        "classifier": lambda: train_stage.run(params, prepared, folder / "runs"),
        "reference": lambda: score.reference.probabilities(SHIPPED, (1, 8, 8), rows(), rows(), CLASSES),
    }


@pytest.mark.parametrize("what", ["generator", "judges", "classifier", "reference"])
def test_2_fitting_anything_on_a_test_row_raises(what: str, leaky: Path) -> None:
    with pytest.raises(LeakError, match="test"):
        fits(leaky)[what]()


def test_2_without_the_guard_the_leak_goes_unseen(leaky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Manifest, "require_train", lambda *_: None)
    fits(leaky)["generator"]()
    assert (leaky / "model").is_dir()


def test_2_judges_never_see_validation_rows(tmp_path: Path) -> None:
    digits_project.write(tmp_path)
    val = Prepared(tmp_path / "prepared").val()
    with pytest.raises(LeakError, match="val"):
        Judges.fit(val, CLASSES, settings=SHIPPED.judges, flips="none", seed=0, folder=tmp_path)


def test_2_the_reserve_is_opened_for_the_learning_curve_alone(tmp_path: Path) -> None:
    assert callers("reserve") == {"classifier/curve.py"}
    assert mentions("reserve.parquet") == {"core/prepared.py", "stages/train.py"}
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert [name for name, stage in stages.items() if any("reserve.parquet" in str(d) for d in stage["deps"])] == ["train_real"]
    (tmp_path / "peek.py").write_text("def run(data):\n    return data.reserve(), 'prepared/reserve.parquet'\n")
    assert callers("reserve", tmp_path) == mentions("reserve.parquet", tmp_path) == {"peek.py"}


@pytest.mark.parametrize("what", ["generator", "judges", "classifier", "reference"])
def test_2_fitting_anything_on_a_row_in_reserve_raises(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digits_project.write(tmp_path)
    file = tmp_path / "prepared/train.parquet"
    stray = Prepared(tmp_path / "prepared").reserve().table.slice(0, 1)
    pq.write_table(pa.concat_tables([Manifest.read(file).table, stray]), file)
    with pytest.raises(LeakError, match="reserve"):
        fits(tmp_path)[what]()


# 3. One seed.


def real_choice(**means: float) -> RealChoice:
    """What validation chose of real-only arms with these mean scores."""
    return RealChoice(best_real_arm="real", teacher="real", validation={arm: Scores.of([m]) for arm, m in means.items()})


def pool_choice(**means: float) -> PoolChoice:
    """The same with a pool, synthetic images on all draws and no class missing."""
    return PoolChoice(
        best_real_arm="real", synthetic_fraction=1.0, labels="hard", grid=(), missing=Missing(short=(), none=()),
        validation={arm: Scores.of([mean]) for arm, mean in means.items()},
    )  # fmt: skip


def warnings_of(**arms: object) -> list[str]:
    params = digits_project.params(arms=arms)
    test = digits_project.rows(np.zeros((40, 1, 8, 8), np.uint8), ["0"] * 38 + ["1"] * 2, "test")
    choices: Any = SimpleNamespace(real=real_choice(), families={"naive": pool_choice()}, primary="naive")
    return score._warnings(params, ["0", "1"], [9, 3], test, choices)


def test_3_five_seeds_are_shipped_and_fewer_warn() -> None:
    assert SHIPPED.arms.seeds >= score.MIN_SEEDS == 5
    assert not any("seeds" in w for w in warnings_of(seeds=5))
    assert any("4 seeds" in w for w in warnings_of(seeds=4))


def test_3_intervals_know_of_the_spread_of_seeds() -> None:
    r = np.random.default_rng(0)
    made = resample(np.zeros(500, int), np.arange(500), n_seeds=5, n=500, seed=0)
    images = r.normal(0, 0.1, (500, 1)) + np.zeros((1, 5))
    calm, wild = (images + spread for spread in (np.zeros(5), np.array([-0.05, -0.03, 0.0, 0.03, 0.05])))
    widths = [(i.high - i.low) for i in (interval(made.weights.T @ v / 500, made.seeds, 0.95) for v in (calm, wild))]
    assert widths[1] > 3 * widths[0]


# 4. A weak real-only baseline; different numbers of updates.


def training_data() -> TrainingData:
    r = np.random.default_rng(0)
    images, y = r.integers(0, 256, (30, 1, 8, 8), dtype=np.uint8), np.repeat([0, 1, 2], [20, 7, 3])
    pool_y = np.repeat([0, 1, 2], 10)
    none = np.zeros(0, np.int64)
    augmented = {"augmented_images": images, "augmented_targets": y, "augmented_soft_labels": r.dirichlet(np.ones(3), 30)}
    return TrainingData(3, images, y, images.copy(), pool_y, np.ones(30, bool), none, np.zeros(31, np.int64), **augmented)


def test_4_every_arm_gets_the_same_number_of_updates_and_images() -> None:
    settings = digits_project.params().in_mode("scratch")
    known = recipes(settings)
    arms = [Arm(name, recipe) for name, recipe in known.items()]
    arms.append(Arm(config.SELF_DISTILLATION, replace(known["augment"].student(), distilled=0.5)))
    arms += synthetic_arms(known["real"], synthetic_fraction=0.5, labels="hard").values()
    seen = {}
    for arm in arms:
        steps: list[int] = []
        train.fit(arm.build(training_data(), 0), settings, 0, progress=steps.append)
        seen[arm.name] = steps
    assert set(seen) == set(config.REAL_ARMS) | {"synthetic", "synthetic_unfiltered", "replay", "synthetic_only"}
    assert all(steps == [settings.batch_images] * settings.steps for steps in seen.values()), seen


def test_4_the_baseline_is_the_strongest_of_the_real_only_arms(tmp_path: Path) -> None:
    for replay, expected in ((0.7, "augment"), (0.9, "replay"), (0.8, "augment")):
        real_choice(real=0.5, augment=0.8).write(tmp_path / "real")
        pool_choice(replay=replay, synthetic=0.99).write(tmp_path / "naive")
        assert score.Choices.read(tmp_path, ["naive"], METRIC).baselines == {"naive": expected}


def test_4_a_reference_that_beats_the_baseline_warns() -> None:
    baseline, above, below = (ArmResult({METRIC.name: Interval(x, x, x)}, {}, {}) for x in (0.8, 0.9, 0.7))
    said = score._better_references(baseline, {"random_forest": above, "logistic_regression": below}, METRIC)
    assert len(said) == 1 and said[0].startswith("random_forest beats")


# 5. No control for "just more of the same".


def test_5_the_controls_are_shipped_and_replay_cannot_be_left_out() -> None:
    assert {"real", "oversample", "logit_adjustment", "augment", "augment+logit_adjustment", "mixup"} <= set(SHIPPED.arms.real)
    arms = synthetic_arms(recipes(SHIPPED.classifier)["real"], synthetic_fraction=0.5, labels="hard")
    assert {"replay", "synthetic_unfiltered", "synthetic_only"} < set(arms)
    plans = {name: arm.build(training_data(), 0) for name, arm in arms.items()}
    for field in (
        "targets",
        "soft_labels",
        "weights",
        "draw",
        "offset",
        "transform",
        "margin",
        "cosine",
        "mix",
        "mix_alpha",
        "deferred",
    ):
        ours, control = (getattr(plans[name], field) for name in ("synthetic", "replay"))
        assert (ours == control).all() if hasattr(ours, "all") else ours == control
    assert not (plans["synthetic"].images == plans["replay"].images).all()


# 6. A gain that is only a prior shift.


def test_6_a_shifted_prior_shows_in_recall_and_not_in_auroc_or_average_precision() -> None:
    r = np.random.default_rng(0)
    y = r.choice(3, 300, p=[0.6, 0.3, 0.1])
    logits = r.normal(0, 1, (5, 300, 3)) + np.array([2.0, 1.0, 0.0])
    logits[:, np.arange(300), y] += 2.0
    made = resample(y, np.arange(300), n_seeds=5, n=100, seed=0)
    members = strata([30, 9, 3], 0.34)
    # Each class's scores keep their order: what a moved threshold does.
    before, after = (
        score.score(Predictions(np.exp(z), y), made, members, METRIC) for z in (logits, logits + np.array([-2.0, -1.0, 0.0]))
    )
    gain = {name: interval(after.metrics[name] - before.metrics[name], made.seeds, 0.95) for name in before.metrics}
    assert gain["balanced_accuracy"].low > 0
    assert gain["auroc"].high == gain["auroc"].low == gain["average_precision"].high == gain["average_precision"].low == 0
    assert set(score.PER_CLASS) == {"recall", "auroc", "average_precision"}


def test_6_added_rows_do_not_shift_the_prior() -> None:
    for name in ("real", "logit_adjustment"):
        recipe = recipes(SHIPPED.classifier)[name]
        plan, without = (arm.build(training_data(), 0) for arm in (
            synthetic_arms(recipe, synthetic_fraction=0.6, labels="hard")["synthetic"], Arm(name, recipe)
        ))  # fmt: skip
        assert (plan.offset == without.offset).all()
        rho = np.array([20, 7, 3]) / 30 if name == "real" else np.ones(3)  # what the network itself learns as its prior
        gaps = plan.added_offset.numpy() + np.log(rho)
        np.testing.assert_allclose(gaps, gaps[0], rtol=1e-5)


# 7. Images of one object on both sides; intervals that take them for independent.


def folder_of_pictures(root: Path) -> None:
    """Two classes of 24 pictures, each once more with every pixel one level brighter."""
    from helpers import making

    for i in range(24):
        folder = root / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        making.picture(i).save(folder / f"{i}.png")
        making.picture(i).point(lambda level: min(255, level + 1)).save(folder / f"again-{i}.png")


def sides(root: Path, folder: Path, **data: object) -> dict[str, set[str]]:
    """The picture numbers on each side after `prepare`."""
    changed = {"source": "folder", "path": str(root), "image_size": 16} | data
    params = digits_project.params(data=changed, scarcity={"kind": "as_is"}, split={"val": 0.2, "test": 0.4})
    shutil.rmtree(folder, ignore_errors=True)
    prepare_stage.run(params, folder)
    names = {s: Manifest.read(folder / f"{s}.parquet").column("sample_id") for s in ("train", "val", "test")}
    return {s: {Path(str(n)).name.removeprefix("again-").split(".")[0] for n in held} for s, held in names.items()}


def overlap(held: dict[str, set[str]]) -> set[str]:
    return (held["train"] & held["test"]) | (held["train"] & held["val"]) | (held["val"] & held["test"])


def test_7_images_of_one_group_stay_on_one_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "tests/datasets")
    monkeypatch.setattr(duplicates, "near_pairs", lambda *_: np.zeros((0, 2), np.int64))
    root = tmp_path / "raw"
    folder_of_pictures(root)
    names = [f.relative_to(root).as_posix() for f in sorted(root.rglob("*.*"))]
    groups = [{"id": name, "group": Path(name).name.removeprefix("again-").split(".")[0]} for name in names]
    (root / "groups.json").write_text(json.dumps(groups))
    assert not overlap(sides(root, tmp_path / "grouped", groups="groups.json"))
    assert overlap(sides(root, tmp_path / "alone"))


def test_7_a_copy_of_every_image_in_its_group_does_not_narrow_an_interval() -> None:
    r = np.random.default_rng(0)
    y = np.arange(60) % 2
    p = r.random((5, 60, 2))
    copied, y_copied = np.tile(p, (1, 8, 1)), np.tile(y, 8)

    def width(p: np.ndarray, y: np.ndarray, groups: np.ndarray) -> float:
        made = resample(y, groups, n_seeds=5, n=400, seed=0)
        found = interval(
            score.score(Predictions(p, y), made, strata([5, 3], 0.5), METRIC).metrics["balanced_accuracy"], made.seeds, 0.95
        )
        return found.high - found.low

    once, grouped = width(p, y, np.arange(60)), width(copied, y_copied, np.tile(np.arange(60), 8))
    ignored = width(copied, y_copied, np.arange(480))
    assert grouped == pytest.approx(once, rel=0.15)
    assert ignored < 0.75 * once


# 8. A pretrained model that has seen the test images: which weights are known, and what they were trained on.


def test_8_what_the_encoder_was_trained_on_is_a_warning() -> None:
    origin = Origin("ImageNet-1k", "apache-2.0", "hash")
    encoder = config.Encoder(name="tf_efficientnet_lite0.in1k")
    plain = SHIPPED.model_copy(update={"encoder": encoder})
    [said] = score._known_weights(plain, origin)
    assert said.startswith("tf_efficientnet_lite0.in1k was trained on ImageNet-1k: nobody can say")
    held = plain.model_copy(update={"data": SHIPPED.data.model_copy(update={"path": "/data/imagenette2"})})
    [said] = score._known_weights(held, origin)
    assert said.endswith("which holds images of imagenette: it knows test images")
    assert score._known_weights(SHIPPED, None) == []


def test_8_the_classifiers_start_from_fresh_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    asked: list[object] = []
    original = models.resnet18

    def spy(**settings: Any) -> Any:
        asked.append(settings["weights"])
        return original(**settings)

    monkeypatch.setattr(models, "resnet18", spy)
    networks.build(SHIPPED.classifier, (3, 64, 64), 2)
    assert asked == [None]
    loaded = {f for f in mentions("from_pretrained") | callers("from_pretrained")}
    assert not loaded


def test_8_pretrained_generators_stand_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Traits(density="implicit", likelihood="none")
    traits = {"naive": fresh, "flow_matching": replace(fresh, pretrained=True)}
    monkeypatch.setattr(registry, "family", lambda name: SimpleNamespace(traits=traits[name]))
    real_choice(real=0.1).write(tmp_path / "real")
    for name, mean in (("naive", 0.6), ("flow_matching", 0.9)):
        pool_choice(synthetic=mean, replay=mean).write(tmp_path / name)
    assert score.Choices.read(tmp_path, ["flow_matching", "naive"], METRIC).primary == "naive"
    traits["flow_matching"] = fresh
    assert score.Choices.read(tmp_path, ["flow_matching", "naive"], METRIC).primary == "flow_matching"
    traits["naive"] = replace(fresh, pretrained=True)
    assert any("may have seen the test images" in w for w in warnings_of())


def test_8_images_of_unknown_sources_are_named() -> None:
    params = digits_project.params(generators=["external"])
    choices: Any = SimpleNamespace(real=real_choice(), families={"external": pool_choice()}, primary="external")
    test = digits_project.rows(np.zeros((40, 1, 8, 8), np.uint8), ["0"] * 40, "test")
    assert any("nobody can say" in w for w in score._warnings(params, ["0"], [3], test, choices))


# 9. Near-duplicates across the split; file formats that give the class away.


def test_9_near_duplicates_stay_on_one_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "tests/datasets")
    folder_of_pictures(tmp_path / "raw")
    assert not overlap(sides(tmp_path / "raw", tmp_path / "guarded"))
    monkeypatch.setattr(duplicates, "near_pairs", lambda *_: np.zeros((0, 2), np.int64))
    assert overlap(sides(tmp_path / "raw", tmp_path / "unguarded"))


def test_9_the_same_pixels_give_the_same_bytes_whatever_file_they_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "tests/datasets")
    from helpers import making

    for i in range(24):
        (tmp_path / "raw" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        making.picture(i).save(tmp_path / "raw" / "ab"[i % 2] / f"{i}.{['png', 'bmp'][i % 2]}")
    sides(tmp_path / "raw", tmp_path / "prepared")
    rows = [Manifest.read(tmp_path / f"prepared/{s}.parquet") for s in ("train", "val", "test")]
    for part in rows:
        for data, image in zip(part.table["image"].to_pylist(), part.images(), strict=True):
            assert data == encode_png(image)
