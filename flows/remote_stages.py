"""Stages on other machines. Each has a clone of the project: git carries the state, DVC's remote the data.

publish     here: push the results so far to DVC's remote, and the state to the branch tailforge/RUN
reproduce   there: check that branch out in a worktree of the clone, pull what the stage reads, run it; push its results to
            DVC's remote and its dvc.lock to the branch tailforge/RUN--STAGE--ATTEMPT
collect     here: take over that stage's entry of dvc.lock, and its results
forget      here: remove these branches

Each stage has a branch of its own, so no two machines push to one. Each attempt has one too: a machine that was taken for
dead may still push. The run collects the attempt that it saw end; nothing reads the branch of another attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import yaml

from flows import device, dvc, git, worktree

LOCK = "dvc.lock"
FILES = (LOCK, "params.yaml", "metrics.json", "gains.csv")  # the state of a run; some may be missing


def branch(run: str, *attempt: str) -> str:
    """refs/heads/tailforge/RUN; for an attempt (stage, id) refs/heads/tailforge/RUN--STAGE--ID."""
    return "--".join([f"refs/heads/tailforge/{run}", *(part.replace("@", "-") for part in attempt)])


def publish(project: Path, remote: str, run: str, done: Sequence[str]) -> None:
    """Push the results of the stages `done`, and the state of the run. Raises GitError, DvcError."""
    dvc.push(project, *done)
    _push(project, remote, branch(run))


def reproduce(clone: Path, remote: str, run: str, stage: str, attempt: str, log: Callable[[str], object]) -> dvc.Outcome:
    """Reproduce `stage` of the run in a worktree of `clone` and push the outcome under the id `attempt`.

    It runs on the device that the environment names. Raises GitError, DvcError, StageFailed.
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
    """Take over what `reproduce` has pushed for this attempt. Raises GitError, DvcError."""
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
    """Remove the branches of this run from the remote. Raises GitError."""
    listed = git.ask(project, "ls-remote", remote, branch(run), branch(run) + "--*").split()[1::2]
    if listed:
        git.ask(project, "push", "--quiet", remote, "--delete", *listed)


def _push(folder: Path, remote: str, ref: str) -> None:
    files = [name for name in FILES if (folder / name).exists()]
    made = git.snapshot(folder, files, f"State of {ref.removeprefix('refs/heads/')}")
    git.ask(folder, "push", "--quiet", "--force", remote, f"{made}:{ref}")
