"""Runs that died without a word are called crashed, so that whoever waits for them hears of it.

A run sends a heartbeat every HEARTBEAT seconds. The server is asked every PAUSE seconds which runs have not ended, and what was
heard of each last: a heartbeat, or another state. While its process is one of this machine's it lives. After k looks in a row
that found nothing new, it is dead where

    k PAUSE >= SILENCE
    k PAUSE >= GONE       and its process was here before: nothing new can come, but from the worker that has seen its end.

Looks that the server answered are counted, not seconds, and heartbeats, not their times: a machine that slept or whose clock is
wrong, a server that was away or slow makes no run older. A run within another (`augment` in `scheduled`) lives as long as that
one. A run that was not sent to a worker is judged once it has sent a heartbeat: `tailforge run` with a temporary server writes
into the same database, and sends none (flows/server.py).
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
GONE = 3 * PAUSE  # in which a worker says how a process of its own has ended
FLOWS = ("scheduled", "augment", "stage")  # names of ours; a server may have others
UNDER_WAY = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)

HEARTBEATS = {
    "event": {"name": ["prefect.flow-run.heartbeat"]},
    "occurred": {"until": "9000-01-01T00:00:00Z"},  # those of a clock that is ahead too
}

Sign = tuple[UUID, int]  # of the state; how many heartbeats there were


class Silence:
    """What the looks have found: for each run that is under way its last sign, and how many looks in a row had no other."""

    def __init__(self) -> None:
        self.signs: dict[UUID, tuple[Sign, int]] = {}
        self.were_here: set[UUID] = set()
        self.refusal = ""

    def age(self, signs: Mapping[UUID, Sign], here: Collection[UUID]) -> dict[UUID, float]:
        """{run: seconds of silence} of the runs that are dead by one more look, which found these `signs`, and processes of
        the runs `here`."""
        before, self.signs = self.signs, {}
        for run, sign in signs.items():
            last, looks = before.get(run, (None, 0))
            self.signs[run] = sign, looks + 1 if sign == last and run not in here else 0
        self.were_here = (self.were_here | set(here)) & set(signs)
        silent = {run: looks * PAUSE for run, (_, looks) in self.signs.items()}
        return {run: s for run, s in silent.items() if s >= (GONE if run in self.were_here else SILENCE)}

    def look(self, say: Callable[[str], object]) -> None:
        """Look once, and have the server call crashed who is dead, or cancelled who was to be. Without answers of the server
        within PAUSE this was no look."""
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
                    if client.set_flow_run_state(one, end(message=said)).status is SetStateStatus.ACCEPT:  # not ended since
                        say(f"{runs[one].name} has {'crashed' if end is Crashed else 'been cancelled'}: {said}")
                self.refusal = ""
        except (httpx.TransportError, ObjectNotFound):  # away, or the user has deleted a run meanwhile
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
    assert run.state is not None  # what is filtered by its state has one
    return run.state.id, total


def _around(client: SyncPrefectClient, run: FlowRun) -> UUID | None:
    """The run in whose process this one is; None where it has its own."""
    if run.deployment_id or not run.parent_task_run_id:
        return None
    with contextlib.suppress(ObjectNotFound):  # task runs are recorded with a delay
        return client.read_task_run(run.parent_task_run_id).flow_run_id
    return None


def _here(run: FlowRun) -> bool:
    """Whether the process of the run, as its worker has it, is one that this process has started, or they have."""
    try:
        process = psutil.Process(int(run.infrastructure_pid or ""))
        own = process.environ().get("PREFECT__FLOW_RUN_ID") == str(run.id)
        return own and os.getpid() in (p.pid for p in process.parents())
    except (psutil.Error, ValueError):  # gone, a zombie, another user's, or known by no number
        return False
