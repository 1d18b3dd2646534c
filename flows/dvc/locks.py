"""Who else works in a project.

.tailforge/stages.lock   its lock is shared by all processes of the stages that `reproduce` has started
.dvc/tmp/rwlock          DVC's own list of the processes that read and write results
"""

from __future__ import annotations

import fcntl
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def shared(project: Path) -> Iterator[int]:
    """Hold the lock of stages beside others that do; yields its descriptor, for the processes of a stage to hold it too."""
    with open(_file(project), "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield lock.fileno()


def settle(project: Path, log: Callable[[str], object]) -> None:
    """Wait until no stage that `reproduce` has started is left in the project, whoever asked for it.

    A stage on a worker outlives a run that is killed. When it ends, DVC records the settings that then lie in the project: a
    commit checked out before that would be recorded in place of the stage's own.
    """
    with open(_file(project), "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for a stage in {project}; the run that started it is gone")
            fcntl.flock(lock, fcntl.LOCK_EX)


def _file(project: Path) -> Path:
    file = project / ".tailforge" / "stages.lock"
    file.parent.mkdir(exist_ok=True)
    return file


def forget_dead_processes(project: Path, log: Callable[[str], object]) -> None:
    """Remove from DVC's list every process that is no DVC. Linux alone; elsewhere the list stays as it is.

    DVC itself removes ids that no process has. A list torn by a kill, or an id that another program has now, would stop DVC
    until someone removes the file. The list is changed under DVC's own lock.
    """
    file = project / ".dvc" / "tmp" / "rwlock"
    if sys.platform != "linux" or not file.is_file():
        return
    with open(file.with_name("rwlock.lock"), "a", encoding="utf-8") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        try:
            listed = json.loads(file.read_text(encoding="utf-8"))
            processes = [*listed.get("write", {}).values(), *itertools.chain(*listed.get("read", {}).values())]
            gone = [process["pid"] for process in processes if process and not is_dvc(process["pid"])]
        except (ValueError, AttributeError, KeyError, TypeError):
            file.unlink()
            log("removed DVC's list of running processes: a killed process left it torn")
            return
        if gone:
            alive = {
                "write": {path: own for path, own in listed.get("write", {}).items() if own.get("pid") not in gone},
                "read": {path: [o for o in own if o["pid"] not in gone] for path, own in listed.get("read", {}).items()},
            }
            file.write_text(json.dumps({mode: {path: own for path, own in at.items() if own} for mode, at in alive.items()}))
            log(f"removed from DVC's list of running processes: {', '.join(map(str, sorted(set(gone))))}, no DVC any more")


def is_dvc(pid: int) -> bool:
    """Whether a process with this id has `dvc` in its command line."""
    try:
        return b"dvc" in Path(f"/proc/{int(pid)}/cmdline").read_bytes()
    except OSError:
        return False
