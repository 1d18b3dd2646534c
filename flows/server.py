"""Prefect's temporary server, where the user has named none: started early, and without the waits of Prefect's own.

Left alone, Prefect starts one at the flow's first request; for that it imports the whole server into the flow, asks in a loop
whether it is up, and takes a second to end it. Here the socket listens before the server is up: early requests wait in it.
The database is the same, so nothing of a flow's record is lost. Nobody but this process and what it starts knows its password:
neither another user of the machine nor a page in a browser can ask it for anything (flows/serve.py).
"""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    get_current_settings,
    temporary_settings,
)

HEARTBEAT = 30  # seconds between signs of life of a run, of which Prefect allows no fewer
# What Prefect tells its own temporary server: no pages, and no services but those that record a run.
TEMPORARY = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


class Refused(RuntimeError):
    """What was asked of a server cannot be; `remedy` says what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class Away(Refused):
    """The server that the user has named does not answer, or not as Prefect's of this version does."""


def reach() -> None:
    """See that the server that the user has named is there and lets this user in. Raises Refused, Away."""
    quick = {PREFECT_API_REQUEST_TIMEOUT: 10.0, PREFECT_CLIENT_MAX_RETRIES: 1}
    with temporary_settings(quick), get_client(sync_client=True) as client:
        try:
            client.raise_for_api_version_mismatch()
        except PrefectHTTPStatusError:  # 401; Prefect makes one error of all others
            raise Refused("Prefect's server wants another password", "set PREFECT_API_AUTH_STRING to USER:PASSWORD") from None
        except RuntimeError as error:
            raise Away(str(error), "set PREFECT_API_URL to that of a running server, http://HOST:4200/api") from None


@contextmanager
def at_hand() -> Iterator[None]:
    """Flow runs of this block have a server: the user's, or a temporary one that ends with this process. Raises Refused."""
    if get_current_settings().api.url is not None:
        reach()
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: HEARTBEAT}):  # as of all runs there (flows/liveness.py)
            yield
        return
    _start()
    # Heartbeats would tell a server that outlives the flow that it died; their thread takes a second to end.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _start() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        command = [
            sys.executable, "-m", "flows.collector", "uvicorn", "--factory", "prefect.server.api.server:create_app",
            "--fd", str(listener.fileno()), "--log-level", "error", "--lifespan", "on",
        ]  # fmt: skip
        address, password = f"http://127.0.0.1:{listener.getsockname()[1]}", secrets.token_urlsafe(32)
        own = {"PREFECT_SERVER_API_AUTH_STRING": password, "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address}
        chosen = get_current_settings().to_environment_variables(exclude_unset=True)
        server = subprocess.Popen(command, env={**os.environ, **TEMPORARY, **chosen, **own}, pass_fds=[listener.fileno()])
        os.environ |= {"PREFECT_API_URL": f"{address}/api", "PREFECT_API_AUTH_STRING": password}
    refresh_global_settings_context()

    @atexit.register  # before Prefect registers anything, so it comes after: by then all of the record has been sent
    def stop() -> None:
        server.terminate()
        server.wait()
