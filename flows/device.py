"""One stage on a device at a time, whichever project and user of the machine has started its worker.

A worker of the pool `gpu` stands for one device of its machine and names it in TAILFORGE_DEVICE. A stage holds the lock of
that device, and so does the supervisor of its processes: a hard kill of the worker or of the flow frees the device as soon
as nothing of them is left on it, neither before nor later, since the lock is the kernel's. `tailforge run` has no worker and
takes no lock.

    TMPDIR/tailforge-device-NAME.lock   opened for reading alone, which is all that a lock wants: it may be another user's
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "TAILFORGE_DEVICE"


def name() -> str:
    """The device of this process, as part of a file name."""
    return re.sub(r"[^A-Za-z0-9]", "-", os.environ.get(VARIABLE, "none"))


@contextmanager
def held(log: Callable[[str], object] = print) -> Iterator[list[int]]:
    """Hold the device that the environment names, after waiting for it; yields descriptors to hand on, or none."""
    if VARIABLE not in os.environ:
        yield []
        return
    descriptor = _opened(Path(tempfile.gettempdir(), f"tailforge-device-{name()}.lock"))
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for device {name()}, which another stage holds")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield [descriptor]
    finally:
        os.close(descriptor)


def _opened(file: Path) -> int:
    """A descriptor of the lock; the file is made where there is none, for all users, and never opened by O_CREAT once it is
    there, which Linux forbids for the file of another user in a folder of all (protected_regular)."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(file, flags)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o644)
            os.fchmod(descriptor, 0o644)  # whatever the umask
            return descriptor
