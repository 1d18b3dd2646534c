"""Prefect's state in a real PostgreSQL."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.nightly import by_hand, lay
from helpers.served import LONG, free_port, processes, serving
from helpers.toy import until

SECRET = "open-sesame"
Command = Callable[..., subprocess.CompletedProcess[str]]


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
        yield f"postgresql+asyncpg://night:{SECRET}@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.fault(23, "the password in the address of PostgreSQL: in no line of `tailforge serve` and no command")
def test_postgresql_by_one_variable(tmp_path: Path, command: Command) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="tailforge-postgres-") as folder,
        postgres(Path(folder)) as address,
        serving(
            by_hand(lay(tmp_path / "project", command, families="[naive]")), tmp_path / "home",
            PREFECT_SERVER_DATABASE_CONNECTION_URL=address,
        ) as served,
    ):  # fmt: skip
        run = served.end(served.start("augment"))
        assert run.state and run.state.message == "v1: no_gain", served.output.read_text()
        assert not list((tmp_path / "home").glob("*.db"))
        assert SECRET not in served.output.read_text(errors="replace")
        assert not processes(SECRET)
