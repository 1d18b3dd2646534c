"""`dvc repro`, followed line by line.

`--single-item` leaves the order of stages to the caller. `--wait-for-lock` saves a stage that ends while another command holds
the lock; without it DVC gives up and the stage is lost.
"""

from __future__ import annotations

import io
import itertools
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, cast

from flows import children
from flows.dvc import commands, locks

Outcome = Literal["ran", "cached", "skipped"]

GRACE = 20.0  # seconds a stage has to leave after SIGTERM
PROGRESS_EVERY = 5.0  # seconds between two states of one progress bar in the log

_OUTCOMES: dict[Outcome, re.Pattern[str]] = {
    "skipped": re.compile(r"^(Stage )?'[^']+' didn't change, skipping"),
    "cached": re.compile(r"^Stage '[^']+' is cached - skipping run"),
}
_BEGUN = re.compile(r"^(?:Running stage|Stage) '([^']+)'")
_COMMAND = re.compile(r"^> ")  # DVC shows the command; the stage's own output follows
_STATUS = re.compile(r"ERROR: failed to reproduce '[^']+': failed to run: .*, exited with (-?\d+)$")
_CHATTER = re.compile(
    r"^(To track the changes with git|\tgit add|To enable auto staging|\tdvc config core\.autostage|Use `dvc push`"
    r"|Updating lock file|Generating lock file|Data and pipelines are up to date|$)"
)


class StageFailed(RuntimeError):
    """A stage failed; the message has its last lines. `exit_status` is the stage's, or 128 + n where signal n ended it."""

    def __init__(self, stage: str, exit_status: int, lines: Sequence[str]) -> None:
        super().__init__(stage, exit_status, lines)
        self.stage, self.exit_status, self.lines = stage, exit_status, tuple(lines)

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended the stage or one of its processes: by hand, or by the kernel when memory ran out.

        Such a stage may succeed when it runs again.
        """
        return self.exit_status == 128 + signal.SIGKILL

    def __str__(self) -> str:
        return "\n".join([f"stage {self.stage} failed with exit status {self.exit_status}:", *self.lines])


def reproduce(
    project: Path,
    stages: Sequence[str],
    *,
    force: Collection[str] = (),
    log: Callable[[str], object] = print,
    keep: Sequence[int] = (),
) -> Generator[Outcome, None, None]:
    """Bring `stages` up to date in this order, those in `force` even if nothing changed; yields the outcome of each.

    `log` gets their output line by line as it comes. A stage's outcome comes before the first line of the next. The
    descriptors `keep` stay open until no process of a stage is left. An exception in the caller, or closing, stops the stage
    that runs. Raises StageFailed.
    """
    locks.forget_dead_processes(project, log)
    with locks.shared(project) as lock:
        for forced, names in itertools.groupby(stages, lambda stage: stage in force):
            yield from _reproduce(project, list(names), ["--force"] if forced else [], log, [*keep, lock])


def _reproduce(
    project: Path, stages: Sequence[str], options: Sequence[str], log: Callable[[str], object], keep: Sequence[int]
) -> Generator[Outcome, None, None]:
    """One DVC process for all `stages`: its start takes longer than most of its work for a stage."""
    words = commands.command(commands.DVC, "--wait-for-lock", "repro", "--single-item", *options, *stages)
    done = 0
    outcome: Outcome = "ran"
    own: deque[str] | None = None
    last: deque[str] = deque(maxlen=20)
    status = 1
    with children.supervised(words, cwd=project, output=subprocess.PIPE, grace=GRACE, keep=keep) as process:
        assert process.stdout is not None
        for line in _lines(process.stdout):
            if (begun := _BEGUN.match(line)) and begun[1] in stages[done + 1 :]:
                while stages[done] != begun[1]:
                    yield outcome
                    done += 1
                outcome, own, last = "ran", None, deque(maxlen=20)
            outcome = next((name for name, pattern in _OUTCOMES.items() if pattern.match(line)), outcome)
            if failed := _STATUS.search(line):
                line = line[: failed.start()]  # DVC's words may follow a progress bar on the same line
                status = int(failed[1])
                status = 128 - status if status < 0 else status  # as in a shell: -9 becomes 137
            if _COMMAND.match(line) and own is None:
                own = deque(maxlen=20)
            elif not _CHATTER.match(line):
                (last if own is None else own).append(line)
                log(line)
    if process.returncode:
        raise StageFailed(stages[done], status, own or last)
    yield from [outcome] * (len(stages) - done)


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines as they come. Of a progress bar, whose states end in a carriage return, one state every PROGRESS_EVERY seconds."""
    shown = 0.0
    with io.TextIOWrapper(cast(io.BufferedReader, stream), encoding="utf-8", errors="replace", newline="") as text:
        for raw in text:
            line = raw.rstrip("\r\n")
            if raw.endswith("\n"):
                yield line
            elif line and time.monotonic() - shown >= PROGRESS_EVERY:
                shown = time.monotonic()
                yield line
