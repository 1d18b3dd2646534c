"""Runs in workers: the same results in any number of them, no orphan, no work done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import digits_project
from helpers.toy import alive, descendants, until
from pipeline.arms import Arm, TrainingData, recipes
from pipeline.classifier.packed import Campaign, Run, runs_of, train_all
from pipeline.config import Engine
from pipeline.core import weights
from pipeline.errors import Diverged, WorkerLost
from pipeline.metrics.standard import BalancedAccuracy

ROOT = Path(__file__).parents[2]
PARAMS = digits_project.params(classifier={"network": "small", "steps": 4, "batch_images": 8, "lr": 0.01, "weight_decay": 0.0})
CONFIG = PARAMS.in_mode("scratch")


def campaign(workers: int = 2, **settings: object) -> Campaign:
    r = np.random.default_rng(0)
    images, targets = r.integers(0, 256, (12, 1, 8, 8), dtype=np.uint8), np.arange(12) % 3
    none = np.zeros(0, np.int64)
    data = TrainingData(3, images, targets, images[:0], none, none.astype(bool), none, np.zeros(1, np.int64))
    where = PARAMS.engine.model_copy(update={"workers": workers})
    return Campaign(data, CONFIG.model_copy(update=settings), "none", 0, images, targets, where, BalancedAccuracy())


def runs(folder: Path, n: int = 2) -> list[Run]:
    known = recipes(CONFIG)
    return [run for name in ("real", "mixup") for run in runs_of(Arm(name, known[name]), range(n), folder / name)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_results_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    for workers in (1, 3):
        train_all(campaign(workers), runs(tmp_path / str(workers)))
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert set(contents(tmp_path / "1")) == {f"{arm}/{i}.safetensors" for arm in ("real", "mixup") for i in range(2)}


def test_ray_makes_the_same_classifiers(tmp_path: Path, cluster: Engine) -> None:
    train_all(campaign(), runs(tmp_path / "local"))
    train_all(replace(campaign(), engine=cluster), runs(tmp_path / "ray"))
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")


def test_every_real_only_arm_is_trained_and_its_file_gives_the_network_that_was_scored(tmp_path: Path) -> None:
    from torch import from_numpy

    from pipeline.classifier import train

    shared = campaign()
    every = [Run(Arm(name, recipe), 0, tmp_path / name / "0.safetensors") for name, recipe in recipes(CONFIG).items()]
    train_all(shared, every)
    for run in every:
        predicted = train.predict(train.load(run.file), from_numpy(shared.val_images))
        assert run.score == shared.metric.score(predicted, shared.val_targets), run.arm.name


def test_the_score_is_that_of_the_weights(tmp_path: Path) -> None:
    from torch import from_numpy

    from pipeline.classifier import train

    shared, run = campaign(1), runs(tmp_path, 1)[0]
    train_all(shared, [run])
    predicted = train.predict(train.load(run.file), from_numpy(shared.val_images))
    assert run.score == shared.metric.score(predicted, shared.val_targets)


def test_only_missing_runs_are_trained(tmp_path: Path) -> None:
    train_all(campaign(), runs(tmp_path))
    before = contents(tmp_path)
    lost = tmp_path / "mixup" / "1.safetensors"
    lost.unlink()
    kept = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")}
    train_all(campaign(), runs(tmp_path))
    assert contents(tmp_path) == before
    assert all(f.stat().st_mtime_ns == time for f, time in kept.items())


def test_a_diverged_run_is_told_by_the_parent(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="lower lr"):
        train_all(campaign(lr=1e30, steps=60), runs(tmp_path))


def test_a_fault_in_a_worker_is_loud(tmp_path: Path) -> None:
    whole = campaign()
    with pytest.raises(WorkerLost, match="ended with status 1") as lost:
        train_all(replace(whole, val_images=whole.val_images[:, :, :, :0]), runs(tmp_path))
    assert lost.value.exit_status == 1


# The imports are not those of the workers, which import the script too.
SCRIPT = """
if __name__ == "__main__":
    import sys
    from pathlib import Path
    sys.path[:0] = [{tests!r}]
    from test_packed import campaign, runs
    from pipeline.classifier.packed import train_all
    train_all(campaign(steps=10_000_000), runs(Path({folder!r})))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    with open(tmp_path / "log", "wb") as log:
        parent = subprocess.Popen([sys.executable, script], env=os.environ | path, stderr=log, cwd=ROOT)
    # Parent, resource tracker, fork server, and two workers that have begun a run.
    until(
        lambda: len(descendants(parent.pid)) >= 4 and b"images/s" in (tmp_path / "log").read_bytes(), "the start of two workers"
    )
    family = descendants(parent.pid)
    os.kill(parent.pid, number)
    status = parent.wait(timeout=60)
    assert status == {signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}.get(number, status) != 0
    until(lambda: not any(map(alive, family)), "the end of the workers")


def test_the_card_says_what_was_trained(tmp_path: Path) -> None:
    run = Run(
        Arm("synthetic", recipes(CONFIG)["real"], synthetic_fraction=0.5, labels="soft"), 3, tmp_path / "a" / "3.safetensors"
    )
    train_all(campaign(1), [run])
    card = weights.load(run.file)[1]
    assert (card["arm"], card["synthetic_fraction"], card["labels"], card["number"]) == ("synthetic", 0.5, "soft", 3)
    assert card["classifier"] == CONFIG.model_dump()
