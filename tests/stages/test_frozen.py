"""The mode `frozen`: every arm on features of the encoder, beside `scratch`, and at the resolution of a generator."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import digits_project
from pipeline import config
from pipeline.arms import Arm, recipes
from pipeline.classifier import networks, train
from pipeline.classifier.choice import RealChoice
from pipeline.classifier.inputs import Inputs
from pipeline.classifier.packed import Campaign, runs_of
from pipeline.classifier.teaching import soft_labels, taught
from pipeline.config import REAL_ARMS
from pipeline.core.images import at_resolution
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.encoders import store
from pipeline.encoders.pretrained import Pretrained
from pipeline.errors import ConfigError
from pipeline.stages import evaluate
from pipeline.stages import train as stage

ENCODER: dict[str, object] = {"name": "tf_efficientnet_lite0.in1k", "size": 32}
SHORT: dict[str, object] = {"views": 2, "width": 16, "steps": 30, "batch_images": 16, "lr": 0.01}
SEVERAL = digits_project.params(
    encoder=ENCODER, frozen=SHORT, classifier={"modes": ["scratch", "frozen"]}, fit={"image_size": 4},
    arms={"real": ["real", "augment+logit_adjustment"], "labels": ["hard", "soft"], "curve": [1]}, evaluate={"bootstrap": 100},
)  # fmt: skip
ALL = digits_project.params(
    encoder=ENCODER, frozen=SHORT, classifier={"mode": "frozen"}, arms={"real": list(REAL_ARMS), "seeds": 1},
)  # fmt: skip


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
    assert seen["evaluate"] == seen["naive"] + len(test - train_rows)
    monkeypatch.chdir(folder)
    counted = Counted(monkeypatch)
    stage.run(SEVERAL, Path("prepared"), Path("runs/again"))
    assert counted.images == 0


def test_every_arm_is_trained_on_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points of SMOTE, mixed pairs, cosine layers, deferred schedules, students: with as many steps as every other arm."""
    monkeypatch.chdir(digits_project.write(tmp_path))
    taken: list[int] = []
    monkeypatch.setattr(Campaign, "execute", counting_steps(taken))
    stage.run(ALL, Path("prepared"), Path("runs/real"))
    found = json.loads(Path("runs/real/choice.json").read_text())["validation"]
    assert set(found) == set(REAL_ARMS) and set(taken) == {30 * 16} and len(taken) == len(REAL_ARMS)
    assert max(row["mean"] for row in found.values()) > 0.3


def counting_steps(taken: list[int]) -> Any:
    execute = Campaign.execute

    def counted(self: Campaign, run: Any, progress: Any) -> None:
        images: list[int] = []
        execute(self, run, lambda n: (images.append(n), progress(n))[1])
        taken.append(sum(images))

    return counted


def test_without_an_encoder_the_mode_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits_project.write(tmp_path))
    with pytest.raises(ConfigError, match=r"encoder\.name=none.*set encoder\.name=tf_efficientnet_lite0\.in1k"):
        stage.run(digits_project.params(classifier={"mode": "frozen"}), Path("prepared"), Path("runs/real"))


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
