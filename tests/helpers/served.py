"""`tailforge serve` in a project of tests/helpers/nightly.py: the process, a client of its server, and what it has started."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows import git, warm
from helpers import database
from helpers.toy import ROOT, until

# The command line, with runs called dead as soon as heartbeats allow.
SERVE = "from flows import liveness; liveness.SILENCE = 60; from tailforge.cli import main; main()"
LONG = {"seconds": 600.0, "pause": 0.5}  # for what a whole run has to do on a busy machine; each look is a request


@dataclass
class Served:
    """A project that is served, the process that serves it, and a client of its server."""

    project: Path
    process: subprocess.Popen[bytes]
    client: SyncPrefectClient
    url: str
    password: str
    output: Path
    slots: list[str] = field(default_factory=list)  # times for which the server has scheduled runs of `augment`

    def pause(self) -> None:
        """From here on nothing runs but what a test starts."""
        read = self.client.read_deployment_by_name("scheduled/augment")
        for schedule in read.schedules:
            self.client.update_deployment_schedule(read.id, schedule.id, active=False)

    def wait_for_slots(self) -> list[str]:
        deployment = self.client.read_deployment_by_name("scheduled/augment").id

        def found() -> list[str]:
            runs = [run for run in self.client.read_flow_runs(limit=200) if run.deployment_id == deployment]
            return [str(run.expected_start_time) for run in runs if run.auto_scheduled]

        until(lambda: len(found()) >= 3, "scheduled runs", **LONG)
        return found()

    @property
    def control(self) -> Path:
        return self.project.parent / "control"

    def start(self, deployment: str, **parameters: Any) -> UUID:
        found = self.client.read_deployment_by_name(f"scheduled/{deployment}")
        return self.client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def end(self, run: UUID) -> FlowRun:
        until(lambda: self.client.read_flow_run(run).state.is_final(), f"the end of run {run}", **LONG)  # type: ignore[union-attr]
        return self.client.read_flow_run(run)

    def fits(self) -> list[list[str]]:
        """[family, process id, device] of each fit that has begun."""
        log = self.control / "log"
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    def stages(self) -> list[FlowRun]:
        """Runs of `stage`, the latest first."""
        found = self.client.read_flow_runs(limit=100)
        flow = self.client.read_deployment_by_name("stage/reproduce-stage").flow_id
        return sorted((run for run in found if run.flow_id == flow), key=lambda run: str(run.created), reverse=True)

    def change(self, text: str) -> None:
        """Commit another setting, so that one family is fitted anew."""
        file = self.project / "params.yaml"
        found = re.search(r"naive: {a: (\d+)}", file.read_text())
        assert found
        file.write_text(file.read_text().replace(found[0], f"naive: {{a: {int(found[1]) + 1}}}"))
        git.ask(self.project, "commit", "--quiet", "--all", "--message", text)

    @contextmanager
    def waiting(self, why: str) -> Iterator[tuple[UUID, int]]:
        """A run whose first fit waits: its id, and the process of the fit."""
        self.change(why)
        before = len(self.fits())
        (self.control / "wait").write_text("")
        try:
            run = self.start("augment")
            until(lambda: len(self.fits()) > before, "the first fit", **LONG)
            yield run, int(self.fits()[-1][1])
        finally:
            (self.control / "wait").unlink(missing_ok=True)


def processes(*words: str) -> list[int]:
    """Process ids whose command line has all these words."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        if folder.name.isdecimal() and all(word in line for word in words):
            found.append(int(folder.name))
    return found


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    project: Path,
    home: Path,
    *options: str,
    host: str = "127.0.0.1",
    workers: int = 2,
    password: str = "",
    warmed: bool = False,
    **variables: str,
) -> Iterator[Served]:
    """`tailforge serve` in the project, once so many workers have started, until the end of the block.

    Without `password` it makes one. Its runs start a warm process where `warmed` alone: their stages import nothing.
    """
    if not home.exists():
        home.mkdir()
        if "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in variables:
            database.lay(home)
    port, output = free_port(host), home / "output"
    environment = {k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "CUDA_VISIBLE_DEVICES")}
    environment |= {"PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT), "PREFECT_SERVER_API_AUTH_STRING": password}
    environment |= ({} if warmed else {warm.VARIABLE: ""}) | variables
    with open(output, "wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVE, "serve", "--host", host, "--port", str(port), *options], cwd=project,
            env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
        )  # fmt: skip
    url = f"http://{host}:{port}/api"
    try:

        def ready() -> bool:
            assert process.poll() is None, output.read_text(errors="replace")
            return output.read_text(errors="replace").count("started!") >= workers

        until(ready, "the workers", **LONG)
        password = password or (project / ".tailforge/password").read_text().strip()
        with (
            temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: password}),
            get_client(sync_client=True) as client,
        ):
            yield Served(project, process, client, url, password, output)
    finally:
        process.terminate()
        process.wait()
    assert not processes(f"--port {port}") and not processes(str(home)), "something outlived it"


def asked(url: str, method: str = "GET", body: str = "", **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to a request with these headers (`content_type` is Content-Type) and no others."""
    parts = urlsplit(url)
    connection = HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    try:
        connection.putrequest(method, parts.path, skip_host="host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body.encode() or None)
        answer = connection.getresponse()
        answer.read()
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}
    finally:
        connection.close()


def basic(password: str) -> str:
    """The header Authorization for it."""
    return "Basic " + b64encode(password.encode()).decode()


def own_processes(run: FlowRun) -> list[int]:
    """Processes of a run that are Prefect's: not the stage, nor what watches over it."""
    return [process for process in processes("prefect") if str(run.id).encode() in environ(process)]


def supervisor(process: int) -> bool:
    return b"supervisor.py" in Path(f"/proc/{process}/cmdline").read_bytes()


def environ(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return b""
