"""`python -m flows.collector MODULE ...` is `python -m MODULE ...` with a thread of its own for collecting garbage.

Prefect's server needs it with SQLite. Python collects cyclic garbage in the thread that happens to allocate, there mostly the
event loop's. It may find a cursor there, whose end waits for its connection's mutex; a thread may hold that while it waits for
the database's write lock, for 60 s at most; and a transaction that only the event loop can end may hold the lock. So nothing
moves for a minute, and heartbeats of that time are lost. A thread that does nothing else may wait.
"""

from __future__ import annotations

import gc
import runpy
import sys
import threading
import time

PAUSE = 10.0  # seconds between two collections


def main() -> None:
    gc.disable()
    threading.Thread(target=_collect, name="collector", daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _collect() -> None:
    while True:
        time.sleep(PAUSE)
        gc.collect()


if __name__ == "__main__":
    main()
