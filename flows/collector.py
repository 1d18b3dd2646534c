"""`python -m flows.collector MODULE ...` is `python -m MODULE ...` with a thread of its own for collecting garbage.

Prefect's server needs it with SQLite, or it may stand still for a minute and lose the heartbeats of that time:

    the event loop   collects garbage, since it happens to allocate; it finds a cursor and waits for its connection's mutex
    a thread         holds that mutex and waits for the database's write lock, for 60 s at most
    a transaction    holds the write lock, and only the event loop can end it

A thread that does nothing but collect may wait.
"""

from __future__ import annotations

import gc
import itertools
import runpy
import sys
import threading
import time

PAUSE = 10.0  # seconds between two collections
WHOLE = 6  # one of so many looks through all objects, a fifth of a second in a server; the others look through new ones


def main() -> None:
    gc.disable()
    threading.Thread(target=_collect, name="collector", daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _collect() -> None:
    for number in itertools.count(1):
        time.sleep(PAUSE)
        gc.collect(1 if number % WHOLE else 2)


if __name__ == "__main__":
    main()
