"""What the deployments of prefect.yaml run.

    scheduled   a run of `augment` in the project's worktree, then its release: augment, augment-on-new-data, evaluate-only
    stage       one stage, on the device of the worker that takes it: reproduce-stage

Stages that want a device (flows/workers.py) are runs of `stage` in the pool `gpu`. All others run in the process of
`scheduled`, in the pool `cpu`. One run works in the worktree at a time; the next one waits.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.states import Completed, Crashed, Failed

from flows import children, device, dvc, git, images, remote_stages, warm, workers, worktree
from flows.augment import augment

PROJECT = "TAILFORGE_PROJECT"
GRACE = dvc.GRACE + 5.0


@flow(name="scheduled", persist_result=False, validate_parameters=False)
def scheduled(
    project: str = "",
    only: Sequence[str] = (),
    if_new: bool = False,
    send: bool = True,
    push: bool = False,
    remote: str = "",
) -> State[Any]:
    """Bring the project's last commit up to date in its worktree, release the results and merge the release into the project.

    `project` is its folder; by default that of TAILFORGE_PROJECT. `only` names stages; by default all. With `if_new` nothing
    happens unless the images, or the settings and the code that read them, have changed. `send` gives stages that want a device
    to the pool `gpu`. `push` sends the data to DVC's remote before the release is made. `remote` is a remote of git through
    which workers on other machines reach the project in clones of their own (flows/remote_stages.py). Without it workers use
    this worktree.
    """
    home = _folder(project)
    with worktree.opened(home, get_run_logger().info, clear=workers.clear) as folder:
        if if_new and not (images.unread(folder) or dvc.changed(folder, images.STAGE)):
            return Completed(message="no new data")
        with warm.process(folder, grace=GRACE):
            state = augment(folder, only=only, send=send, remote=remote, return_state=True)
        if not state.is_completed():
            return Failed(message=state.message)
        made = release(folder, push or bool(remote))
        merge(home, made["tag"] if git.precedes(folder, "HEAD", made["tag"]) else git.ask(folder, "rev-parse", "HEAD").strip())
        if remote:
            share(folder, remote, made["tag"])
    return Completed(message=f"{made['name']}: {made['verdict']}{'' if made['new'] else ', as before'}")


@flow(name="stage", flow_run_name="{stage}", persist_result=False, validate_parameters=False)
def reproduce_stage(stage: str, project: str = "", remote: str = "", run: str = "") -> dvc.Outcome | State[Any]:
    """Reproduce one stage on this worker's device, in the folder `project`; by default that of TAILFORGE_PROJECT.

    With `remote` the stage belongs to the run `run` of another machine. `project` is then a folder there, and
    TAILFORGE_PROJECT is a clone here.
    """
    log = get_run_logger().info
    try:
        if remote:
            return remote_stages.reproduce(_folder(""), remote, run, stage, attempt=str(flow_run.id), log=log)
        with device.held(log) as held, closing(dvc.reproduce(_folder(project), [stage], log=log, keep=held)) as ends:
            return next(ends)
    except dvc.StageFailed as failed:
        return (Crashed if failed.killed else Failed)(message=str(failed))


@task(cache_policy=NO_CACHE, persist_result=False)
def release(folder: Path, push: bool) -> dict[str, Any]:
    """Keep the results as a release; returns what `tailforge release --json` prints."""
    command = [*children.interpreter(folder), "-m", "tailforge", "release", "--json", *(["--push"] if push else [])]
    done = subprocess.run(
        command, cwd=folder, env=children.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    made: dict[str, Any] = json.loads(done.stdout)
    get_run_logger().info("%s: %s%s", made["tag"], made["verdict"], "" if made["new"] else ", as before")
    if made["new"]:
        emit_event("tailforge.dataset.released", resource={"prefect.resource.id": "tailforge.dataset"}, payload={
            key: made[key] for key in ("name", "tag", "commit", "verdict", "images")
        })  # fmt: skip
    return made


@task(cache_policy=NO_CACHE, persist_result=False)
def merge(project: Path, revision: str) -> None:
    """Merge the release into the project's branch and put its results in place; otherwise log how to do that by hand."""
    log = get_run_logger().warning
    try:
        worktree.keep(project, revision)
    except git.GitError as error:
        log("%s is not merged into the project (%s): run `git merge %s` there", revision, error, revision)
    except dvc.DvcError as error:
        log("%s is merged, its results are not in place (%s): run `dvc checkout` there", revision, error)


@task(cache_policy=NO_CACHE, persist_result=False)
def share(folder: Path, remote: str, tag: str) -> None:
    """Push the release to git's remote."""
    git.ask(folder, "push", "--quiet", remote, f"refs/tags/{tag}")


def _folder(project: str) -> Path:
    folder = Path(project or os.environ.get(PROJECT, "")).absolute()
    if not (folder / "dvc.yaml").is_file():
        raise FileNotFoundError(f"{folder} is no project; give its folder as the parameter `project`, or set {PROJECT}")
    return folder
