"""A warm process: it has imported the packages that stages need, and each stage that a client asks for is a fork of it.

Starting a stage takes seconds, nearly all of them for imports: torch, Great Expectations, scikit-learn. Whoever runs many
stages (flows/warm.py) starts one warm process and names its socket in a variable. `python -m pipeline.stages` is then its
client (pipeline/runtime/stage_client.py).

A fork is as good as a fresh process. The warm process runs no stage and no operation on tensors, and starts no thread
(pyarrow's allocator does, and knows forks). It imports none of the code of stages, so a file edited meanwhile is read as it
is. A fork takes the client's sys.path and forgets the package `pipeline` that it came from, so that it runs the client's.

Nothing outlives its asker. The kernel kills a fork when the warm process ends. The warm process kills a fork when its
client's connection ends, which a SIGKILL ends too. The fork holds the other end of that connection: a client that sees its
end knows that the fork is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from pipeline.runtime.stage_client import MESSAGE

HEAVY = (
    "pandas", "pyarrow.parquet", "pyarrow.dataset", "pydantic.main", "pydantic.fields", "pydantic.types",
    "pydantic.functional_validators", "yaml", "tqdm", "sklearn.datasets", "sklearn.linear_model", "sklearn.ensemble",
    "safetensors.torch", "torch._dynamo", "torchvision.models", "great_expectations.expectations", "jinja2",
)  # fmt: skip

# Beginnings of the names of variables that packages read at import. A client with other values is refused.
READ_AT_IMPORT = ("ARROW", "CUDA", "GOMP", "KMP", "LD_", "MKL", "NVIDIA", "OMP", "OPENBLAS", "PYTHON", "PYTORCH", "TORCH")

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Request:
    """A stage's arguments, and the client's process: streams, folder, sys.path, environment, the signals that it heeds."""

    connection: socket.socket
    streams: list[int]
    arguments: list[str]
    folder: str
    path: list[str]
    environment: dict[str, str]
    heeded: list[int]


def main() -> None:
    """Import, then fork at each request, until SIGTERM and the end of the last fork; in a fork, run the stage.

    Arguments: the descriptor of a socket that listens already, and its path, whose folder is removed at the end.
    """
    listener, place = socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])
    _end_with_parent(signal.SIGTERM)
    given = dict(os.environ)
    gc.disable()
    for name in HEAVY:
        importlib.import_module(name)
    by_imports = {name: value for name, value in os.environ.items() if given.get(name) != value}
    gc.freeze()  # a fork need not look through what is there, nor write to its pages
    warm = os.getpid()
    request = _serve(listener, given)
    if request is None:
        shutil.rmtree(place.parent, ignore_errors=True)
        os._exit(0)
    _end_with_parent(signal.SIGKILL)
    if os.getppid() != warm:
        os._exit(1)
    _become(request, by_imports, place)
    _run()


def _end_with_parent(number: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def _serve(listener: socket.socket, given: dict[str, str]) -> Request | None:
    """Fork at each request. Returns the request in each fork, and None in the warm process when it has been stopped.

    `given` is the environment at the time of the imports.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)  # each signal is a byte in `woken`
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    stopped, waiting, forks = False, list[socket.socket](), dict[int, socket.socket | None]()
    while forks or not stopped:
        asked = [connection for connection in forks.values() if connection]
        watched: list[int | socket.socket] = [woken, *waiting, *asked]
        ready, _, _ = select.select(watched if stopped else [*watched, listener], [], [])
        if woken in ready:
            stopped |= signal.SIGTERM in os.read(woken, 512)
            _reap(forks)
        for fork, connection in forks.items():
            if connection and connection in ready:
                forks[fork] = _pass_on(fork, connection)
        for connection in [one for one in waiting if one in ready]:
            waiting.remove(connection)
            if request := _request(connection, given):
                if fork := os.fork():
                    forks[fork] = connection
                    _close(request.streams)
                    continue
                signal.set_wakeup_fd(-1)
                _close([woken, wake])
                for other in (listener, *waiting, *filter(None, forks.values())):
                    other.close()
                return request
        if listener in ready:
            waiting.append(listener.accept()[0])
    return None


def _reap(forks: dict[int, socket.socket | None]) -> None:
    """Tell the clients of the forks that ended how they ended."""
    for fork, connection in list(forks.items()):
        ended, status = os.waitpid(fork, os.WNOHANG)
        if ended:
            del forks[fork]
            if connection:
                _answer(connection, os.waitstatus_to_exitcode(status), "")


def _pass_on(fork: int, connection: socket.socket) -> socket.socket | None:
    """Give a signal of the client to its fork; kill the fork of a client that is gone."""
    word = connection.recv(1)
    os.kill(fork, word[0] if word else signal.SIGKILL)
    if word:
        return connection
    connection.close()
    return None


def _request(connection: socket.socket, given: dict[str, str]) -> Request | None:
    """The client's request; None where the client is gone, or was told to run the stage itself."""
    message, streams, _, _ = socket.recv_fds(connection, MESSAGE, 3)
    if not message:
        connection.close()
        return None
    request = Request(connection, streams, **json.loads(message))
    names = sorted(name for name in {*request.environment, *given} if name.startswith(READ_AT_IMPORT))
    changed = ", ".join(name for name in names if request.environment.get(name) != given.get(name))
    if changed:
        _close(streams)
        _answer(connection, None, f"{changed} changed after its start")
        return None
    return request


def _answer(connection: socket.socket, status: int | None, why: str) -> None:
    with connection, contextlib.suppress(OSError):  # raised where the client is gone
        connection.send(json.dumps([status, why]).encode())


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _become(request: Request, by_imports: dict[str, str], place: Path) -> None:
    """Make this fork what the client would be after these imports, which set some variables."""
    for number, descriptor in enumerate(request.streams):
        os.dup2(descriptor, number)
    _close(request.streams)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler if signal.SIGINT in request.heeded else signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(request.environment | by_imports)
    os.chdir(request.folder)
    sys.path[:] = request.path
    for name in [name for name in sys.modules if name.partition(".")[0] == "pipeline"]:
        del sys.modules[name]
    sys.argv[1:] = request.arguments
    gc.enable()
    _fork_server(place.with_name(str(os.getpid())), request.connection)


def _fork_server(place: Path, connection: socket.socket) -> None:
    """Fork once more: the server from which multiprocessing forks the workers of a stage. It ends with the stage.

    Otherwise multiprocessing would start a fresh interpreter for it, with imports of its own.
    """
    server: Any = forkserver._forkserver
    ours, server._forkserver_alive_fd = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        server._forkserver_address = str(place)
        server._forkserver_pid = os.fork()
        if server._forkserver_pid == 0:
            os.close(server._forkserver_alive_fd)
            connection.close()
            with contextlib.suppress(SystemExit):  # it ends when the stage's end of the pipe is closed
                forkserver.main(listener.fileno(), ours, [])
            os._exit(0)
    os.close(ours)


def _run() -> None:
    """Run the stage as `python -m` does, but end without taking the modules apart, which takes half a second."""
    try:
        runpy.run_module("pipeline.stages", run_name="__main__", alter_sys=True)
    except SystemExit as left:
        if not isinstance(left.code, int):
            raise
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(left.code)


if __name__ == "__main__":
    main()
