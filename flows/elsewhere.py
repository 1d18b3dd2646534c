"""Stages on other machines, each of which has a clone of the project: git carries the state, DVC's remote the data.

publish     here: what a run has so far, to DVC's remote and the branch tailforge/RUN
reproduce   there: that branch in a worktree of the clone; what the stage needs is pulled, what it made is pushed, and its
            dvc.lock goes to the branch tailforge/RUN--STAGE, one for each stage, so that no two machines push to one
collect     here: that stage's entry of dvc.lock and its results; entries of stages that ran side by side do not meet
forget      these branches
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import yaml

from flows import device, dvc, git, worktree

LOCK = "dvc.lock"
FILES = (LOCK, "params.yaml", "metrics.json", "gains.csv")  # of a run's state, those that are there


def branch(run: str, stage: str = "") -> str:
    """refs/heads/tailforge/RUN--STAGE"""
    return f"refs/heads/tailforge/{run}{'--' + stage.replace('@', '-') if stage else ''}"


def publish(project: Path, remote: str, run: str, done: Sequence[str]) -> None:
    """Send the results of the stages `done`, and the state, to where others find them. Raises GitError, DvcError."""
    dvc.push(project, *done)
    _push(project, remote, branch(run))


def reproduce(clone: Path, remote: str, run: str, stage: str, log: Callable[[str], object]) -> dvc.Outcome:
    """Reproduce `stage` of a run in a worktree of `clone`, on the device that the environment names, and send what came out.

    Raises GitError, DvcError, StageFailed.
    """
    git.ask(clone, "fetch", "--quiet", remote, f"+{branch(run)}:{branch(run)}")
    with device.held(log) as held, worktree.opened(clone, log, revision=branch(run), name=f"stage-{device.name()}") as folder:
        dvc.pull(folder, stage)
        with closing(dvc.reproduce(folder, [stage], log=log, keep=held)) as ends:
            outcome = next(ends)
        dvc.push(folder, stage)
        _push(folder, remote, branch(run, stage))
    return outcome


def collect(project: Path, remote: str, run: str, stage: str) -> None:
    """Take over what `reproduce` has sent. Raises GitError, DvcError."""
    git.ask(project, "fetch", "--quiet", remote, branch(run, stage))
    theirs = yaml.safe_load(git.ask(project, "show", f"FETCH_HEAD:./{LOCK}"))
    file = project / LOCK
    ours = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {"schema": theirs["schema"], "stages": {}}
    ours["stages"][stage] = theirs["stages"][stage]
    partial = file.with_name(f".{LOCK}.partial")
    partial.write_text(yaml.safe_dump(ours, sort_keys=False), encoding="utf-8")
    partial.replace(file)
    dvc.pull(project, stage, own=True)


def forget(project: Path, remote: str, run: str) -> None:
    """Remove the branches of this run from the remote, and of no other. Raises GitError."""
    listed = git.ask(project, "ls-remote", remote, branch(run), branch(run) + "--*").split()[1::2]
    if listed:
        git.ask(project, "push", "--quiet", remote, "--delete", *listed)


def _push(folder: Path, remote: str, ref: str) -> None:
    files = [name for name in FILES if (folder / name).exists()]
    made = git.snapshot(folder, files, f"State of {ref.removeprefix('refs/heads/')}")
    git.ask(folder, "push", "--quiet", "--force", remote, f"{made}:{ref}")
