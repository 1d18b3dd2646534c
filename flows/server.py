"""Prefect's temporary server, for users who have named none.

Prefect itself would start one at the flow's first request: it imports the whole server into the flow, asks in a loop
whether it is up, and takes a second to end it. Ours starts early. Its socket listens before the server is up, and early
requests wait there. The database is the same, so the record of a flow is kept. Only this process and its children know the
password, so neither another user of the machine nor a page in a browser can use the server (flows/serve.py).
"""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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

from flows import children

HEARTBEAT = 30  # seconds between signs of life of a run; Prefect allows no less
# As Prefect sets its own temporary server: no pages, and only the services that record a run.
OURS = str(Path(__file__).resolve().parents[1])  # uvicorn would put the working folder first on sys.path
TEMPORARY = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


class Refused(RuntimeError):
    """There is no server for this; `remedy` says what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class Away(Refused):
    """The server that the user has named does not answer as one of this version of Prefect."""


def reach() -> None:
    """Check that the server that the user has named answers and accepts the password. Raises Refused, Away."""
    quick = {PREFECT_API_REQUEST_TIMEOUT: 10.0, PREFECT_CLIENT_MAX_RETRIES: 1}
    with temporary_settings(quick), get_client(sync_client=True) as client:
        try:
            client.raise_for_api_version_mismatch()
        except PrefectHTTPStatusError:  # 401; all others are a RuntimeError
            raise Refused("Prefect's server wants another password", "set PREFECT_API_AUTH_STRING to USER:PASSWORD") from None
        except RuntimeError as error:
            raise Away(str(error), "set PREFECT_API_URL to that of a running server, http://HOST:4200/api") from None


@contextmanager
def at_hand() -> Iterator[None]:
    """A server for the flow runs of this block: the user's, or a temporary one that ends with this process. Raises Refused."""
    if get_current_settings().api.url is not None:
        reach()
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: HEARTBEAT}):  # as all runs there (flows/liveness.py)
            yield
        return
    _start()
    # No heartbeats: they tell a server that a flow has died, and this one ends with the flow. Their thread ends slowly.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _start() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        command = [
            *children.interpreter(Path.cwd()), "-m", "flows.collector", "uvicorn", "--factory", "--app-dir", OURS,
            "prefect.server.api.server:create_app", "--fd", str(listener.fileno()), "--log-level", "error", "--lifespan", "on",
        ]  # fmt: skip
        address, password = f"http://127.0.0.1:{listener.getsockname()[1]}", secrets.token_urlsafe(32)
        own = {"PREFECT_SERVER_API_AUTH_STRING": password, "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address}
        chosen = get_current_settings().to_environment_variables(exclude_unset=True)
        server = subprocess.Popen(command, env={**os.environ, **TEMPORARY, **chosen, **own}, pass_fds=[listener.fileno()])
        os.environ |= {"PREFECT_API_URL": f"{address}/api", "PREFECT_API_AUTH_STRING": password}
    refresh_global_settings_context()

    @atexit.register  # before Prefect registers anything, so it runs after: by then the whole record has been sent
    def stop() -> None:
        server.terminate()
        server.wait()
