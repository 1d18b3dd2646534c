"""Whatever `tailforge serve` has started, killed in the middle of a run. Of itself: test_killed_serve.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from prefect.client.schemas.filters import FlowRunFilter
from prefect.events import Event
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings
from prefect.states import Cancelled, Cancelling, Pending, Running, Scheduled

from flows import liveness
from flows.augment import augment
from helpers.served import LONG, Served, environ, own_processes, processes, supervisor
from helpers.toy import ROOT, alive, until


@pytest.fixture(scope="module")
def taken(served: Served) -> UUID:
    """A run that a worker has taken and never began. Nothing else runs of its deployment."""
    deployment = served.client.read_deployment_by_name("scheduled/evaluate-only").id
    run = served.client.create_flow_run_from_deployment(
        deployment, state=Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
    ).id
    served.client.set_flow_run_state(run, Pending())  # what a worker does first
    return run


@pytest.mark.fault(1, "the process of a stage on a worker, killed: it is sent again, and the run ends")
def test_a_stage_whose_process_is_killed_is_sent_again(served: Served) -> None:
    with served.waiting("kill the flow") as (run, fit):
        before = len(served.fits())
        running = next(r for r in served.stages() if r.state and r.state.is_running())
        for process in own_processes(running):
            os.kill(process, signal.SIGKILL)
        until(lambda: not alive(fit), "the end of the fit", **LONG)
        (served.control / "wait").unlink()
        ended = served.end(run)
        assert ended.state and ended.state.is_completed(), ended.state
        assert len(served.fits()) == before + 1


@pytest.mark.fault(1, "a stage on a worker killed, as by the kernel where memory ran out: it is sent again, and the run ends")
def test_a_stage_that_is_killed_is_sent_again(served: Served) -> None:
    with served.waiting("kill the stage") as (run, fit):
        before = len(served.fits())
        os.kill(fit, signal.SIGKILL)
        (served.control / "wait").unlink()
        ended = served.end(run)
        assert ended.state and ended.state.is_completed(), ended.state
        assert len(served.fits()) == before + 1


@pytest.mark.fault(25, "the server killed in the middle of a run: it is started again, and the run ends")
def test_a_server_that_is_killed_is_started_again_and_the_run_goes_on(served: Served) -> None:
    with served.waiting("kill the server") as (run, _):
        server = next(p for p in processes("prefect server start", served.url.split(":")[2].split("/")[0]) if not supervisor(p))
        os.kill(server, signal.SIGKILL)
        until(lambda: "server ended with exit status" in served.output.read_text(errors="replace"), "the restart", **LONG)
        (served.control / "wait").unlink()
        until(lambda: answers(served.url), "the server", **LONG)
        lease = served.client.read_flow_run(run).state.state_details.deployment_concurrency_lease_id  # type: ignore[union-attr]
        assert lease
        # A run renews it every few minutes, and Prefect ends the run where the server knows it no more.
        served.client.renew_concurrency_lease(lease_id=lease, lease_duration=300)
        ended = served.end(run)
        assert ended.state and ended.state.is_completed(), ended.state


@pytest.mark.fault(10, "a worker killed with its stage: the stage is called crashed and sent again, and the run ends")
def test_a_worker_that_is_killed_with_its_stage_is_started_again_and_the_stage_is_sent_again(
    served: Served, taken: UUID
) -> None:
    """Nobody is left to say that the stage died: the missing heartbeats of its run do. So do those of `taken`."""
    with served.waiting("kill the worker") as (run, fit):
        running = next(r for r in served.stages() if r.state and r.state.is_running())
        worker = next(
            p for p in processes("worker start --pool gpu") if not supervisor(p) and str(served.project).encode() in environ(p)
        )
        for process in (worker, *own_processes(running)):
            os.kill(process, signal.SIGKILL)
        until(lambda: not alive(fit), "the end of the fit", **LONG)
        (served.control / "wait").unlink()
        ended = served.end(run)
        assert ended.state and ended.state.is_completed(), ended.state
        assert "no sign of life" in str(served.client.read_flow_run(running.id).state.message)  # type: ignore[union-attr]


@pytest.mark.fault(10, "a worker killed as it starts a run: the run that never began is called crashed")
def test_a_run_that_was_taken_and_never_began_is_called_crashed(served: Served, taken: UUID) -> None:
    ended = served.end(taken)
    assert ended.state and ended.state.is_crashed() and "no sign of life" in str(ended.state.message)


@pytest.mark.fault(10, "a stage that a dead run had queued, for this machine or another: the next run cancels it")
@pytest.mark.parametrize("where", [{}, {"remote": "origin", "run": "dead"}])
def test_what_a_dead_run_had_queued_is_cancelled(served: Served, where: dict[str, str]) -> None:
    stage = served.client.read_deployment_by_name("stage/reproduce-stage").id
    queued, of_others = (
        served.client.create_flow_run_from_deployment(
            stage,
            parameters={"stage": "fit@naive", "project": str(folder)} | where,
            state=Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1)),
        ).id
        for folder in (served.project / ".tailforge/worktrees/scheduled", served.project.parent / "others")
    )
    ended = served.end(served.start("augment-on-new-data"))
    assert ended.state and ended.state.is_completed(), ended.state
    state = served.client.read_flow_run(queued).state
    assert state and state.is_cancelled()
    state = served.client.read_flow_run(of_others).state
    assert state and state.is_scheduled()


@pytest.mark.fault(10, "a run killed while its stage is on a worker: the next run cancels that, and begins when it is gone")
def test_a_stage_that_outlives_its_run_is_cancelled_by_the_next(served: Served) -> None:
    with served.waiting("kill the run") as (run, fit):
        for process in own_processes(served.client.read_flow_run(run)):
            os.kill(process, signal.SIGKILL)
        ended = served.end(run)
        assert ended.state and ended.state.is_crashed() and alive(fit)
        outlived, before = served.stages()[0], len(served.fits())
        following = served.start("augment")
        until(lambda: len(served.fits()) > before, "the fit of the next run", **LONG)
        assert not alive(fit)
        state = served.client.read_flow_run(outlived.id).state
        assert state and state.is_cancelled()
    ended = served.end(following)
    assert ended.state and ended.state.is_completed(), ended.state
    until(
        lambda: not any(r.state.is_running() for r in served.client.read_flow_runs(limit=200) if r.state),
        "what was in the dead run's process",
        **LONG,
    )


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.fault(27, "a run within a live one lives, and so does one that no worker has; heartbeats of a clock ahead count")
def test_which_runs_are_dead_without_a_sign(served: Served) -> None:
    """By looks of this process; those of the server's own are too few meanwhile."""
    deployment = served.client.read_deployment_by_name("scheduled/augment").id
    later = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
    ahead, silent = (served.client.create_flow_run_from_deployment(deployment, state=later).id for _ in range(2))
    ending, by_hand = (served.client.create_flow_run(augment, parameters={"project": ""}).id for _ in range(2))
    task = {"flow_run_id": str(ahead), "task_key": "augment", "dynamic_key": "0"}
    around = served.client.request("POST", "/task_runs/", json=task).raise_for_status().json()["id"]
    within = served.client.create_flow_run(augment, parameters={"project": ""}, parent_task_run_id=around).id
    states = {ahead: Running(), ending: Cancelling(), silent: Running(), by_hand: Running(), within: Running()}
    for run, state in states.items():
        served.client.set_flow_run_state(run, state, force=True)
    found, said = liveness.Liveness(), list[str]()
    beat(served, ending, 1)
    for beats, looks in ((1, 4), (2, 8)):
        beat(served, ahead, beats)
        for _ in range(looks):
            found.look(said.append)
    ends = {run: str(served.client.read_flow_run(run).state_name) for run in states}
    lives = dict.fromkeys((ahead, by_hand, within), "Running")
    assert ends == lives | {ending: "Cancelled", silent: "Crashed"} and len(said) == 2, said
    for run in lives:
        served.client.set_flow_run_state(run, Cancelled(), force=True)


def beat(served: Served, run: UUID, beats: int) -> None:
    """A heartbeat, from a machine whose clock is an hour ahead, so that there are so many."""
    event = Event(
        occurred=datetime.now(UTC) + timedelta(hours=1), event="prefect.flow-run.heartbeat",
        resource={"prefect.resource.id": f"prefect.flow-run.{run}"},
    )  # fmt: skip
    served.client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
    found = served.client.read_flow_run(run)
    until(lambda: liveness._sign(served.client, found)[1] == beats, "the heartbeat", **LONG)


@pytest.mark.fault(27, "`tailforge run` on a server that is served: it sends heartbeats as often as all runs there do")
def test_a_run_by_hand_sends_heartbeats(served: Served) -> None:
    served.change("by hand")
    (served.control / "wait").write_text("")
    variables = {"PREFECT_API_URL": served.url, "PREFECT_API_AUTH_STRING": served.password, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "flows.augment"]  # which `tailforge run` starts
    by_hand = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING"]}}, "deployment_id": {"is_null_": True}})
    with subprocess.Popen(command, cwd=served.project, env=os.environ | variables) as process:

        def beats() -> list[datetime]:
            runs = [f"prefect.flow-run.{run.id}" for run in served.client.read_flow_runs(flow_run_filter=by_hand)]
            asked = {"filter": liveness.HEARTBEATS | {"resource": {"id": runs or ["none"]}}}
            found = served.client.request("POST", "/events/filter", json=asked).raise_for_status().json()["events"]
            return sorted(datetime.fromisoformat(event["occurred"]) for event in found)

        try:
            until(lambda: len(beats()) >= 2 or process.poll() is not None, "the second heartbeat", **LONG)
            first, second, *_ = beats()
        finally:
            (served.control / "wait").unlink()
    assert process.returncode == 0 and (second - first).total_seconds() < liveness.SILENCE


def test_a_server_that_refuses_to_tell_is_said_once(served: Served) -> None:
    found, said = liveness.Liveness(), list[str]()
    with temporary_settings({PREFECT_API_AUTH_STRING: "tailforge:guess"}):
        for _ in range(2):
            found.look(said.append)
    assert len(said) == 1 and "whether runs are dead is not known: the server answers 401" in said[0]
