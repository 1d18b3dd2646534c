"""Which runs are dead though Prefect has them as running. They are set to Crashed, so that whoever waits for them hears of it.

A run sends a heartbeat every HEARTBEAT seconds. Every PAUSE seconds the server is asked which runs have not ended, and for the
last sign of life of each: its number of heartbeats, and its state. A run whose process is on this machine lives. Any other run
is dead after k looks in a row without a new sign, where

    k PAUSE >= SILENCE
    k PAUSE >= GONE       for a run whose process was here before; only its worker, which saw its end, can still report

Looks are counted, not seconds, and only those that the server answered. Heartbeats are counted, whatever time they carry. So no
run grows older while the machine sleeps, its clock is wrong, or the server is away or slow.

A run within another (`augment` in `scheduled`) lives as long as that one. A run that no worker has counts only after its first
heartbeat: `tailforge run` with a temporary server writes into the same database and sends none (flows/server.py).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Mapping
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Crashed

from flows.server import HEARTBEAT

PAUSE = 10.0  # seconds between two looks
SILENCE = 3.0 * HEARTBEAT
GONE = 3 * PAUSE  # seconds that a worker has to report how its process ended
FLOWS = ("scheduled", "augment", "stage")  # our flows; a server may have others
UNDER_WAY = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)

HEARTBEATS = {
    "event": {"name": ["prefect.flow-run.heartbeat"]},
    "occurred": {"until": "9000-01-01T00:00:00Z"},  # a clock may be ahead
}

Sign = tuple[UUID, int]  # the id of the state, the number of heartbeats


class Liveness:
    """What the looks have found: {run: its last sign, and how many looks in a row brought no other}, of runs under way."""

    def __init__(self) -> None:
        self.signs: dict[UUID, tuple[Sign, int]] = {}
        self.were_here: set[UUID] = set()
        self.refusal = ""

    def age(self, signs: Mapping[UUID, Sign], here: Collection[UUID]) -> dict[UUID, float]:
        """Take in one look: the `signs` that it found, and the runs that have a process `here`.

        Returns {run: seconds without a sign} of the runs that are dead.
        """
        before, self.signs = self.signs, {}
        for run, sign in signs.items():
            last, looks = before.get(run, (None, 0))
            self.signs[run] = sign, looks + 1 if sign == last and run not in here else 0
        self.were_here = (self.were_here | set(here)) & set(signs)
        silent = {run: looks * PAUSE for run, (_, looks) in self.signs.items()}
        return {run: s for run, s in silent.items() if s >= (GONE if run in self.were_here else SILENCE)}

    def look(self, say: Callable[[str], object]) -> None:
        """Look once. Dead runs are set to Crashed, or to Cancelled where that was asked for.

        A look without answers of the server within PAUSE seconds does not count.
        """
        begun = time.monotonic()
        quick = {PREFECT_API_REQUEST_TIMEOUT: PAUSE, PREFECT_CLIENT_MAX_RETRIES: 0}
        try:
            with temporary_settings(quick), get_client(sync_client=True) as client:
                runs = {run.id: run for run in _under_way(client)}
                found: dict[UUID, Sign] = {}
                for run in runs.values():
                    if time.monotonic() - begun > PAUSE:
                        return
                    found[run.id] = _sign(client, run)
                    if not (run.deployment_id or run.parent_task_run_id or found[run.id][1]):
                        del found[run.id]
                here = {one for one in found if _here(runs[one]) or _around(client, runs[one]) in runs}
                for one, seconds in self.age(found, here).items():
                    said = f"no sign of life for {seconds:.0f} s: its process is gone"
                    end = Cancelled if runs[one].state_type is StateType.CANCELLING else Crashed
                    if (
                        client.set_flow_run_state(one, end(message=said)).status is SetStateStatus.ACCEPT
                    ):  # refused for a run that has ended since
                        say(f"{runs[one].name} has {'crashed' if end is Crashed else 'been cancelled'}: {said}")
                self.refusal = ""
        except (httpx.TransportError, ObjectNotFound):  # the server is away, or the user has deleted a run
            return
        except httpx.HTTPStatusError as error:
            status, asked = error.response.status_code, error.request.url.path
            refusal = f"whether runs are dead is not known: the server answers {status} to {asked}"
            if refusal != self.refusal:
                say(refusal)
            self.refusal = refusal


def _under_way(client: SyncPrefectClient) -> list[FlowRun]:
    flows = FlowFilter.model_validate({"name": {"any_": list(FLOWS)}})
    under_way = FlowRunFilter.model_validate({"state": {"type": {"any_": list(UNDER_WAY)}}})
    found: list[FlowRun] = []
    while page := client.read_flow_runs(flow_filter=flows, flow_run_filter=under_way, offset=len(found)):
        found += page
    return found


def _sign(client: SyncPrefectClient, run: FlowRun) -> Sign:
    of = HEARTBEATS | {"resource": {"id": [f"prefect.flow-run.{run.id}"]}}
    total = client.request("POST", "/events/filter", json={"filter": of, "limit": 1}).raise_for_status().json()["total"]
    assert run.state is not None  # runs were asked for by their state
    return run.state.id, total


def _around(client: SyncPrefectClient, run: FlowRun) -> UUID | None:
    """The run in whose process this one runs; None for a run with a process of its own."""
    if run.deployment_id or not run.parent_task_run_id:
        return None
    with contextlib.suppress(ObjectNotFound):  # task runs are recorded with a delay
        return client.read_task_run(run.parent_task_run_id).flow_run_id
    return None


def _here(run: FlowRun) -> bool:
    """Whether the run's process, which its worker has reported, descends from this process and belongs to the run."""
    try:
        process = psutil.Process(int(run.infrastructure_pid or ""))
        own = process.environ().get("PREFECT__FLOW_RUN_ID") == str(run.id)
        return own and os.getpid() in (p.pid for p in process.parents())
    except (psutil.Error, ValueError):  # gone, a zombie, another user's, or not reported
        return False
