"""Stages that want a device, sent to the workers of the pool `gpu`. Those of one matrix run side by side.

Each is a run of the deployment `reproduce-stage`. The run that sends them fails where one fails, and cancels them when it is
cancelled.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from prefect import State, Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas import FlowRun, TaskRun
from prefect.client.schemas.filters import DeploymentFilter, FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, StateType
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.futures import wait
from prefect.states import Cancelling, Completed, Failed

from flows import dvc, git, remote_stages

DEVICE = ("fit", "sample", "train_real", "train_synthetic", "train_ensemble")
REPRODUCE_STAGE = "stage/reproduce-stage"  # of prefect.yaml
CRASHES = 2  # how often a stage whose run crashed is sent again
POLL = 2.0  # seconds between two looks at a run on a worker
END = 30.0  # seconds, beyond a stage's own, in which a worker reports that it is cancelled


class StageCrashed(RuntimeError):
    """The process of a stage on a worker ended without a result: it was killed, or its worker or machine went down."""


def wanted(stage: str) -> bool:
    """Whether the stage wants a device to itself."""
    return _verb(stage) in DEVICE


def reproduce(project: Path, stages: Sequence[str], done: Sequence[str], remote: str) -> State[Any] | None:
    """Have workers reproduce those of `stages` that have changed; a Failed state after the first matrix that failed.

    `done` are the stages before them, which are up to date. With `remote` workers have clones (flows/remote_stages.py);
    otherwise they work in the folder `project`. Raises DvcError, GitError.
    """
    run = str(_run().id)
    where = _sent_for(project) | ({"remote": remote, "run": run} if remote else {})
    for _, group in itertools.groupby(stages, _verb):
        names = list(group)
        if not (changed := dvc.changed(project, *names)):
            continue
        if remote:
            remote_stages.publish(project, remote, run, [*done, *stages[: stages.index(names[0])]])
        try:
            futures = [on_worker.submit(name, where) for name in changed]
            wait(futures)
        except BaseException:
            _cancel(where)
            raise
        states = [future.state for future in futures]
        wrong = [state for state in states if not state.is_completed()]
        if remote and wrong:
            try:
                remote_stages.forget(project, remote, run)
            except git.GitError as error:  # what the stage said matters more
                get_run_logger().warning("the branches of this run are still at %s: %s", remote, error)
        elif remote:
            for name, state in zip(changed, states, strict=True):
                remote_stages.collect(project, remote, run, name, attempt=state.result())
            remote_stages.forget(project, remote, run)
        if wrong:
            return Failed(message="\n".join(str(state.message) for state in wrong))
    return None


def clear(project: Path) -> None:
    """Cancel the stages that a dead run has sent for `project`, and wait for their end. One run works there at a time.

    A stage that began later would run beside those of the next run, on files that the next run has checked out.
    """
    deadline = time.monotonic() + dvc.GRACE + END
    if left := _cancel(_sent_for(project)):
        get_run_logger().info("cancelled %d stages of a run that has died", left)
    # A stage whose worker died too is set to Crashed long after (flows/liveness.py). It has no process here.
    while left and time.monotonic() < deadline:
        time.sleep(POLL)
        left = _cancel(_sent_for(project))


def _crashed(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), StageCrashed)


@task(
    task_run_name="{stage} on a worker", cache_policy=NO_CACHE, persist_result=False, retries=CRASHES,
    retry_condition_fn=_crashed,
)  # fmt: skip
def on_worker(stage: str, where: dict[str, str]) -> State[Any]:
    """Send a stage with the parameters `where` to the pool `gpu` and wait for its end; the id of the run that completed.

    After a crash, as of its worker, the stage is sent again, as another run. One that failed is not: it would fail again.
    """
    parameters = {"stage": stage} | where
    sent = cast(FlowRun, run_deployment(REPRODUCE_STAGE, parameters=parameters, timeout=None, poll_interval=POLL))
    state = cast(State[Any], sent.state)
    if state.is_crashed():
        raise StageCrashed(f"{stage}: {state.message}")
    if state.is_completed():
        return Completed(message=stage, data=str(sent.id))
    return Failed(message=f"{stage}: {state.name}, {state.message}")


def _sent_for(project: Path) -> dict[str, str]:
    """The parameters by which a stage is known that was sent for the folder `project`."""
    return {"project": str(project.absolute())}


def _cancel(where: dict[str, str]) -> int:
    """Ask the server to cancel the stages that have these parameters and have not ended; their number."""
    flow, _, deployment = REPRODUCE_STAGE.partition("/")
    of_flow = FlowFilter.model_validate({"name": {"any_": [flow]}})
    of_deployment = DeploymentFilter.model_validate({"name": {"any_": [deployment]}})
    unfinished = FlowRunFilter.model_validate({"state": {"type": {"not_any_": list(TERMINAL_STATES)}}})
    found: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        while page := client.read_flow_runs(
            flow_filter=of_flow, deployment_filter=of_deployment, flow_run_filter=unfinished, offset=len(found)
        ):
            found += page
        sent = [run for run in found if where.items() <= run.parameters.items()]
        for run in sent:
            if not (run.state and run.state.type == StateType.CANCELLING):
                client.set_flow_run_state(run.id, Cancelling())
    return len(sent)


def _run() -> FlowRun:
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None  # the caller is in a flow
    return context.flow_run


def _verb(stage: str) -> str:
    return stage.partition("@")[0]
