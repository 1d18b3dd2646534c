"""The modes with an encoder: every arm on its features, and of its network; beside `scratch`; at a generator's resolution."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from helpers import digits_project
from pipeline import config
from pipeline.arms import Arm, recipes
from pipeline.classifier import headroom, networks, train
from pipeline.classifier.choice import ClassRecall, Headroom, RealChoice, Scores
from pipeline.classifier.inputs import Inputs
from pipeline.classifier.packed import Campaign, runs_of
from pipeline.classifier.teaching import soft_labels, taught
from pipeline.config import REAL_ARMS, Encoder
from pipeline.core.images import at_resolution
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.encoders import store
from pipeline.encoders.pretrained import Pretrained
from pipeline.errors import ConfigError
from pipeline.evaluation import near
from pipeline.metrics.registry import named
from pipeline.stages import evaluate
from pipeline.stages import train as stage

ENCODER: dict[str, object] = {"name": "tf_efficientnet_lite0.in1k", "size": 32}
SHORT: dict[str, object] = {"views": 2, "width": 16, "steps": 30, "batch_images": 16, "lr": 0.01}
SEVERAL = digits_project.params(
    encoder=ENCODER, frozen=SHORT, classifier={"modes": ["scratch", "frozen"]}, fit={"image_size": 4},
    arms={"real": ["real", "augment+logit_adjustment"], "labels": ["hard", "soft"], "curve": [1]}, evaluate={"bootstrap": 100},
)  # fmt: skip
ALL = {"real": list(REAL_ARMS), "seeds": 1}
TUNED: dict[str, object] = {"steps": 2, "batch_images": 8}


class Counted:
    """How many images encoders have looked at."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.images, encode = 0, Pretrained._encode

        def counting(encoder: Pretrained, images: np.ndarray) -> np.ndarray:
            self.images += len(images)
            return encode(encoder, images)

        patch.setattr(Pretrained, "_encode", counting)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any], dict[str, int]]]:
    """Both modes, trained and evaluated: the project, its metrics, and how many images were looked at by then."""
    folder = tmp_path_factory.mktemp("frozen")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(digits_project.write(folder))
        counted, seen = Counted(patch), dict[str, int]()
        stage.run(SEVERAL, Path("prepared"), Path("runs/real"))
        seen["real"] = counted.images
        pool = (Path("pools/naive"), Path("checked/naive"))
        stage.run(SEVERAL, Path("prepared"), Path("runs/naive"), "naive", *pool, Path("runs/real"))
        seen["naive"] = counted.images
        evaluate.run(SEVERAL, Path("prepared"), Path("runs"), Path("metrics.json"), Path("gains.csv"), Path("evaluation"))
        seen["evaluate"] = counted.images
        yield folder, json.loads(Path("metrics.json").read_text()), seen


def test_the_best_of_both_modes_is_what_synthetic_images_are_added_to(
    done: tuple[Path, dict[str, Any], dict[str, int]],
) -> None:
    folder, metrics, _ = done
    real = json.loads((folder / "runs/real/choice.json").read_text())
    arms = [f"{mode}:{arm}" for mode in ("scratch", "frozen") for arm in ("real", "augment+logit_adjustment")]
    assert set(real["validation"]) == set(arms) <= set(metrics["arms"])
    best = max(real["validation"].values(), key=lambda row: row["mean"])["mean"]
    assert real["validation"][real["best_real_arm"]]["mean"] == best
    assert real["best_real_arm"].startswith(f"{real['mode']}:") and real["teacher"].startswith(f"{real['mode']}:")
    made = {networks.mode(train.load(file)) for file in (folder / "runs/naive").rglob("0.safetensors")}
    assert made == {real["mode"]}
    with open(folder / "gains.csv", newline="") as file:
        assert {row["arm"] for row in csv.DictReader(file)} >= set(arms) - {metrics["baseline"]}


def test_what_the_encoder_alone_is_worth_is_told(done: tuple[Path, dict[str, Any], dict[str, int]]) -> None:
    _, metrics, _ = done
    part, arms = metrics["decomposition"]["encoder"], metrics["arms"]
    assert part["arm"].startswith("frozen:") and part["over"].startswith("scratch:")
    points = [arms[part[side]]["balanced_accuracy"]["estimate"] for side in ("arm", "over")]
    assert part["estimate"] == pytest.approx(points[0] - points[1], abs=1e-6)
    for name in ("logistic_regression", "nearest_mean", "nearest_neighbours", "discriminant_analysis"):
        assert metrics["reference"][f"encoder:{name}"]["balanced_accuracy"]["estimate"] > 0.3


def test_images_are_looked_at_once_and_test_rows_by_evaluate_alone(
    done: tuple[Path, dict[str, Any], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, seen = done
    data = Prepared(folder / "prepared")
    test, train_rows = (set(rows.column("pixel_hash")) for rows in (data.test(), data.train()))
    assert seen["evaluate"] == seen["naive"] + (1 + SEVERAL.frozen.views) * len(test - train_rows)
    monkeypatch.chdir(folder)
    counted = Counted(monkeypatch)
    stage.run(SEVERAL, Path("prepared"), Path("runs/again"))
    assert counted.images == 0


@pytest.mark.parametrize(("mode", "images", "least"), [("frozen", 30 * 16, 0.3), ("finetune", 2 * 8, 0.0)])
def test_every_arm_is_trained_in_every_mode(
    mode: config.Mode, images: int, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points of SMOTE, mixed pairs, cosine layers, deferred schedules, students: with as many steps as every other arm."""
    monkeypatch.chdir(digits_project.write(tmp_path))
    taken: list[int] = []
    monkeypatch.setattr(Campaign, "execute", counting_steps(taken))
    classifier: dict[str, object] = {"mode": mode, "distillation_images": 2}
    params = digits_project.params(encoder=ENCODER, frozen=SHORT, finetune=TUNED, classifier=classifier, arms=ALL)
    stage.run(params, Path("prepared"), Path("runs/real"))
    found = json.loads(Path("runs/real/choice.json").read_text())["validation"]
    assert set(found) == set(REAL_ARMS) and set(taken) == {images} and len(taken) == len(REAL_ARMS)
    assert max(row["mean"] for row in found.values()) > least
    assert {networks.mode(train.load(file)) for file in Path("runs/real").rglob("0.safetensors")} == {mode}


def counting_steps(taken: list[int]) -> Any:
    execute = Campaign.execute

    def counted(self: Campaign, run: Any, progress: Any) -> None:
        images: list[int] = []
        execute(self, run, lambda n: (images.append(n), progress(n))[1])
        taken.append(sum(images))

    return counted


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_without_an_encoder_the_mode_is_refused_in_a_line(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits_project.write(tmp_path))
    with pytest.raises(ConfigError, match=r"encoder\.name=none.*set encoder\.name=tf_efficientnet_lite0\.in1k"):
        stage.run(digits_project.params(classifier={"mode": mode}), Path("prepared"), Path("runs/real"))


# What is said beside the numbers


def test_arms_with_outside_knowledge_are_named(done: tuple[Path, dict[str, Any], dict[str, int]]) -> None:
    folder, metrics, _ = done
    outside, mode = set(metrics["outside_knowledge"]), json.loads((folder / "runs/real/choice.json").read_text())["mode"]
    assert {"frozen:real", "frozen:augment+logit_adjustment", "encoder:nearest_mean"} <= outside
    assert not {"scratch:real", "random_forest"} & outside
    assert ("synthetic" in outside) == ("replay" in outside) == (mode == "frozen")


def test_headroom_is_told_with_what_the_encoder_brings(
    done: tuple[Path, dict[str, Any], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = done
    monkeypatch.chdir(folder)
    choice, said = RealChoice.read(Path("runs/real")), json.loads(Path("evaluation/details.json").read_text())["headroom"]
    assert choice.best_real_arm in said and "frozen 0." in said and "1 more real images a class add" in said
    found = choice.headroom
    assert found is not None and found.images == 80 and found.score == choice.validation[choice.best_real_arm].mean
    recalls = [row.recall for row in found.weakest]
    assert recalls == sorted(recalls) and found.score == pytest.approx(np.mean(recalls))
    assert found.errors == pytest.approx(80 * (1 - found.score))  # as many images of each class


@pytest.mark.parametrize(
    ("errors", "curve", "advice"),
    [
        (0.5, None, "nothing left to add: label images, or stop"),
        (9.0, None, "Weakest classes, to generate for: dog 0.40 (9 images)"),
        (9.0, 0.001, "Synthetic ones will not add more: look through an encoder, train longer, or stop"),
    ],
)
def test_nothing_is_left_where_errors_are_few_or_real_images_add_nothing(
    errors: float, curve: float | None, advice: str
) -> None:
    weak = (ClassRecall(index=1, recall=0.4, images=9), ClassRecall(index=0, recall=1.0, images=9))
    found = Headroom(score=0.9, errors=errors, images=100, weakest=weak, curve=curve, curve_extra=curve and 30)
    rows = {"real": Scores.of([0.9])}
    choice = RealChoice(best_real_arm="real", teacher="real", validation=rows, headroom=found)
    said = headroom.said(choice, named("balanced_accuracy"), ["cat", "dog"])
    assert said.endswith(advice) and headroom.nothing_left(found) == ("Weakest" not in advice)


def test_near_duplicates_across_splits_are_listed_with_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test image that is a train image with a little less contrast: other pixels, nearly the same features."""
    monkeypatch.chdir(digits_project.write(tmp_path))
    data = Prepared(Path("prepared"))
    encoder, train_rows, val, test = (
        Pretrained.made(data.shape, Encoder.model_validate(ENCODER)),
        data.train(),
        data.val(),
        data.test(),
    )
    before = near.pairs(SEVERAL, encoder, train_rows, val, test)
    pale = (train_rows.images()[:3].float() * 0.9).round().byte().numpy()
    planted = digits_project.rows(pale, list(train_rows.column("label")[:3]), "test", "real", "planted")
    found = near.pairs(SEVERAL, encoder, train_rows, val, Manifest(pa.concat_tables([test.table, planted.table])))
    pairs = {pair.test: (pair.other, pair.split) for pair in found}
    assert {f"planted-test-{i}": (train_rows.column("sample_id")[i], "train") for i in range(3)}.items() <= pairs.items()
    assert len(found) == len(before) + 3 and len(before) < 0.1 * len(test)
    assert near.warning([], "x") == [] and "planted-test-0 ~ d-train-0 (train)" in near.warning(found, "x")[0]


# Resolution


@pytest.mark.parametrize("mode", ["scratch", "frozen"])
def test_real_images_are_seen_at_the_resolution_of_the_pool_too(
    mode: config.Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blur is no mark of a synthetic image: half of the real draws have it, and all that `replay` adds."""
    monkeypatch.chdir(digits_project.write(tmp_path))
    pool = Manifest.read(Path("pools/naive"))
    shared = Campaign.of(SEVERAL, Prepared(Path("prepared")), mode, pool)
    low = shared.data.low_images
    assert low is not None and low.shape == shared.data.images.shape and not np.array_equal(low, shared.data.images)
    recipe = recipes(shared.config)["augment"]
    for adds in ("accepted", "replay"):
        plan = Arm("x", recipe, adds, synthetic_fraction=0.5).build(shared.data, 0)  # type: ignore[arg-type]
        n = len(shared.data.targets)
        assert plan.low is not None and torch.equal(plan.low[:n], torch.from_numpy(low))
        assert torch.equal(plan.low[n:], plan.images[n:])
        if adds == "replay":
            rows = {row.tobytes() for row in low}
            assert all(row.tobytes() in rows for row in plan.images[n:].numpy())
    assert Arm("x", recipe).build(shared.data, 0).low is None  # it adds nothing

    sharp, blurred, added = drawn(shared, Arm("x", recipes(shared.config)["real"], "accepted", synthetic_fraction=0.5))
    assert added > 100 and blurred > 100 and abs(sharp - blurred) < 0.25 * (sharp + blurred)


def test_with_soft_labels_replay_adds_images_at_the_resolution_of_the_pool_too(
    done: tuple[Path, dict[str, Any], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of the augmented images of a student a draw takes either."""
    folder, _, _ = done
    monkeypatch.chdir(folder)
    choice = RealChoice.read(Path("runs/real"))
    alone = Campaign.of(SEVERAL, Prepared(Path("prepared")), choice.mode, Manifest.read(Path("pools/naive")))
    recipe = recipes(alone.config)[choice.teacher.removeprefix(alone.prefix)]
    teacher = runs_of(Arm(choice.teacher, recipe), range(2), Path("runs/real") / choice.teacher)
    data = taught(alone, teacher).data
    low, sharp = data.low_augmented_images, data.augmented_images
    assert low is not None and sharp is not None and low.shape == sharp.shape and not np.array_equal(low, sharp)
    np.testing.assert_array_equal(data.low_augmented_soft_labels, soft_labels(teacher, low))
    arm = Arm("replay", replace(recipe.student(), distilled=0.5), "replay", synthetic_fraction=0.5, labels="soft")
    plan, n = arm.build(data, 0), len(data.targets)
    assert plan.low is not None
    of_student, added = plan.images[n : n + len(sharp)], plan.images[n + len(sharp) :]
    np.testing.assert_array_equal(of_student, sharp)
    np.testing.assert_array_equal(plan.low[n : n + len(sharp)], low)
    lowered, detailed = ({row.tobytes() for row in rows} for rows in (low, sharp))
    assert all(row.tobytes() in lowered - detailed for row in added.numpy())


def drawn(shared: Campaign, arm: Arm) -> tuple[int, int, int]:
    """Of what the steps of a run hand to its network: real images as they are, real ones without detail, added ones."""
    plan = replace(arm.build(shared.data, 0), transform="none")
    assert plan.low is not None
    n = len(shared.data.targets)

    def keys(rows: torch.Tensor) -> set[bytes]:
        seen = rows[:, 0].float() if rows.ndim == 3 else rows.float() / 127.5 - 1
        return {row.numpy().tobytes() for row in seen}

    kinds, counts = [keys(plan.images[:n]), keys(plan.low[:n]), keys(plan.images[n:])], [0, 0, 0]

    class Spy(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for row in x:
                key = row.numpy().tobytes()
                counts[next(i for i, kind in enumerate(kinds) if key in kind)] += 1
            out: torch.Tensor = self.network(x)
            return out

    with pytest.MonkeyPatch.context() as patch:
        made = train.initial
        patch.setattr(train, "initial", lambda *given: Spy(made(*given)))
        settings = shared.config.model_copy(update={"steps": 40, "batch_images": 16})
        train.fit(plan, settings, seed=0, progress=lambda _: None)
    return counts[0], counts[1], counts[2]


def test_features_at_a_lower_resolution_are_those_of_images_without_detail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits_project.write(tmp_path))
    data = Prepared(Path("prepared"))
    rows, inputs = data.val(), Inputs.of(SEVERAL, data.shape, "frozen")
    lowered = at_resolution(rows.images(), 4)
    assert not torch.equal(lowered, rows.images())
    found = inputs.at(4).to_learn(rows)[:, 0]
    assert inputs.encoder is not None
    expected = store.features(lowered.numpy(), inputs.encoder)
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
