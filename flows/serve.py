"""Prefect's server, its workers and the schedule of a project on one machine, until they are stopped.

    server   at 127.0.0.1 unless told otherwise; SQLite, or the database that PREFECT_SERVER_DATABASE_CONNECTION_URL names
    cpu      the worker of the pool `cpu`: whole runs, which mostly wait
    gpu-N    a worker of the pool `gpu` for each device, one stage at a time; none where other machines alone are to work

Each is a process under a supervisor (flows/supervisor.py), so it does not outlive this one. A process that ends is started
again. Workers are stopped before the server, since a worker waits for a server that is gone. A run whose process died
together with its worker is set to Crashed after a while (flows/liveness.py).

Prefect's server believes whoever reaches it, and a page in a browser reaches this machine: by a request across origins, by
a WebSocket, or under a name that its owner has pointed here (DNS rebinding). So the server always has a password, sent in a
header that no page can know. Where the user has given none, one is made once (`_password`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from prefect.context import refresh_global_settings_context

from flows import children, device, dvc
from flows.liveness import PAUSE as LOOK_AT_RUNS
from flows.liveness import Liveness
from flows.scheduled import PROJECT
from flows.server import HEARTBEAT, Away, Refused, reach

PREFECT = [sys.executable, "-P", "-m", "prefect"]
SEVERAL = Path(__file__).with_name("several.py")
GRACE = dvc.GRACE + 25.0  # seconds a worker has to stop its runs and to report that
START = 120.0  # seconds in which a server has to answer
LOOK = 1.0  # seconds between two looks at the processes
PAUSE = 5.0  # seconds between two questions to a server that does not answer
RUNS = 4  # whole runs that the worker of `cpu` takes at a time; they wait for one another
DEFAULTS = {
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_CLIENT_MAX_RETRIES": "10",  # a server that is started again is away for half a minute
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_UI_API_URL": "/api",  # pages ask the server that they came from, under whatever name the browser knows it
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # SQLite has one writer, and a busy machine is slow
    # A look every quarter of an hour makes 35,000 runs a year. By default Prefect removes old events alone.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    # Prefect ends a run whose lease the server does not know, and in memory leases are lost when the server starts again.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}
AUTH, ORIGINS = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
PASSWORD = Path(".tailforge/password")  # the server's, unless AUTH gives one


class Service:
    """A process that has to run for as long as `serve` does."""

    def __init__(self, name: str, command: Sequence[str], cwd: Path, **variables: str) -> None:
        self.name, self.cwd = name, cwd
        self.command = ["env", *(f"{key}={value}" for key, value in variables.items()), *command]
        self.context: AbstractContextManager[subprocess.Popen[bytes]] | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its output is this process's standard error."""
        self.context = children.supervised(self.command, cwd=self.cwd, output=sys.stderr.fileno(), grace=GRACE)
        self.process = self.context.__enter__()

    def stop(self) -> None:
        """Stop it and all that it has started."""
        if self.process and self.context:
            self.process.terminate()
            self.context.__exit__(None, None, None)
            self.process = self.context = None

    def ended(self) -> int | None:
        """Its exit status where it has ended."""
        return self.process.poll() if self.process else None


def devices() -> list[str]:
    """The devices of this machine: those of CUDA_VISIBLE_DEVICES, else those that nvidia-smi lists, else one processor."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return named.split(",")
    if named is None and shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False).stdout
        if n := sum(line.startswith("GPU ") for line in listed.splitlines()):
            return [str(i) for i in range(n)]
    return ["cpu"]


def serve(
    project: Path, deployments: Path, *, host: str, port: int, lend: bool = True, say: Callable[[str], object] = print
) -> None:
    """Serve the project with the deployments of the file `deployments`, until an exception (of a signal) ends it.

    Without `lend` no device of this machine is used. Raises Refused.
    """
    _refuse(host, port)
    _settings()
    address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}/api"
    made = not os.environ.get(AUTH)
    password = _password(project) if made else os.environ[AUTH]
    os.environ |= {"PREFECT_API_URL": address, AUTH: password, "PREFECT_API_AUTH_STRING": password, PROJECT: str(project)}
    os.environ.setdefault(ORIGINS, ",".join(f"http://{name}:{port}" for name in ("127.0.0.1", "localhost")))
    refresh_global_settings_context()
    command = [
        *children.interpreter(project),
        "-m",
        "flows.collector",
        "prefect",
        "server",
        "start",
        "--host",
        host,
        "--port",
        str(port),
    ]
    server = Service("server", command, project)
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        _await(server, address)
        _prepare(deployments)
        # It sees no GPU: only stages that hold the lock of a device may use it (flows/device.py).
        cpu = Service("cpu", _worker("cpu", f"{socket.gethostname()}-cpu", RUNS), project, CUDA_VISIBLE_DEVICES="")
        say(f"serving {project} at {address.removesuffix('/api')}, password in {PASSWORD if made else AUTH}")
        _watch(stack, [cpu, *(_gpu(project) if lend else [])], [server], say, Liveness())


def work(clone: Path, say: Callable[[str], object] = print) -> None:
    """Workers of the pool `gpu`, one for each device of this machine, for the server that PREFECT_API_URL names.

    They work in the folder `clone`, until an exception (of a signal) ends it. Raises Refused.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise Refused("PREFECT_API_URL is not set", "set it to the address of the server: http://HOST:4200/api")
    _await_named(say)
    _settings()
    os.environ[PROJECT] = str(clone)
    with ExitStack() as stack:
        say(f"working in {clone} for {os.environ['PREFECT_API_URL']}")
        _watch(stack, _gpu(clone), [], say)


def _refuse(host: str, port: int) -> None:
    if host not in ("127.0.0.1", "::1", "localhost") and not os.environ.get(AUTH):
        raise Refused(f"--host {host} lets others in without a password", f"set {AUTH} to USER:PASSWORD first")
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise Refused(f"{host}:{port}: {error.strerror}", "choose another --port, or stop what listens there") from None


def _settings() -> None:
    """Settings of Prefect. The user's own count, except for heartbeats, which all machines have to send alike."""
    for key, value in DEFAULTS.items():
        os.environ.setdefault(key, value)
    os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = str(HEARTBEAT)


def _password(project: Path) -> str:
    """USER:PASSWORD of the project's server, made at the first start, in a file that only the user may read."""
    file = project / PASSWORD
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        partial = file.with_name(".password.partial")
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
            stream.write(f"tailforge:{secrets.token_urlsafe(32)}\n")
        partial.replace(file)
    return file.read_text(encoding="utf-8").strip()


def _worker(pool: str, name: str, limit: int) -> list[str]:
    return [*PREFECT, "worker", "start", "--pool", pool, "--type", "process", "--name", name, "--limit", str(limit)]


def _gpu(folder: Path) -> list[Service]:
    host, found = socket.gethostname(), []
    for name in devices():
        own = {} if name == "cpu" else {"CUDA_VISIBLE_DEVICES": name}
        found.append(Service(f"gpu-{name}", _worker("gpu", f"{host}-gpu-{name}", 1), folder, **own, **{device.VARIABLE: name}))
    return found


def _await_named(say: Callable[[str], object]) -> None:
    """Wait for the server that the user has named; it may start after its workers. Raises Refused."""
    said = False
    while True:
        try:
            return reach()
        except Away as away:
            if not said:
                say(f"{away}; waiting for it")
            said = True
        time.sleep(PAUSE)


def _await(server: Service, address: str) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if (status := server.ended()) is not None:
            raise Refused(f"the server ended with exit status {status}", "its own lines stand above")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise Refused(f"{address} did not answer within {START:.0f} s", "see the lines above")


def _prepare(deployments: Path) -> None:
    """Pools and deployments, brought up to date.

    `prefect deploy` puts its working folder first on sys.path, whatever Python was told, so it works in none of the user's.
    """
    commands = [
        *(["work-pool", "create", pool, "--type", "process", "--overwrite"] for pool in ("cpu", "gpu")),
        ["--no-prompt", "deploy", "--all", "--prefect-file", str(deployments)],
    ]
    done = subprocess.run(
        [sys.executable, "-P", str(SEVERAL)], cwd="/", env=children.environment(), input=json.dumps(commands),
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        failed = commands[max(done.stdout.count("\0") - 1, 0)]
        said = done.stderr.rpartition("\0")[2] or done.stdout.rpartition("\0")[2]
        raise Refused(f"prefect {' '.join(failed[:3])}: {said.strip()[-500:]}", "see that line")


def _watch(
    stack: ExitStack,
    services: Sequence[Service],
    running: Sequence[Service],
    say: Callable[[str], object],
    runs: Liveness | None = None,
) -> None:
    for service in services:
        stack.callback(service.stop)
        service.start()
    looked = time.monotonic()
    while True:
        time.sleep(LOOK)
        if runs and time.monotonic() - looked >= LOOK_AT_RUNS:
            runs.look(say)
            looked = time.monotonic()
        for service in (*running, *services):
            if (status := service.ended()) is not None:
                say(f"{service.name} ended with exit status {status} and is started again")
                service.stop()
                service.start()
