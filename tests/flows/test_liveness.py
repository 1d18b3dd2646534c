"""When a run is dead: by looks in which nothing was new, and by processes that are gone."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import liveness
from flows.liveness import GONE, PAUSE, SILENCE, Liveness, Sign
from helpers.served import free_port

RUN, OTHER, STATE = uuid4(), uuid4(), uuid4()


def looks(seconds: float) -> int:
    return round(seconds / PAUSE)


def sign(beat: int) -> Sign:
    return STATE, beat


def died(found: Liveness, signs: list[dict[UUID, Sign]], here: list[set[UUID]]) -> list[int]:
    """The looks at which RUN is dead."""
    return [i for i, (signs, here) in enumerate(zip(signs, here, strict=True)) if RUN in found.age(signs, here)]


def test_a_run_is_dead_after_three_heartbeats_that_did_not_come() -> None:
    n = looks(SILENCE)
    beats = [0, 0, 0, 1, 1, 1] + [2] * (n + 1)
    assert died(Liveness(), [{RUN: sign(beat)} for beat in beats], [set()] * len(beats)) == [6 + n]


def test_a_run_that_lives_is_never_dead_however_often_it_is_looked_at() -> None:
    beats = [look // looks(SILENCE) for look in range(100)]  # the last look before it would be dead brings one
    assert died(Liveness(), [{RUN: sign(beat)} for beat in beats], [set()] * 100) == []


def test_another_state_is_a_sign() -> None:
    found, n = Liveness(), looks(SILENCE)
    assert died(found, [{RUN: (STATE, 0)}] * n, [set()] * n) == []
    assert died(found, [{RUN: (uuid4(), 0)}] * n, [set()] * n) == []


@pytest.mark.fault(27, "a run with a process on this machine lives, however long nothing is heard of it")
def test_a_run_with_a_process_here_lives_whatever_it_says() -> None:
    assert died(Liveness(), [{RUN: sign(0)}] * 100, [{RUN}] * 100) == []


def test_a_run_whose_process_was_here_and_is_gone_is_dead_sooner() -> None:
    here = [{RUN}] * 20 + [set[UUID]()] * looks(GONE)
    assert died(Liveness(), [{RUN: sign(0)}] * len(here), here) == [19 + looks(GONE)]


def test_what_has_ended_is_forgotten() -> None:
    found = Liveness()
    found.age({RUN: sign(0), OTHER: sign(0)}, {RUN})
    found.age({OTHER: sign(0)}, set())
    assert (set(found.signs), found.were_here) == ({OTHER}, set())


@pytest.mark.fault(27, "a look that the server does not answer makes no run older")
def test_a_look_without_an_answer_makes_no_run_older() -> None:
    found, said = Liveness(), list[str]()
    for _ in range(looks(SILENCE) - 1):
        found.age({RUN: sign(0)}, set())
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        for _ in range(3):
            found.look(said.append)
    assert found.signs == {RUN: (sign(0), looks(SILENCE) - 2)} and not said


@pytest.mark.parametrize(("own", "begun_here", "expected"), [(True, True, True), (False, True, False), (True, False, False)])
def test_a_process_is_a_runs_where_its_worker_says_so_and_it_was_begun_here(
    own: bool, begun_here: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = os.environ | {"PREFECT__FLOW_RUN_ID": str(RUN if own else OTHER)}
    child = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(child, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()  # for a moment after exec a process shows no environment
        run: Any = SimpleNamespace(id=RUN, infrastructure_pid=str(process.pid))
        if not begun_here:
            monkeypatch.setattr(os, "getpid", lambda: process.pid)
        assert liveness._here(run) is expected
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert liveness._here(run) is False  # a zombie
    assert liveness._here(run) is False
    run.infrastructure_pid = None
    assert liveness._here(run) is False
