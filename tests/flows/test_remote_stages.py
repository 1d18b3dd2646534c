"""Stages on other hosts: clones that share nothing with the project but a bare git remote and a DVC remote."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows import dvc, git, remote_stages, worktree
from helpers.nightly import clone, heads, lay

Command = Callable[..., subprocess.CompletedProcess[str]]
FITS = ["fit@naive", "fit@gan"]


@pytest.fixture
def hosts(tmp_path: Path, command: Command) -> tuple[Path, Path, Path]:
    """The project and two clones; only the project has the images."""
    project = lay(tmp_path / "project", command)
    clones = [tmp_path / f"host{i}" / "clone" for i in (1, 2)]
    clone(project, command, *clones)
    return project, clones[0], clones[1]


def run(folder: Path, *stages: str) -> list[str]:
    return [*dvc.reproduce(folder, stages, log=lambda _: None)]


def test_stages_of_two_hosts_are_merged_by_stage(hosts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    project, *clones = hosts
    with worktree.opened(project) as folder:
        run(folder, "prepare")
        head = git.ask(folder, "rev-parse", "HEAD"), git.ask(folder, "status", "--porcelain")
        remote_stages.publish(folder, "origin", "1", ["prepare"])
        assert (git.ask(folder, "rev-parse", "HEAD"), git.ask(folder, "status", "--porcelain")) == head
        for host, stage in zip(clones, FITS, strict=True):
            assert not (host / "source").exists()
            assert remote_stages.reproduce(host, "origin", "1", stage, "a", print) == "ran"
        for stage in FITS:
            assert stage not in (folder / "dvc.lock").read_text()
            remote_stages.collect(folder, "origin", "1", stage, "a")
        assert run(folder, *FITS) == ["skipped", "skipped"]
        assert run(folder, "evaluate") == ["ran"]
        for family in ("naive", "gan"):
            assert (folder / "data/models" / family / "model").read_text() == (folder / "data/prepared.txt").read_text()
        remote_stages.publish(folder, "origin", "12", ["prepare"])  # of another run, whose name begins alike
        remote_stages.forget(folder, "origin", "1")
        assert heads(project, "origin") == ["refs/heads/main", "refs/heads/tailforge/12"]
        assert [heads(host, ".") for host in clones] == [["refs/heads/main"]] * 2


@pytest.mark.fault(10, "a machine taken for dead that sends the same stage late, at any moment: nothing of it reaches the run")
@pytest.mark.parametrize("late", ["before", "after", "when forgotten"])
def test_a_late_writer_is_read_by_nobody(hosts: tuple[Path, Path, Path], late: str, points: Callable[[int], None]) -> None:
    project, slow, quick = hosts
    (slow.parent / "control/add").write_text("late")
    stage = "fit@naive"

    def act(now: str) -> None:
        if now == late:
            assert remote_stages.reproduce(slow, "origin", "1", stage, "lost", print) == "ran"

    with worktree.opened(project) as folder:
        run(folder, "prepare")
        remote_stages.publish(folder, "origin", "1", ["prepare"])
        git.ask(slow, "fetch", "--quiet", "origin", "+refs/heads/tailforge/1:refs/heads/kept")  # what it had fetched in time
        act("before")
        remote_stages.reproduce(quick, "origin", "1", stage, "seen", print)
        act("after")
        remote_stages.collect(folder, "origin", "1", stage, "seen")
        remote_stages.forget(folder, "origin", "1")
        if late == "when forgotten":
            git.ask(slow, "push", "--quiet", "origin", "refs/heads/kept:refs/heads/tailforge/1")
        act("when forgotten")
        model = (quick / ".tailforge/worktrees/stage-none/data/models/naive/model").read_text()
        assert (folder / "data/models/naive/model").read_text() == model and "late" not in model
        assert run(folder, stage, "fit@gan", "evaluate") == ["skipped", "ran", "ran"]
        assert (folder / "data/models/naive/model").read_text() == model
        remote_stages.forget(folder, "origin", "1")  # as after the next matrix of the run
        assert heads(project, "origin") == ["refs/heads/main"]
    points(1)


def test_a_host_fetches_what_the_stage_needs_and_no_more(hosts: tuple[Path, Path, Path]) -> None:
    project, host, _ = hosts
    with worktree.opened(project) as folder:
        run(folder, "prepare", *FITS)
        remote_stages.publish(folder, "origin", "1", ["prepare", "fit@gan"])
        lock = yaml.safe_load((folder / "dvc.lock").read_text())
        lock["stages"].pop("fit@naive")
        (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
        remote_stages.publish(folder, "origin", "1", ["prepare", "fit@gan"])
        remote_stages.reproduce(host, "origin", "1", "fit@naive", "a", print)
    there = host / ".tailforge/worktrees/stage-none"
    assert (there / "data/prepared.txt").exists() and not (there / "data/models/gan").exists()


def test_a_failed_stage_says_so_and_sends_nothing(hosts: tuple[Path, Path, Path]) -> None:
    project, host, _ = hosts
    (host.parent / "control/fail").write_text("")
    with worktree.opened(project) as folder:
        run(folder, "prepare")
        remote_stages.publish(folder, "origin", "1", ["prepare"])
        with pytest.raises(dvc.StageFailed, match="no luck today"):
            remote_stages.reproduce(host, "origin", "1", "fit@naive", "a", print)
        with pytest.raises(git.GitError):
            remote_stages.collect(folder, "origin", "1", "fit@naive", "a")


@pytest.mark.fault(22, "git's remote gone while a run sends its state: named")
def test_a_remote_that_is_gone_is_named(hosts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    project = hosts[0]
    with worktree.opened(project) as folder:
        run(folder, "prepare")
        (tmp_path / "git").rename(tmp_path / "gone")
        with pytest.raises(git.GitError, match=str(tmp_path / "git")):
            remote_stages.publish(folder, "origin", "1", ["prepare"])
