"""`tailforge serve` with all that it starts: a real server, real workers, runs on a schedule, and what goes wrong with them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from nightly import by_hand, lay
from prefect.states import Cancelling, Pending, Scheduled
from released import OTHER, fill
from served import LONG, SERVE, Served, asked, basic, environ, free_port, own_processes, processes, serving, supervisor
from toy import alive, until
from websockets import ConnectionClosed, InvalidStatus, Origin, Subprotocol
from websockets.sync.client import connect

from flows import git

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    (root / "home").mkdir()
    with serving(lay(root / "project", command), root / "home") as found:
        found.slots = found.wait_for_slots()
        found.pause()
        yield found


def test_a_run_is_released_and_comes_into_the_project(served: Served) -> None:
    run = served.end(served.start("augment"))
    assert run.state and run.state.is_completed() and run.state.message == "v1: no_gain", served.output.read_text()
    assert git.ask(served.project, "log", "-1", "--format=%D").strip() == "HEAD -> main, tag: dataset@v1.0.0"
    assert not git.ask(served.project, "status", "--porcelain")
    assert (served.project / "data/models/gan/model").exists()
    assert sorted((family, device) for family, _, device in served.fits()) == [("gan", "cpu"), ("naive", "cpu")]
    stages = served.stages()
    assert sorted(str(stage.parameters["stage"]) for stage in stages) == ["fit@gan", "fit@naive"]
    assert {stage.work_pool_name for stage in stages} == {"gpu"}


def test_nothing_happens_without_new_data_and_an_event_brings_them(served: Served, command: Command) -> None:
    before = len(served.fits())
    run = served.end(served.start("augment-on-new-data"))
    assert run.state and run.state.message == "no new data" and len(served.fits()) == before
    fill(served.project, OTHER, "no_gain", 0.02)
    variables = {"PREFECT_API_URL": served.url, "PREFECT_API_AUTH_STRING": served.password}
    command(
        sys.executable, "-m", "prefect", "event", "emit", "tailforge.data.arrived", "--resource-id", "tailforge.data",
        cwd=served.project, **variables,
    )  # fmt: skip
    until(lambda: "dataset@v2.0.0" in git.ask(served.project, "log", "-1", "--format=%D"), "the second release", **LONG)
    assert len(served.fits()) == before + 2


def test_evaluation_alone_fits_nothing(served: Served) -> None:
    before = len(served.fits())
    run = served.end(served.start("evaluate-only"))
    assert run.state and run.state.is_completed() and "as before" in str(run.state.message) and len(served.fits()) == before


def test_a_failed_stage_fails_the_run_with_its_own_lines(served: Served) -> None:
    served.change("fail")
    (served.control / "fail").write_text("")
    try:
        run = served.end(served.start("augment"))
    finally:
        (served.control / "fail").unlink()
    assert run.state and run.state.is_failed() and "no luck today" in str(run.state.message)
    assert "v3" not in git.ask(served.project, "tag")


@contextmanager
def waiting(served: Served, why: str) -> Iterator[tuple[UUID, int]]:
    """A run whose first fit waits: its id, and the process of the fit."""
    served.change(why)
    before = len(served.fits())
    (served.control / "wait").write_text("")
    try:
        run = served.start("augment")
        until(lambda: len(served.fits()) > before, "the first fit", **LONG)
        yield run, int(served.fits()[-1][1])
    finally:
        (served.control / "wait").unlink(missing_ok=True)


@pytest.mark.fault(10, "a cancelled run leaves no stage on a worker")
def test_who_cancels_the_run_cancels_its_stages(served: Served) -> None:
    with waiting(served, "cancel") as (run, fit):
        served.client.set_flow_run_state(run, Cancelling())
        until(lambda: not alive(fit), "the end of the fit", **LONG)
        ended = served.end(run)
        assert ended.state and ended.state.is_cancelled()
        until(lambda: all(r.state and r.state.is_final() for r in served.stages()), "the end of all stages", **LONG)
        stage = served.stages()[0]
        assert stage.state and stage.state.is_cancelled()


@pytest.mark.fault(1, "the process of a stage on a worker, killed: it is sent again, and the run ends")
def test_a_stage_whose_process_is_killed_is_sent_again(served: Served) -> None:
    with waiting(served, "kill the flow") as (run, fit):
        before = [family for family, *_ in served.fits()].count("naive")
        running = next(r for r in served.stages() if r.state and r.state.is_running())
        for process in own_processes(running):
            os.kill(process, signal.SIGKILL)
        until(lambda: not alive(fit), "the end of the fit", **LONG)
        (served.control / "wait").unlink()
        ended = served.end(run)
        assert ended.state and ended.state.is_completed(), ended.state
        assert [family for family, *_ in served.fits()].count("naive") == before + 1


@pytest.mark.fault(1, "a stage on a worker killed, as by the kernel where memory ran out: it is sent again, and the run ends")
def test_a_stage_that_is_killed_is_sent_again(served: Served) -> None:
    with waiting(served, "kill the stage") as (run, fit):
        killed = served.fits()[-1][0]
        before = [family for family, *_ in served.fits()].count(killed)
        os.kill(fit, signal.SIGKILL)
        (served.control / "wait").unlink()
        ended = served.end(run)
        assert ended.state and ended.state.is_completed(), ended.state
        assert [family for family, *_ in served.fits()].count(killed) == before + 1


@pytest.mark.fault(25, "the server killed in the middle of a run: it is started again, and the run ends")
def test_a_server_that_is_killed_is_started_again_and_the_run_goes_on(served: Served) -> None:
    with waiting(served, "kill the server") as (run, _):
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


@pytest.mark.fault(10, "a worker killed with its stage: their silence is noticed, the stage is sent again, and the run ends")
def test_a_worker_that_is_killed_with_its_stage_is_started_again_and_the_stage_is_sent_again(served: Served) -> None:
    """Nobody is left to say that the stage died: the silence of its run says it."""
    with waiting(served, "kill the worker") as (run, fit):
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
def test_a_run_that_was_taken_and_never_began_is_called_crashed(served: Served) -> None:
    deployment = served.client.read_deployment_by_name("scheduled/augment").id
    run = served.client.create_flow_run_from_deployment(
        deployment, state=Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
    ).id
    served.client.set_flow_run_state(run, Pending())  # what a worker does first
    ended = served.end(run)
    assert ended.state and ended.state.is_crashed() and "no sign of life" in str(ended.state.message)


def of(served: Served, process: int) -> bool:
    return str(served.project).encode() in environ(process)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.fault(19, "the served server listens on 127.0.0.1 alone, and makes a password that only its user can read")
def test_it_listens_here_alone_and_makes_its_password(served: Served) -> None:
    port = urlsplit(served.url).port
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert {row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")} == {f"0100007F:{port:04X}"}
    file = served.project / ".tailforge/password"
    assert file.stat().st_mode & 0o777 == 0o600 and len(served.password) > 40
    secret = served.password.partition(":")[2]
    assert secret not in served.output.read_text(errors="replace")
    assert not any(secret.encode() in Path(f"/proc/{p}/cmdline").read_bytes() for p in processes(str(port)))


EVIL = "http://evil.example"
SOCKETS = ["events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled", "work_pools/gpu/workers/connect"]
FORGED: dict[str, dict[str, str]] = {
    "nothing": {},
    "another host": {"host": "evil.example"},  # as after a name was pointed here
    "another host that looks right": {"host": "127.0.0.1.evil.example"},
    "another origin": {"origin": EVIL},
    "no origin": {"origin": "null"},
    "a form": {"origin": EVIL, "content_type": "text/plain"},  # what a page may send without asking
    "another password": {"authorization": basic("tailforge:guess")},
    "another form of password": {"authorization": "Bearer tailforge"},
}


@pytest.mark.fault(19, "forged Host and Origin, forms of other pages, guessed passwords, at every route of the server: refused")
def test_every_route_refuses_forged_requests(served: Served, points: Callable[[int], None]) -> None:
    known = basic(served.password)
    before = served.client.count_flow_runs()
    request = urllib.request.Request(f"{served.url}/openapi.json", headers={"Authorization": known})
    with urllib.request.urlopen(request) as answer:
        paths = json.load(answer)["paths"]
    routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    open_to_all = {("GET", "/health"), ("GET", "/ready")}
    assert len(routes) > 100 and ("POST", "/deployments/{id}/create_flow_run") in routes
    deployment = served.client.read_deployment_by_name("scheduled/augment").id
    for method, path in sorted({*routes} - open_to_all):
        url = served.url + path.replace("{id}", str(deployment))
        for why, headers in FORGED.items() if "flow_run" in path else [("nothing", {})]:
            status, told = asked(url, method, "{}" if method in ("POST", "PATCH", "PUT") else "", **headers)
            assert status == 401 and "access-control-allow-origin" not in told, (method, path, why, status)
            points(1)
    assert served.client.count_flow_runs() == before


@pytest.mark.fault(19, "a page of another origin asks whether it may send, and may not; whatever is answered, it cannot read")
def test_other_origins_are_told_nothing(served: Served, points: Callable[[int], None]) -> None:
    url, port, known = f"{served.url}/flow_runs/count", urlsplit(served.url).port, basic(served.password)
    wants = {"access_control_request_method": "POST", "access_control_request_headers": "authorization, content-type"}
    for origin in (EVIL, "null", f"http://127.0.0.1.evil.example:{port}", f"https://127.0.0.1:{port}", "http://127.0.0.1"):
        status, told = asked(url, "OPTIONS", origin=origin, **wants)
        assert status == 400 and "access-control-allow-origin" not in told, (origin, told)
        status, told = asked(url, "POST", "{}", origin=origin, content_type="application/json", authorization=known)
        assert status == 200 and "access-control-allow-origin" not in told, (origin, told)  # to whom knows it; no page reads it
        points(2)
    own = f"http://localhost:{port}"
    assert asked(url, "OPTIONS", origin=own, **wants)[1]["access-control-allow-origin"] == own


@pytest.mark.fault(19, "WebSockets, which a page may open to anywhere: closed to whoever lacks the password")
@pytest.mark.parametrize("place", SOCKETS)
def test_sockets_want_the_password_too(served: Served, place: str, points: Callable[[int], None]) -> None:
    address = f"{served.url.replace('http', 'ws', 1)}/{place}"
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, origin=Origin(EVIL))
    for greeting in ({"type": "auth", "token": "guess"}, {"type": "auth"}, {"type": "filter", "filter": {}}):
        with connect(address, origin=Origin(EVIL), subprotocols=[Subprotocol("prefect")]) as socket:
            socket.send(json.dumps(greeting))
            with pytest.raises(ConnectionClosed):
                while True:
                    assert "auth_success" not in str(socket.recv(timeout=60))
    points(4)


@pytest.mark.fault(11, "one run for each slot of the schedule")
def test_the_schedule_has_one_run_for_each_night(served: Served) -> None:
    assert len(served.slots) == len(set(served.slots)) and all("03:00:00" in slot for slot in served.slots)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "lets others in without a password; set PREFECT_SERVER_API_AUTH_STRING"),
        (["--port", "{taken}"], "choose another --port"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path: Path, command: Command, toy: Path, options: list[str], said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [word.format(taken=taken.getsockname()[1]) for word in options]
        done = command(sys.executable, "-c", SERVE, "serve", *words, cwd=toy, check=False, PREFECT_HOME=str(tmp_path))
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_worker_wants_a_server(tmp_path: Path, command: Command, toy: Path) -> None:
    done = command(sys.executable, "-c", SERVE, "worker", cwd=toy, check=False, PREFECT_API_URL="")
    assert done.returncode == 2 and "PREFECT_API_URL is not set" in done.stderr, done.stderr


@pytest.mark.fault(10, "`tailforge serve` killed in a run and started again: the run is called crashed, and the next one ends")
def test_what_a_killed_serve_was_running_is_called_crashed_and_the_next_run_ends(tmp_path: Path, command: Command) -> None:
    project, home = by_hand(lay(tmp_path / "project", command, families="[naive]")), tmp_path / "home"
    home.mkdir()
    with serving(project, home) as served, waiting(served, "kill it") as (run, _):
        served.process.kill()
        until(lambda: not any(of(served, process) for process in processes("")), "the end of all that it had started", **LONG)
    with serving(project, home) as served:
        following = served.start("augment")  # at once: it waits until the one before is known to be dead
        ended = served.end(run)
        assert ended.state and ended.state.is_crashed() and "no sign of life" in str(ended.state.message), ended.state
        ended = served.end(following)
        assert ended.state and ended.state.message == "v1: no_gain", ended.state


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server on 127.0.0.1 with an empty database; its address."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path("/usr/local/bin")]
    initdb, server = (programs[-1] / name for name in ("initdb", "postgres"))
    if not server.exists():
        pytest.skip("postgres is not installed: it is in the system's package postgresql")
    port = free_port()
    own: Mapping[str, Any] = {"user": "nobody", "cwd": "/"} if os.getuid() == 0 else {"cwd": "/"}  # it does not run as root
    if own.get("user"):
        subprocess.run(["chown", "nobody", folder], check=True)
    made = subprocess.run(
        [initdb, "--pgdata", folder / "data", "--username", "night", "--auth", "trust", "--no-sync", "--locale", "C"],
        capture_output=True, text=True, **own,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    words = ["-D", folder / "data", "-p", str(port), "-h", "127.0.0.1", "-c", "unix_socket_directories="]
    process = subprocess.Popen([server, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **own)
    try:
        until(lambda: listens(port), "PostgreSQL", **LONG)
        yield f"postgresql+asyncpg://night@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_postgresql_by_one_variable(tmp_path: Path, command: Command) -> None:
    import tempfile

    (tmp_path / "home").mkdir()
    with (
        tempfile.TemporaryDirectory(prefix="tailforge-postgres-") as folder,
        postgres(Path(folder)) as address,
        serving(
            lay(tmp_path / "project", command, families="[naive]"), tmp_path / "home",
            PREFECT_SERVER_DATABASE_CONNECTION_URL=address,
        ) as served,
    ):  # fmt: skip
        run = served.end(served.start("augment"))
        assert run.state and run.state.message == "v1: no_gain", served.output.read_text()
        assert not list((tmp_path / "home").glob("*.db"))
