"""One stage on a device at a time, for all projects and users of the machine.

A worker of the pool `gpu` stands for one device of its machine and names it in TAILFORGE_DEVICE. A stage holds the lock of
that device, and so does the supervisor of its processes. The lock is the kernel's: when the worker or the flow is killed, the
device is free as soon as none of their processes is left, not earlier and not later. `tailforge run` has no worker and takes no
lock.

    TMPDIR/tailforge-device-NAME.lock   opened for reading, which is enough for a lock; it may be another user's
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
    """Wait for the device that the environment names, and hold it. Yields the descriptors that the stage has to keep open."""
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
    """A descriptor of the lock's file, which is made for all users where there is none.

    A file that is there is never opened with O_CREAT: Linux refuses that for another user's file in /tmp (protected_regular).
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(file, flags)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o644)
            os.fchmod(descriptor, 0o644)  # whatever the umask
            return descriptor
