"""The worktree of scheduled runs: what it holds, what cannot enter it, and how its commits come back."""

from __future__ import annotations

import fcntl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import dvc, git, worktree
from helpers.nightly import lay
from helpers.released import OTHER, fill
from helpers.toy import until

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path, command: Command) -> Path:
    return lay(tmp_path / "project", command, families="[naive]")


def commit(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    git.ask(folder, "add", name)
    git.ask(folder, "commit", "--quiet", "--message", name)


def run(folder: Path) -> None:
    list(dvc.reproduce(folder, dvc.stages(folder), log=lambda _: None))


def test_a_run_is_of_the_last_commit_whatever_is_edited_meanwhile(project: Path) -> None:
    (project / "stage.py").write_text("not what was committed")
    with worktree.opened(project) as folder:
        assert "not what" not in (folder / "stage.py").read_text()
        (project / "params.yaml").write_text("seed: 7\n")
        run(folder)
        assert "seed: 0" in (folder / "dvc.lock").read_text()
    assert not (project / "data").exists() and not (project / "dvc.lock").exists()


def test_images_of_a_relative_path_and_local_settings_are_those_of_the_project(project: Path) -> None:
    (project / ".dvc/config.local").write_text("['remote \"store\"']\n    url = ssh://host/store\n    password = secret\n")
    with worktree.opened(project) as folder:
        assert (folder / "source").resolve() == project / "source"
        assert "password = secret" in (folder / ".dvc/config.local").read_text()
        assert dvc.cache(folder) == dvc.cache(project)
        run(folder)
    fill(project, OTHER, "no_gain")
    with worktree.opened(project) as folder:
        assert dvc.changed(folder, "prepare") == ["prepare"]


@pytest.mark.fault(1, "a scheduled run that was killed: what had ended is kept, what it left is gone")
def test_what_a_run_left_is_gone_and_what_it_had_begun_is_there(project: Path) -> None:
    with worktree.opened(project) as folder:
        run(folder)
        (folder / "stage.py").write_text("edited by a run that was killed")
        (folder / "left").write_text("untracked")
        begun = folder / ".tailforge/partial/half"
        begun.parent.mkdir(parents=True)
        begun.write_text("half")
        index = folder / git.ask(folder, "rev-parse", "--git-path", "index.lock").strip()
        index.write_text("")  # as a kill of git leaves it
    commit(project, "notes.md", "other notes")
    with worktree.opened(project) as folder:
        assert "edited" not in (folder / "stage.py").read_text() and not (folder / "left").exists()
        assert begun.read_text() == "half" and (folder / "notes.md").read_text() == "other notes"
        assert dvc.changed(folder, "fit@naive") == ["fit@naive"]  # dvc.lock was not committed
        ends = list(dvc.reproduce(folder, dvc.stages(folder), log=lambda _: None))
        assert set(ends) == {"cached"}  # but what had ended is kept


def test_the_results_of_the_last_release_are_in_place(project: Path) -> None:
    with worktree.opened(project) as folder:
        run(folder)
        git.ask(folder, "add", "dvc.lock")
        git.ask(folder, "commit", "--quiet", "--message", "run")
        worktree.keep(project, git.ask(folder, "rev-parse", "HEAD").strip())
    (folder / "data/models/naive/model").write_text("damaged")
    with worktree.opened(project) as folder:
        assert dvc.changed(folder, "fit", "prepare") == [] and "damaged" not in (folder / "data/models/naive/model").read_text()


@pytest.mark.fault(11, "two scheduled runs at once: the second waits for the worktree, and says so")
def test_a_second_run_waits_for_the_first(project: Path) -> None:
    said, order = list[str](), list[str]()

    def second() -> None:
        with worktree.opened(project, said.append):
            order.append("second")

    with worktree.opened(project):
        other = threading.Thread(target=second)
        other.start()
        until(lambda: bool(said), "the second run to say that it waits")
        order.append("first")
    other.join()
    assert order == ["first", "second"] and "waiting for another run" in said[0]


@pytest.mark.fault(10, "a stage on a worker outlives its run: the next run waits for it before it checks out another commit")
def test_a_run_waits_for_a_stage_that_a_dead_one_has_sent(project: Path) -> None:
    (project.parent / "control/wait").write_text("")
    said, opened = list[str](), threading.Event()

    def following() -> None:
        with worktree.opened(project, said.append):
            opened.set()

    with worktree.opened(project) as folder:
        stages = dvc.stages(folder)
    left = threading.Thread(target=lambda: list(dvc.reproduce(folder, stages, log=lambda _: None)))
    left.start()  # nobody holds the worktree
    until((project.parent / "control/log").exists, "the stage")
    commit(project, "params.yaml", (project / "params.yaml").read_text().replace("a: 1", "a: 2"))
    other = threading.Thread(target=following)
    other.start()
    until(lambda: bool(said), "the run to say that it waits")
    assert "the run that started it is gone" in said[0] and not opened.is_set()
    assert "a: 2" not in (folder / "params.yaml").read_text()
    (project.parent / "control/wait").unlink()
    left.join()
    other.join()
    assert opened.is_set() and "a: 2" in (folder / "params.yaml").read_text()
    assert dvc.changed(folder, "fit@naive") == ["fit@naive"]


def test_a_worktree_of_which_git_knows_no_more_is_made_anew(project: Path) -> None:
    with worktree.opened(project) as folder:
        pass
    (folder / ".git").unlink()
    (folder / "stray").write_text("")
    with worktree.opened(project) as folder:
        assert not (folder / "stray").exists() and (folder / "stage.py").exists()


@pytest.mark.parametrize("meanwhile", ["nothing", "commit", "edit of another file"])
def test_commits_of_a_run_come_into_the_project(project: Path, meanwhile: str) -> None:
    with worktree.opened(project) as folder:
        commit(folder, "result", "done")
        made = git.ask(folder, "rev-parse", "HEAD").strip()
    if meanwhile == "commit":
        commit(project, "notes.md", "mine")
    elif meanwhile != "nothing":
        (project / "notes.md").write_text("mine")
    worktree.keep(project, made)
    assert (project / "result").read_text() == "done"
    assert (project / "notes.md").read_text() == ("notes\n" if meanwhile == "nothing" else "mine")
    assert git.ask(project, "symbolic-ref", "--short", "HEAD").strip() == "main"


@pytest.mark.parametrize("meanwhile", ["edit", "commit"])
def test_a_merge_that_cannot_be_leaves_everything(project: Path, meanwhile: str) -> None:
    with worktree.opened(project) as folder:
        commit(folder, "notes.md", "of the run")
        made = git.ask(folder, "rev-parse", "HEAD").strip()
    (project / "notes.md").write_text("mine")
    if meanwhile == "commit":
        commit(project, "notes.md", "mine")
    before = git.ask(project, "rev-parse", "HEAD"), git.ask(project, "status", "--porcelain")
    with pytest.raises(git.GitError):
        worktree.keep(project, made)
    assert (git.ask(project, "rev-parse", "HEAD"), git.ask(project, "status", "--porcelain")) == before
    assert (project / "notes.md").read_text() == "mine"


def test_a_project_below_the_root_of_its_repository(tmp_path: Path, command: Command) -> None:
    root = tmp_path / "root"
    project = lay(root / "below", command)
    (project / ".git").rename(root / ".git")
    command("dvc", "init", "--quiet", "--subdir", "--force", cwd=project)
    command("git", "add", "--all", cwd=root)
    command("git", "commit", "--quiet", "--message", "moved", cwd=root)
    with worktree.opened(project) as folder:
        assert folder.name == "below" and (folder / "stage.py").exists()
        run(folder)


@pytest.mark.parametrize("path", ["../../../mine", "../mine"])
def test_a_path_that_leads_out_of_the_worktree_touches_nothing(project: Path, path: str) -> None:
    """From .tailforge/worktrees/scheduled the first is the project's own folder `mine`, which once was removed for a link."""
    (project / "mine").mkdir()
    (project / "mine/precious").write_text("mine")
    commit(project, "params.yaml", (project / "params.yaml").read_text().replace("path: source", f"path: {path}"))
    with pytest.raises(git.GitError, match="leads out of the project"), worktree.opened(project):
        pass
    assert (project / "mine/precious").read_text() == "mine"


def test_a_folder_of_images_within_another_is_not_removed(project: Path) -> None:
    """The outer one is a link to the project's, so what lies below it is the project's as well."""
    (project / "source/made").mkdir()
    (project / "source/made/precious").write_text("mine")
    commit(
        project,
        "params.yaml",
        (project / "params.yaml").read_text().replace("path: source", "path: source, external: source/made"),
    )
    for _ in range(2):
        with worktree.opened(project) as folder:
            assert (folder / "source/made/precious").read_text() == "mine"
    assert (project / "source/made/precious").read_text() == "mine" and not (project / "source/made").is_symlink()


def test_nothing_is_merged_while_a_run_works_in_the_project(project: Path) -> None:
    with worktree.opened(project) as folder:
        commit(folder, "result", "done")
        made = git.ask(folder, "rev-parse", "HEAD").strip()
    with open(project / ".tailforge/run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(git.GitError, match="a run works in the project"):
            worktree.keep(project, made)
    assert not (project / "result").exists()


def test_results_that_no_cache_has_are_not_overwritten(project: Path) -> None:
    with worktree.opened(project) as folder:
        run(folder)
        git.ask(folder, "add", "dvc.lock")
        git.ask(folder, "commit", "--quiet", "--message", "run")
        made = git.ask(folder, "rev-parse", "HEAD").strip()
    (project / "data").mkdir()
    (project / "data/prepared.txt").write_text("of mine, in no cache")
    with pytest.raises(dvc.DvcError):
        worktree.keep(project, made)
    assert (project / "data/prepared.txt").read_text() == "of mine, in no cache"
