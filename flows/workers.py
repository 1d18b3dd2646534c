"""Stages that want a device, sent to the workers of the pool `gpu`: those of one matrix side by side.

Each is a run of the deployment `reproduce-stage`. The run that sends them fails with them, and they are cancelled with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas import FlowRun, TaskRun
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.futures import wait
from prefect.states import Cancelling, Completed, Failed

from flows import dvc, elsewhere

DEVICE = ("fit", "sample", "train_real", "train_synthetic", "train_ensemble")
REPRODUCE_STAGE = "stage/reproduce-stage"  # of prefect.yaml
CRASHES = 2  # of one stage on workers, after which it counts as failed
POLL = 2.0  # seconds between two looks at a run on a worker


class StageCrashed(RuntimeError):
    """The process of a stage on a worker ended without a result: the worker, its machine or its memory gave way."""


def wanted(stage: str) -> bool:
    """Whether the stage wants a device to itself."""
    return _verb(stage) in DEVICE


def reproduce(project: Path, stages: Sequence[str], done: Sequence[str], remote: str) -> State[Any] | None:
    """Have workers reproduce what has changed of `stages`; a Failed state after the first matrix that failed.

    `done` are the stages before, which are up to date. With `remote` workers have clones (flows/elsewhere.py); else they work
    in the folder `project`, where this run is the only one: what a dead one had queued for it is cancelled first. Raises
    DvcError, GitError.
    """
    run = str(_run().id)
    where = {"remote": remote, "run": run} if remote else {"project": str(project.absolute())}
    _cancel(where)
    for _, group in itertools.groupby(stages, _verb):
        names = list(group)
        if not (changed := dvc.changed(project, *names)):
            continue
        if remote:
            elsewhere.publish(project, remote, run, [*done, *stages[: stages.index(names[0])]])
        try:
            futures = [on_worker.submit(name, where) for name in changed]
            wait(futures)
        except BaseException:
            _cancel(where)
            raise
        states = [future.state for future in futures]
        wrong = [state for state in states if not state.is_completed()]
        if remote:
            for name, state in zip(changed, states, strict=True) if not wrong else ():
                elsewhere.collect(project, remote, run, name, attempt=state.result())
            elsewhere.forget(project, remote, run)
        if wrong:
            return Failed(message="\n".join(str(state.message) for state in wrong))
    return None


def _crashed(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), StageCrashed)


@task(
    task_run_name="{stage} on a worker", cache_policy=NO_CACHE, persist_result=False, retries=CRASHES,
    retry_condition_fn=_crashed,
)  # fmt: skip
def on_worker(stage: str, where: dict[str, str]) -> State[Any]:
    """Send a stage to the pool `gpu`, to be reproduced `where` these parameters say, and wait for its end; the result is the id
    of the run that completed. A run that crashed, as with its worker, is sent again, and is another one; one that failed would
    fail again."""
    parameters = {"stage": stage} | where
    sent = cast(FlowRun, run_deployment(REPRODUCE_STAGE, parameters=parameters, timeout=None, poll_interval=POLL))
    state = cast(State[Any], sent.state)
    if state.is_crashed():
        raise StageCrashed(f"{stage}: {state.message}")
    if state.is_completed():
        return Completed(message=stage, data=str(sent.id))
    return Failed(message=f"{stage}: {state.name}, {state.message}")


def _cancel(where: dict[str, str]) -> None:
    """Ask the server to cancel the stages that were sent there and have not ended."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(REPRODUCE_STAGE)
        unfinished = {"deployment_id": {"any_": [deployment.id]}, "state": {"type": {"not_any_": list(TERMINAL_STATES)}}}
        for sent in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(unfinished)):
            if where.items() <= sent.parameters.items():
                client.set_flow_run_state(sent.id, Cancelling(), force=True)


def _run() -> FlowRun:
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None  # called from a flow
    return context.flow_run


def _verb(stage: str) -> str:
    return stage.partition("@")[0]
