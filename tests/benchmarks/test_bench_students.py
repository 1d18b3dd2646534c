"""The ablations of benchmarks.students and the A/A of benchmarks.null, on a small project of real digits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import null, students
from helpers import digits_project
from pipeline import config
from pipeline.arms import Arm, recipes
from pipeline.classifier.packed import runs_of
from pipeline.stages import train
from tailforge import settings

SMALL = {
    "generators": ["naive"], "classifier.steps": 6, "classifier.width": 8, "classifier.batch_images": 16, "arms.seeds": 2,
    "arms.real": ["cutmix+logit_adjustment"], "evaluate.bootstrap": 100,
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set called small, with its real-only runs."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / students.PLACE / "small"
    place.mkdir(parents=True)
    (place / "metrics.json").write_text("{}")
    (place / "dvc.lock").write_text("as it was run")
    text = settings.apply((digits_project.ROOT / "params.yaml").read_text(), SMALL)
    (place / "params.yaml").write_text(text)
    digits_project.write(place / "data")
    train.run(config.read(place / "params.yaml"), place / "data/prepared", place / "data/runs/real")
    return place


def test_each_plan_is_compared_with_the_recipe_and_the_page_holds_the_table(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(students, "SEEDS", range(2))
    seen = {}
    trained = students.train_all
    monkeypatch.setattr(
        students,
        "train_all",
        lambda shared, runs: (seen.setdefault(runs[0].file.parent.name, (shared, runs[0])), trained(shared, runs)),
    )
    page = Path("docs/experiments.md")
    page.parent.mkdir()
    page.write_text("before\n<!-- students small -->\nold\n<!-- /students small -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["students", "small"])
    students.main()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 11 + 1 and len({line.count("|") for line in lines}) == 1
    assert "small: 6 steps, 96 accepted of 120 images" in text

    def plan(start: str) -> tuple[str, str, bool]:
        shared, run = seen[next(name for name in seen if name.startswith(start))]
        built = run.arm.build(shared.data, 0)
        return built.transform, built.mix, bool(built.soft_labels.any())

    assert plan("0-") == plan("3-") == ("affine", "cutmix", False)
    assert plan("4-") == ("none", "none", True) and plan("6-") == ("affine", "cutmix", True)
    assert all(plan(f"{i}-") == ("none", "none", True) for i in (1, 2, 7, 8, 9, 10))
    augmented, plain = (seen[f"{i}-self_distillation"][0].data for i in (1, 2))
    own = {image.tobytes() for image in plain.images}
    assert all(image.tobytes() in own for image in plain.augmented_images) and not all(
        image.tobytes() in own for image in augmented.augmented_images
    )
    first = next(i for i, image in enumerate(plain.images) if np.array_equal(image, plain.augmented_images[0]))
    name = "cutmix+logit_adjustment"
    arm = Arm(name, recipes(config.read(place / "params.yaml").classifier)[name])
    teacher = runs_of(arm, range(2), place / "data/runs/real" / name)
    expected = students.teaching.soft_labels(teacher, plain.images[first : first + 1])[0]
    np.testing.assert_allclose(plain.augmented_soft_labels[0], expected, rtol=1e-5)


def test_a_project_that_was_not_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (students, null):
        monkeypatch.setattr(sys, "argv", ["x", "digits"])
        with pytest.raises(SystemExit) as stopped:
            module.main()
        assert stopped.value.code == 2 and "make bench-gain DATASETS=digits" in capsys.readouterr().err


def test_runs_of_another_state_of_the_project_are_not_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(null, "RUNS", 4)
    monkeypatch.setattr(null, "PAIRS", 2)
    trained: list[list[Path]] = []
    train_all = null.train_all
    monkeypatch.setattr(
        null, "train_all", lambda s, runs: (trained.append([r.file for r in runs if not r.file.exists()]), train_all(s, runs))
    )
    for _ in range(2):
        null.verdicts("small")
    (place / "dvc.lock").write_text("run again")
    null.verdicts("small")
    assert [len(files) for files in trained] == [4, 0, 4]


def test_a_gain_of_nothing_is_counted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(null, "RUNS", 4)
    monkeypatch.setattr(null, "PAIRS", 60)
    monkeypatch.setattr(sys, "argv", ["null", "small"])
    null.main()
    found = json.loads((null.RESULTS / "null.json").read_text())
    assert found["gain"] + found["no_gain"] + found["harm"] == pytest.approx(1.0)
    assert (found["arm"], found["runs"], found["pairs"]) == ("cutmix+logit_adjustment", 4, 60)
    # Runs that differ by much more than their groups do are told apart in some draws, in both directions alike.
    skill = iter([0.0, 0.0, 1.0, 1.0])

    def predicted(_network: object, images: torch.Tensor) -> np.ndarray:
        truth = np.eye(10)[np.repeat(np.arange(10), 8)] if next(skill) else np.eye(10)[np.zeros(80, int)]
        return truth[: len(images)]

    monkeypatch.setattr(null.train, "predict", predicted)
    found = null.verdicts("small")
    assert found["gain"] > 0 and found["harm"] > 0
