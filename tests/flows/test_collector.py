"""Garbage is collected by a thread that may wait."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

FROZEN = """\
import sqlite3, sys, threading

file, seconds = sys.argv[1], float(sys.argv[2])
holder, waiter = (sqlite3.connect(file, isolation_level=None, timeout=seconds, check_same_thread=False) for _ in range(2))
holder.execute("create table t (x)")
holder.execute("begin immediate")

def leave():
    cycle = [waiter.execute("select 1 union select 2")]  # an unfinished statement: its end wants the connection's mutex
    cycle.append(cycle)

def write():
    try:
        waiter.execute("insert into t values (1)")
    except sqlite3.OperationalError:  # the other thread may have taken its words: "not an error"
        print("waited in vain")

leave()
waits = threading.Event()
waiter.set_trace_callback(lambda _: waits.set())  # called with the mutex held
thread = threading.Thread(target=write)
thread.start()
waits.wait()
allocated = [[] for _ in range(100_000)]  # Python collects here
holder.execute("commit")
thread.join()
"""
NOW = "from flows import collector; collector.PAUSE = 0.01; collector.main()"


@pytest.mark.fault(27, "garbage that waits for SQLite's lock does not stop the thread that holds it")
@pytest.mark.parametrize(("under", "said"), [((), "waited in vain\n"), (("-c", NOW), "")])
def test_a_cursor_whose_end_has_to_wait_freezes_nobody(
    under: tuple[str, ...], said: str, tmp_path: Path, command: Command
) -> None:
    """The first shows what is prevented, and why the module is there: who would free the lock waits for who waits for it."""
    (tmp_path / "frozen.py").write_text(FROZEN)
    if not under:
        done = command(sys.executable, "frozen.py", "db", "1", cwd=tmp_path)
    else:
        done = command(sys.executable, *under, "frozen", "db", "60", cwd=tmp_path)
    assert done.stdout == said


def test_what_is_garbage_goes(tmp_path: Path, command: Command) -> None:
    (tmp_path / "left.py").write_text(
        "import time, weakref\nclass Cycle: pass\ncycle = Cycle()\ncycle.own = cycle\nleft = weakref.ref(cycle)\ndel cycle\n"
        "for _ in range(6000):\n    if left() is None: break\n    time.sleep(0.01)\nprint(left())\n"
    )
    assert command(sys.executable, "-c", NOW, "left", cwd=tmp_path).stdout == "None\n"


def test_it_runs_a_module_as_python_does_but_for_the_collector(tmp_path: Path, command: Command) -> None:
    (tmp_path / "told.py").write_text(
        "import gc, sys, threading\nprint(__name__, sys.argv[1:], gc.isenabled(), [t.name for t in threading.enumerate()])\n"
    )
    done = command(sys.executable, "-m", "flows.collector", "told", "a", "b", cwd=tmp_path)
    assert done.stdout == "__main__ ['a', 'b'] False ['MainThread', 'collector']\n"
