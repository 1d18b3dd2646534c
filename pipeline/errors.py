"""What can go wrong, and what a user reads when it does.

    TailforgeError
    ├── InputError          what the user gave does not fit; exit status 2
    │   ├── ConfigError     params.yaml: a key or a value
    │   └── DataError       images, labels, tables, folders
    ├── StorageError        the disk refused a write; exit status 2
    ├── WorkerLost          a process that did a part of the work ended before its end; exit status 1, 137 where it was killed
    ├── OutOfMemory         a step or an image does not fit into memory; exit status 1
    ├── Diverged            a loss became non-finite; the last good checkpoint is kept; exit status 1
    └── LeakError           a fit was handed a row it must never see; a fault of ours; exit status 1

Each message is one line: the value, what was expected, and the remedy.
"""

from __future__ import annotations

import signal


class TailforgeError(Exception):
    """Root of the tree. `value`, `expected` and `remedy` are joined into one line."""

    exit_status = 1

    def __init__(self, value: str, *, expected: str = "", remedy: str = "") -> None:
        self.value, self.expected, self.remedy = value, expected, remedy
        parts = [value, f"expected {expected}" if expected else "", remedy]
        super().__init__("; ".join(" ".join(p.split()) for p in parts if p))


class InputError(TailforgeError):
    """What the user gave does not fit."""

    exit_status = 2


class ConfigError(InputError):
    """A key or a value of params.yaml does not fit."""


class DataError(InputError):
    """Images, labels, tables or folders do not fit."""


class StorageError(TailforgeError):
    """The disk refused a write: full, read-only or gone."""

    exit_status = 2


class Diverged(TailforgeError):
    """A loss became non-finite."""


class OutOfMemory(TailforgeError):
    """A step of a fit, or a single image, does not fit into memory."""


class WorkerLost(TailforgeError):
    """A process that did a part of the work ended with `status` before its end; where SIGKILL ended it the stage ends as if it
    had been killed itself, and a worker's is sent again (flows/workers.py)."""

    def __init__(self, value: str, *, status: int | None = None, expected: str = "", remedy: str = "") -> None:
        super().__init__(value, expected=expected, remedy=remedy)
        if status == -signal.SIGKILL:
            self.exit_status = 128 + signal.SIGKILL


class LeakError(TailforgeError):
    """A fit was handed a validation, test or foreign row."""
