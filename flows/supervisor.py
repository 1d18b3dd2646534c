"""Run a command so that nothing of it outlives the one who asked: `python supervisor.py GRACE COMMAND ...`.

The command gets a process group of its own. It is stopped when this process gets SIGTERM, or when this process's standard
input ends: the asker has died, perhaps by SIGKILL. SIGTERM goes to the command alone first, so that a flow can still report
to its server. When the command is gone, the rest of its group gets SIGTERM: DVC forwards no signal to its stage, Prefect
leaves its temporary server. GRACE seconds later the group is killed. As a subreaper (Linux) this process inherits what the
command orphans, so it waits for all of them by waiting for its children.

Exit status: the command's, or 128 + n where signal n ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

PR_SET_CHILD_SUBREAPER = 36


def main(grace: float, command: list[str]) -> int:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    asked = threading.Event()
    child: subprocess.Popen[bytes] | None = None

    def stop(*_: object) -> None:
        asked.set()
        if child is not None and child.returncode is None:
            child.terminate()
            timer = threading.Timer(grace, _signal, (child.pid, signal.SIGKILL))
            timer.daemon = True
            timer.start()

    signal.signal(signal.SIGTERM, stop)
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, process_group=0, close_fds=False
    )  # the descriptors `keep` stay open
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # later than the child: Prefect's worker ends by SIGINT and must not inherit this
    if asked.is_set():
        stop()
    threading.Thread(target=_watch_asker, daemon=True).start()
    status = child.wait()
    _stop_rest(child.pid, grace)
    return status if status >= 0 else 128 - status


def _watch_asker() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _stop_rest(group: int, grace: float) -> None:
    """Stop what is left of the group and wait until no child remains."""
    _signal(group, signal.SIGTERM)
    deadline = time.monotonic() + grace
    with contextlib.suppress(ChildProcessError):  # raised when none remains
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.02)
    _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
