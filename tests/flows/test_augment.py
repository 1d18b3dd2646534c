"""The Prefect flow on a small project: one task a stage, its output in the logs, artifacts, failures, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import State
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, LogFilter
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows import augment
from helpers import database
from helpers.served import asked, basic, environ
from helpers.toy import ROOT, WAIT, alive, descendants, pids, setting, until

SERVER = """\
import os
from flows import server
with server.at_hand():
    print(os.environ["PREFECT_API_URL"], os.environ["PREFECT_API_AUTH_STRING"], flush=True)
    input()
"""


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A temporary server as `tailforge run` has one, for the flows that run in this process."""
    own = {"PREFECT_HOME": str(database.lay(tmp_path_factory.mktemp("server"))), "PYTHONPATH": str(ROOT)}
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"} | own
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        url, password = process.stdout.readline().split()
        with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: password}):
            yield
        process.stdin.close()


def run(folder: Path, *force: str) -> State[Any]:
    state: State[Any] = augment.augment(folder, force, return_state=True)
    return state


def tasks_and_logs(state: State[Any]) -> tuple[dict[str, str], list[str]]:
    """({task run: its state}, log lines) of a flow run."""
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [run_id]}))
        until(lambda: client.read_logs(LogFilter(flow_run_id={"any_": [run_id]})), "the first log line")
        logs = client.read_logs(LogFilter(flow_run_id={"any_": [run_id]}), limit=200)
    return {task.name: task.state_name for task in tasks}, [log.message for log in logs]


def test_one_task_a_stage_with_its_output_in_the_logs(toy: Path) -> None:
    state = run(toy, "second@naive")
    assert state.result() == {"first": "skipped", "second@naive": "ran", "second@external": "skipped", "last": "skipped"}
    tasks, logs = tasks_and_logs(state)
    assert {"first", "second@naive", "second@external", "last"} <= set(tasks)
    assert set(tasks.values()) == {"Completed"}
    assert "hello from second" in logs and "second@naive: ran" in logs


def test_artifacts_show_arms_and_verdict(toy: Path) -> None:
    run(toy)
    arms, verdict = Artifact.get("arms"), Artifact.get("verdict")
    assert arms is not None and verdict is not None
    assert "synthetic" in str(arms.data) and "0.750 [0.500, 1.000]" in str(arms.data)
    assert "# no_gain" in str(verdict.data) and str(toy / "report/index.html") in str(verdict.data)
    assert "+0.750 [+0.500, +1.000]" in str(verdict.data)


def test_a_failed_stage_fails_the_flow_with_its_own_lines_and_stops_it(toy: Path) -> None:
    setting(toy, "seed: 0", "seed: 13")
    state = run(toy)
    assert state.is_failed() and "error: seed=13; expected a lucky one; change seed" in str(state.message)
    assert state.result(raise_on_failure=False) == 2
    tasks, _ = tasks_and_logs(state)
    assert tasks == {"first": "Failed"}


def has_open(pid: int, file: Path) -> bool:
    return any(os.path.realpath(descriptor) == str(file) for descriptor in Path(f"/proc/{pid}/fd").glob("*"))


def flow_of(pid: int) -> int:
    """The process below `pid` that runs the flow: the child of its supervisor."""
    for child in descendants(pid):
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"flows.augment" in words and b"-I" not in words:
            return child
    raise AssertionError("no flow is running")


@pytest.fixture
def cli(toy: Path, prefect_database: None) -> Iterator[subprocess.Popen[str]]:
    """`tailforge run` in the project, its stage waiting, with a temporary server of its own."""
    setting(toy, "seed: 0", "seed: 99")
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"} | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", "from tailforge.cli import main; main()", "run"], cwd=toy, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.communicate()


def test_stopping_the_run_stops_the_stage_and_the_server(toy: Path, cli: subprocess.Popen[str]) -> None:
    stage, child = pids(toy)
    below = descendants(cli.pid)
    assert {stage, child} <= below and len(below) >= 6  # supervisor, flow, server, supervisor, dvc, stage, child
    cli.send_signal(signal.SIGTERM)
    _, errors = cli.communicate(timeout=WAIT)
    assert cli.returncode == 143 and "run again to resume" in errors
    until(lambda: not any(map(alive, below)), "the end of all processes")
    assert (toy / "left").read_text() == "saved"


@pytest.mark.fault(19, "the temporary server of a run answers the run alone, no page and no other user of the machine")
def test_the_temporary_server_wants_a_password(toy: Path, cli: subprocess.Popen[str], points: Callable[[int], None]) -> None:
    known = dict(line.split("=", 1) for line in environ(pids(toy)[0]).decode().split("\0") if "=" in line)
    url = known["PREFECT_API_URL"] + "/flow_runs/count"
    body = {"method": "POST", "body": "{}", "content_type": "application/json"}
    for forged in ({}, {"host": "evil.example"}, {"origin": "http://evil.example"}, {"authorization": basic("")}):
        status, told = asked(url, **body, **forged)
        assert status == 401 and "access-control-allow-origin" not in told
        points(1)
    assert asked(url, **body, authorization=basic(known["PREFECT_API_AUTH_STRING"]))[0] == 200
    for process in descendants(cli.pid):
        assert known["PREFECT_API_AUTH_STRING"].encode() not in Path(f"/proc/{process}/cmdline").read_bytes()


@pytest.mark.parametrize("victim", ["command", "flow"])
@pytest.mark.fault(1, "`tailforge run` and the flow, killed by SIGKILL: no process stays, the stage saves")
def test_kill_9_leaves_no_orphan(toy: Path, cli: subprocess.Popen[str], victim: str) -> None:
    stage, _ = pids(toy)
    below = descendants(cli.pid)
    assert any(has_open(pid, toy / ".tailforge/run.lock") for pid in below)  # a second run waits for what this one leaves
    os.kill(cli.pid if victim == "command" else flow_of(cli.pid), signal.SIGKILL)
    until(lambda: not any(map(alive, below)), "the end of all processes")
    assert not alive(stage) and (toy / "left").read_text() == "saved"
    if victim == "flow":
        assert cli.wait(WAIT) == 128 + signal.SIGKILL
