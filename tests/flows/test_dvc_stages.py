"""flows/dvc on a small project: outcomes, output, failures, and that no process outlives the one who asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flows import children, dvc, warm
from flows.dvc import commands
from helpers.toy import ROOT, WAIT, alive, descendants, pids, setting, until


def quiet(_line: str) -> None:
    pass


def reproduce(folder: Path, *stages: str, force: bool = False) -> list[dvc.Outcome]:
    return list(dvc.reproduce(folder, stages, force=stages if force else (), log=quiet))


def test_stages_are_named_in_order(toy: Path) -> None:
    assert dvc.stages(toy) == ["first", "second@naive", "second@external", "last"]


def test_dvc_names_stages_once_for_each_state_of_the_files(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, kept = dvc.stages(toy), toy / ".tailforge/stages.json"
    with monkeypatch.context() as patch:
        patch.setattr(commands, "run", lambda *_: pytest.fail("DVC was asked again"))
        assert dvc.stages(toy) == names
    setting(toy, "generators: [naive, external]", "generators: [external]")
    assert dvc.stages(toy) == ["first", "second@external", "last"]
    for torn in ("", "[]", '{"read": 3}'):
        kept.write_text(torn)
        assert dvc.stages(toy) == ["first", "second@external", "last"]


def test_skipped_ran_and_cached(toy: Path) -> None:
    assert not dvc.changed(toy)
    assert reproduce(toy, "second@naive") == ["skipped"]
    setting(toy, "shrinkage: 0.2", "shrinkage: 0.3")
    assert dvc.changed(toy)
    assert reproduce(toy, *dvc.stages(toy)) == ["skipped", "ran", "skipped", "skipped"]
    setting(toy, "shrinkage: 0.3", "shrinkage: 0.2")
    assert reproduce(toy, "second@naive") == ["cached"]
    assert reproduce(toy, "second@naive", force=True) == ["ran"]
    assert not dvc.changed(toy)


def test_some_stages_are_forced_and_each_line_comes_with_its_stage(toy: Path) -> None:
    lines: list[str] = []
    with closing(dvc.reproduce(toy, dvc.stages(toy), force=["first", "last"], log=lines.append)) as outcomes:
        for stage, outcome in [("first", "ran"), ("second@naive", "skipped"), ("second@external", "skipped"), ("last", "ran")]:
            lines.clear()
            assert next(outcomes) == outcome
            assert stage in lines[0] and not [line for line in lines if "Stage" in line and stage not in line]
            assert (f"hello from {stage}" in lines) == (outcome == "ran")
        assert list(outcomes) == []


def test_no_stage_runs_after_one_that_failed(toy: Path) -> None:
    setting(toy, "seed: 0", "seed: 13")
    outcomes = dvc.reproduce(toy, ["second@naive", "first", "last"], force=["last"], log=quiet)
    assert next(outcomes) == "skipped"
    with pytest.raises(dvc.StageFailed) as caught:
        next(outcomes)
    assert (caught.value.stage, caught.value.exit_status) == ("first", 2) and list(outcomes) == []


def test_closing_stops_the_stage_that_runs(toy: Path) -> None:
    setting(toy, "seed: 0", "seed: 99")
    outcomes = dvc.reproduce(toy, ["second@naive", "first"], log=quiet)
    assert next(outcomes) == "skipped"
    stage, child = pids(toy)
    outcomes.close()
    assert not alive(stage) and not alive(child) and (toy / "left").read_text() == "saved"


def test_results_of_a_dropped_family_are_swept_and_come_back_from_the_cache(toy: Path) -> None:
    assert dvc.sweep(toy, dvc.stages(toy)) == []
    setting(toy, "[naive, external]", "[naive]")
    assert dvc.sweep(toy, dvc.stages(toy)) == ["data/runs/external"]
    assert [path.name for path in (toy / "data/runs").iterdir() if path.is_dir()] == ["naive"]
    setting(toy, "[naive]", "[naive, external]")
    assert reproduce(toy, "second@external") != ["ran"] and (toy / "data/runs/external/model").is_file()


def test_output_comes_line_by_line_and_progress_now_and_then(toy: Path) -> None:
    lines: list[str] = []
    assert list(dvc.reproduce(toy, ["second@naive"], force=["second@naive"], log=lines.append)) == ["ran"]
    assert "hello from second" in lines and "step 50 of 50" in lines
    assert sum(line.startswith("step") for line in lines) <= 3
    assert not [line for line in lines if "\r" in line or "git add" in line]


def test_a_failed_stage_shows_its_own_last_lines_and_status(toy: Path) -> None:
    setting(toy, "seed: 0", "seed: 13")
    with pytest.raises(dvc.StageFailed) as caught:
        reproduce(toy, "first")
    assert caught.value.exit_status == 2
    assert caught.value.lines[-1] == "error: seed=13; expected a lucky one; change seed"
    assert "failed to reproduce" not in str(caught.value) and "hello from first" in str(caught.value)


@pytest.mark.parametrize(("seed", "status", "killed"), [(66, 137, True), (13, 2, False)])
def test_whether_a_stage_was_killed_is_told(toy: Path, seed: int, status: int, killed: bool) -> None:
    setting(toy, "seed: 0", f"seed: {seed}")
    with pytest.raises(dvc.StageFailed) as caught:
        reproduce(toy, "first")
    assert (caught.value.exit_status, caught.value.killed) == (status, killed)


def test_what_dvc_refuses_is_said_in_its_words(toy: Path) -> None:
    with pytest.raises(dvc.StageFailed, match="nosuch"):
        reproduce(toy, "nosuch")
    (toy / "dvc.yaml").write_text("stages: 3")
    with pytest.raises(dvc.DvcError, match=r"dvc\.yaml"):
        dvc.stages(toy)


ASK = """\
import sys
from pathlib import Path
from flows import dvc
list(dvc.reproduce(Path("."), ["first"]))
"""


@pytest.fixture
def asker(toy: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reproduces the stage `first`, which waits; in a session of its own, so that a stray one is found."""
    setting(toy, "seed: 0", "seed: 99")
    process = subprocess.Popen(
        [sys.executable, "-c", ASK], cwd=toy, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.fault(5, "who asked for a stage is interrupted or killed: the stage saves and ends")
def test_when_the_asker_ends_the_stage_saves_and_its_group_ends(
    toy: Path, asker: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    stage, child = pids(toy)
    asker.send_signal(number)
    asker.wait(WAIT)
    until(lambda: not alive(stage) and not alive(child), "the end of the stage and its child")
    assert (toy / "left").read_text() == "saved"


@pytest.mark.fault(8, "a stage of a killed DVC runs again")
def test_a_stopped_stage_runs_again(toy: Path, asker: subprocess.Popen[bytes]) -> None:
    stage, _ = pids(toy)
    asker.kill()
    asker.wait(WAIT)
    until(lambda: not alive(stage), "the end of the stage")
    setting(toy, "seed: 99", "seed: 1")
    assert reproduce(toy, "first") == ["ran"]
    assert (toy / "first.txt").read_text().startswith("seed: 1 ")


STUBBORN = """\
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_who_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    with children.supervised([sys.executable, "-c", STUBBORN], cwd=tmp_path, output=subprocess.PIPE, grace=0.2) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.terminate()
        assert process.wait(WAIT) == 128 + signal.SIGKILL
    assert not alive(pid)


LEAVES_A_CHILD = """\
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
"""


def test_what_a_finished_command_leaves_behind_is_stopped(tmp_path: Path) -> None:
    with children.supervised([sys.executable, "-c", LEAVES_A_CHILD], cwd=tmp_path, output=subprocess.PIPE, grace=10) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
    assert process.returncode == 0 and not alive(pid)


def test_who_has_a_warm_process_already_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warm.VARIABLE, "named")
    before = descendants(os.getpid())
    with warm.process(tmp_path, grace=0.1):
        assert os.environ[warm.VARIABLE] == "named" and descendants(os.getpid()) <= before
    assert os.environ[warm.VARIABLE] == "named"
