"""Child processes: which interpreter runs, in which environment, and how all of it ends.

interpreter   Python, so that no file of the folder takes the place of a module that we or others import
environment   of every child
supervised    a command that leaves no process behind
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

SUPERVISOR = Path(__file__).with_name("supervisor.py")
OWN = ("pipeline/stages/__main__.py", "flows/supervisor.py", "tailforge/cli.py")  # files by which a checkout of ours is known


def interpreter(folder: Path) -> list[str]:
    """The first words of a Python command whose working folder is `folder`.

    Python puts the working folder first on sys.path: a user's `pipeline/` or `torch.py` would be imported in place of the
    package of that name. `-P` keeps the folder out. A checkout of Tailforge itself is the exception. Its dvc.yaml depends on
    its own pipeline/, so its own code has to run, as in the worktree in which a scheduled run works.
    """
    return [sys.executable] if is_checkout(folder) else [sys.executable, "-P"]


def is_checkout(folder: Path) -> bool:
    """Whether `folder` holds the source of Tailforge."""
    return all((folder / name).is_file() for name in OWN)


def environment() -> dict[str, str]:
    """The environment of every child: this interpreter first on PATH, output unbuffered, no telemetry."""
    here = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": here + os.pathsep + os.environ.get("PATH", os.defpath),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s %(task_run_name)s | %(message)s",
        "HF_HUB_OFFLINE": "1",
    }


@contextmanager
def supervised(
    command: Sequence[str], *, cwd: Path, output: int | IO[Any], grace: float, keep: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` under flows/supervisor.py, with the descriptors `keep` open.

    Leaving the block stops it and waits for its end. It has `grace` seconds to leave after SIGTERM.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", str(SUPERVISOR), str(grace), *command], cwd=cwd, env=environment(), start_new_session=True,
        stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, pass_fds=keep,
    )  # fmt: skip
    try:
        yield process
        process.wait()
    finally:
        process.terminate()  # does nothing once it has been waited for
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()
