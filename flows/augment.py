"""The flow `augment`: from the folder of images to the verdict, one task per DVC stage, in the order of dvc.yaml.

DVC decides what has to run and keeps the results. A task therefore has no cache and no persisted result of its own. Stages run
one after the other in the flow's own thread: each uses the whole machine, and a signal to the flow reaches the stage that runs.
Where the user has named no server, a temporary one runs (flows/server.py).

Under a schedule, stages that want a device go to workers (flows/workers.py).
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Failed

from flows import dvc, images, server, workers


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def reproduce(stage: str, outcomes: Iterator[dvc.Outcome]) -> dvc.Outcome | State[Any]:
    """Follow DVC through its next stage: ran | cached | skipped, or a Failed state whose message is the stage's last lines.

    The state is returned, not raised: a traceback through Prefect would bury those lines.
    """
    try:
        outcome = next(outcomes)
    except dvc.StageFailed as failed:
        return Failed(message=str(failed), data=failed.exit_status)
    get_run_logger().info("%s: %s", stage, outcome)
    return outcome


@flow(name="augment", persist_result=False, validate_parameters=False)
def augment(
    project: Path, force: Sequence[str] = (), only: Sequence[str] = (), send: bool = False, remote: str = ""
) -> dict[str, dvc.Outcome] | State[Any]:
    """Reproduce the stages of the project in the folder `project`: all, or those in `only`.

    Stages in `force` run even if nothing changed. With `send`, stages that want a device go to workers. With `remote`, a remote
    of git, these workers have clones of their own.

    Returns the outcome of each stage that ran here, and leaves two artifacts, `arms` and `verdict`. After a failed stage it
    returns a Failed state with that stage's message and exit status. Raises dvc.DvcError.
    """
    outcomes: dict[str, dvc.Outcome] = {}
    every = dvc.stages(project)
    for path in dvc.sweep(project, every):
        get_run_logger().info("removed %s: no stage of dvc.yaml makes it", path)
    stages = [stage for stage in every if not only or stage in only]
    if images.unread(project):
        force = [*force, images.STAGE]
    for sent, group in itertools.groupby(stages, lambda stage: send and workers.wanted(stage)):
        names = list(group)
        done = every[: every.index(names[0])]
        if failed := (workers.reproduce(project, names, done, remote) if sent else None) or _here(
            project, names, force, outcomes
        ):
            return failed
    publish(project)
    return outcomes


def _here(project: Path, stages: list[str], force: Sequence[str], outcomes: dict[str, dvc.Outcome]) -> State[Any] | None:
    """Reproduce `stages` on this machine and add their outcomes to `outcomes`; a Failed state after the first that failed."""
    if images.STAGE in stages:
        images.begin(project)
    with closing(dvc.reproduce(project, stages, force=force, log=lambda line: get_run_logger().info(line))) as ends:
        for stage in stages:
            state = reproduce(stage, ends, return_state=True)
            if not state.is_completed():
                return Failed(message=state.message, data=state.result(raise_on_failure=False))
            outcomes[stage] = cast(dvc.Outcome, state.result())
            if stage == images.STAGE:
                images.end(project)
    return None


@task(cache_policy=NO_CACHE, persist_result=False)
def publish(project: Path) -> None:
    """Show metrics.json in Prefect: the arms as a table, the verdict and the gain as text."""
    metrics: dict[str, Any] = json.loads((project / "metrics.json").read_text(encoding="utf-8"))
    names = dict.fromkeys(name for values in metrics["arms"].values() for name in values)
    rows = [{"arm": arm, **{m: interval(values.get(m)) for m in names}} for arm, values in metrics["arms"].items()]
    create_table_artifact(rows, key="arms", description="Each arm on the real test set")
    gains = "\n".join(f"- {name}: {interval(value, sign=True)}" for name, value in metrics["gain"].items())
    report = (project / "report" / "index.html").absolute()
    create_markdown_artifact(
        f"# {metrics['verdict']}\n\nGain over {metrics['baseline']}:\n\n{gains}\n\nReport: {report}\n", key="verdict"
    )


def interval(value: dict[str, float] | None, *, sign: bool = False) -> str:
    """`0.912 [0.890, 0.931]`, with signs where `sign`; empty for None."""
    if value is None:
        return ""
    form = "{:+.3f}" if sign else "{:.3f}"
    return "{} [{}, {}]".format(*(form.format(value[k]) for k in ("estimate", "low", "high")))


def main(project: Path, force: Sequence[str]) -> int:
    """Run the flow. The exit status: 0, that of the stage that failed, 2 without a server, 1 for another failure."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_worth_reading)
    try:
        with server.at_hand():
            state = augment(project, force, return_state=True)
    except server.Refused as refused:
        print(f"error: {refused}; {refused.remedy}", file=sys.stderr)
        return 2
    if state.is_completed():
        return 0
    status = state.result(raise_on_failure=False) if state.is_failed() else 1
    return status if isinstance(status, int) else 1


def _worth_reading(record: logging.LogRecord) -> bool:
    """Whether a record is output of a stage or a warning, and not the state of a task. Prefect's own record keeps all."""
    return record.module == "augment" or (record.levelno >= logging.WARNING and record.name != "prefect.task_runs")


if __name__ == "__main__":
    sys.exit(main(Path.cwd(), sys.argv[1:]))
