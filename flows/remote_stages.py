"""Stages on other machines, each of which has a clone of the project: git carries the state, DVC's remote the data.

publish     here: what a run has so far, to DVC's remote and the branch tailforge/RUN
reproduce   there: that branch in a worktree of the clone; what the stage needs is pulled, what it made is pushed, and its
            dvc.lock goes to the branch tailforge/RUN--STAGE--ATTEMPT
collect     here: that stage's entry of dvc.lock and its results; entries of stages that ran side by side do not meet
forget      these branches

A branch for each stage, since no two machines push to one; and for each attempt at it, since a machine that was taken for
dead may still push: the run collects the attempt that it saw end, and nobody reads what another one wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import yaml

from flows import device, dvc, git, worktree

LOCK = "dvc.lock"
FILES = (LOCK, "params.yaml", "metrics.json", "gains.csv")  # of a run's state, those that are there


def branch(run: str, *attempt: str) -> str:
    """refs/heads/tailforge/RUN, or of an attempt (stage, id): refs/heads/tailforge/RUN--STAGE--ID"""
    return "--".join([f"refs/heads/tailforge/{run}", *(part.replace("@", "-") for part in attempt)])


def publish(project: Path, remote: str, run: str, done: Sequence[str]) -> None:
    """Send the results of the stages `done`, and the state, to where others find them. Raises GitError, DvcError."""
    dvc.push(project, *done)
    _push(project, remote, branch(run))


def reproduce(clone: Path, remote: str, run: str, stage: str, attempt: str, log: Callable[[str], object]) -> dvc.Outcome:
    """Reproduce `stage` of a run in a worktree of `clone`, on the device that the environment names, and send what came out
    as the attempt with the id `attempt`.

    Raises GitError, DvcError, StageFailed.
    """
    own = branch(run, stage, attempt)
    git.ask(clone, "fetch", "--quiet", remote, f"+{branch(run)}:{own}")
    with device.held(log) as held, worktree.opened(clone, log, revision=own, name=f"stage-{device.name()}") as folder:
        git.ask(clone, "update-ref", "-d", own)
        dvc.pull(folder, stage)
        with closing(dvc.reproduce(folder, [stage], log=log, keep=held)) as ends:
            outcome = next(ends)
        dvc.push(folder, stage)
        _push(folder, remote, own)
    return outcome


def collect(project: Path, remote: str, run: str, stage: str, attempt: str) -> None:
    """Take over what `reproduce` has sent as this attempt. Raises GitError, DvcError."""
    git.ask(project, "fetch", "--quiet", remote, branch(run, stage, attempt))
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
