"""Every write, rename, fsync and unlink of the storage layer and of whole stages, in turn, as the place of a fault."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.digits_project import params as digits_params
from helpers.disk import Disk, Killed, Trial, contents
from helpers.making import folders, params
from helpers.versions import DIGITS, first, noisy, version
from pipeline.core import work
from pipeline.datasets import intake
from pipeline.errors import StorageError
from pipeline.stages import drift, fit, prepare, sample

SETTINGS = digits_params(drift={"permutations": 100}, sample={"fill_to": 3, "shard_images": 4})
Points = Callable[[int], None]


@pytest.fixture(autouse=True)
def back_home() -> Iterator[None]:
    here = Path.cwd()
    yield
    os.chdir(here)


def two_files() -> None:
    """A stage's way: shards that are kept, a file that Arrow would write, a folder, a checkpoint that is dropped."""
    with work.resumable(Path("data/out"), 1, Path("input")) as folder:
        for i in range(3):
            if not (folder / f"part-{i}").exists():
                work.write(folder / f"part-{i}", bytes([i]) * 100)
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / "plain").write_bytes(b"plain" * 30)
        work.write(folder / ".checkpoints", "checkpoint")
    work.write_json(Path("metrics.json"), {"a": 1})


def one_file() -> None:
    with work.resumable(Path("data/out"), 1) as folder:
        if not (folder / "part").exists():
            work.write(folder / "part", "part")


def lay_two_files(base: Path) -> Path:
    base.mkdir()
    (base / "input").write_text("input")
    (base / "data/out/sub").mkdir(parents=True)
    (base / "data/out/sub/old").write_text("old")
    return base


def stage_prepare() -> None:
    prepare.run(params(data={"source": "folder", "path": "raw", "image_size": 8}), Path("data/prepared"))


def stage_drift() -> None:
    drift.run(SETTINGS, Path("d"), Path("data"))


def stages_fit_and_sample() -> None:
    fit.run(SETTINGS, "naive", Path("a"), Path("a"), Path("data/model"), Path("costs/fit.json"))
    sample.run(SETTINGS, "naive", Path("a"), Path("a"), Path("data/model"), Path("data/pool"), Path("costs/sample.json"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each piece of work starts."""
    place = tmp_path_factory.mktemp("bases")
    folders(place / "prepare" / "raw", {"a": 6, "b": 6})
    version(place / "fit and sample" / "a", first(5, classes=2))
    before, after = first(24, classes=2), first(26, classes=2)
    version(place / "drift" / "a", before)
    version(place / "drift" / "d", after | {"1": np.concatenate([after["1"], noisy(DIGITS["1"][50:56])])})
    here = Path.cwd()
    os.chdir(place / "drift")
    drift.run(SETTINGS, Path("a"), Path("data"))
    os.chdir(here)
    lay_two_files(place / "work")
    return {folder.name: folder for folder in place.iterdir()}


WORKS = {"work": two_files, "prepare": stage_prepare, "drift": stage_drift, "fit and sample": stages_fit_and_sample}


@pytest.fixture(params=WORKS)
def trial(request: pytest.FixtureRequest, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.setattr(intake, "SHARD", 5)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power is lost here but in play
    monkeypatch.setattr(work, "code_key", lambda: "code")  # reads all sources, for each of the trials
    return Trial(bases[request.param], tmp_path / "project", "data", WORKS[request.param])


@pytest.mark.fault(1, "killed before every operation, every write torn: run again, the results are the same bytes")
def test_a_kill_at_any_operation_changes_no_result(trial: Trial, points: Points) -> None:
    for disk, fault in trial.faults("kill"):
        assert isinstance(fault, Killed) and disk.dead
        trial.ends_well()
    assert trial.points > 20
    points(trial.points)


@pytest.mark.fault(3, "every operation refused with EIO, once: one line, and run again the results are the same bytes")
@pytest.mark.parametrize("trial", ["work", "prepare"], indirect=True)
def test_an_error_at_any_operation_is_one_line_and_changes_no_result(trial: Trial, points: Points) -> None:
    for _, fault in trial.faults("once", errno.EIO):
        assert isinstance(fault, StorageError) and "\n" not in str(fault), repr(fault)
        trial.ends_well()
    points(trial.points)


@pytest.mark.fault(3, "the disk full from every operation on: one line that asks for room, and nothing lost")
@pytest.mark.parametrize("trial", ["work", "fit and sample"], indirect=True)
def test_a_disk_full_from_any_operation_on_is_one_line_and_changes_no_result(trial: Trial, points: Points) -> None:
    for _, fault in trial.faults("always", errno.ENOSPC):
        assert isinstance(fault, StorageError) and "free some space" in str(fault), repr(fault)
        trial.ends_well()
    points(trial.points)


@pytest.mark.fault(2, "power lost before every operation: what was not synced is empty or torn")
def test_a_power_loss_at_any_operation_changes_no_result(trial: Trial, points: Points) -> None:
    torn = 0
    for disk, _ in trial.faults("kill"):
        torn += len(disk.tear(0.5 * (disk.at % 2)))
        trial.ends_well()
    assert torn
    points(trial.points)


@pytest.mark.fault(
    2, "what is done is on the disk: nothing of a result is torn by a power loss after its end, no rename is lost"
)
def test_what_is_done_is_on_the_disk(trial: Trial, points: Points) -> None:
    trial.fresh()
    disk = Disk(trial.place)
    with disk.watched():
        trial.work()
    lost, renamed = disk.tear(0.0), disk.pending
    unfinished = trial.place / work.PARTIAL
    assert not [file for file in lost if not file.is_relative_to(unfinished)]
    assert not [folder for folder in renamed if not folder.is_relative_to(unfinished)]
    assert contents(trial.place / trial.out) == trial.expected
    points(1)


@pytest.mark.fault(6, "a bit flipped in each shard that a kill left: found, named, made again")
@pytest.mark.parametrize("trial", ["prepare", "fit and sample"], indirect=True)
def test_a_damaged_shard_is_named_and_made_again(trial: Trial, points: Points, capfd: pytest.CaptureFixture[str]) -> None:
    damaged = set[str]()
    for _ in trial.faults("kill"):
        left = [file for file in work.PARTIAL.rglob("part-*.parquet") if file.name not in damaged]
        if not left:
            continue
        damaged.add(left[0].name)
        whole = bytearray(left[0].read_bytes())
        whole[len(whole) // 2] ^= 1
        left[0].write_bytes(whole)
        capfd.readouterr()
        trial.ends_well()
        assert f"{left[0]} was damaged" in capfd.readouterr().err
        if len(damaged) == 2:
            break
    assert len(damaged) == 2
    points(len(damaged))


@pytest.mark.fault(4, "killed at every operation, and while that is made up for at every operation again")
def test_a_second_kill_during_recovery_changes_no_result(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: Points
) -> None:
    monkeypatch.setattr(work, "code_key", lambda: "code")
    monkeypatch.setattr(os, "fsync", lambda _: None)
    trial = Trial(bases["work"], tmp_path / "project", "data", one_file)
    twice = 0
    for _ in trial.faults("kill"):
        once = shutil.copytree(trial.place, tmp_path / "once")
        recovery = Trial(once, tmp_path / "again", "data", one_file)
        assert recovery.expected == trial.expected
        for _ in recovery.faults("kill"):
            recovery.ends_well()
        twice += recovery.points
        os.chdir("/")
        shutil.rmtree(once)
    assert twice > trial.points
    points(twice)
