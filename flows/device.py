"""One stage on a device at a time, whoever started it.

A worker of the pool `gpu` stands for one device of its machine and names it in TAILFORGE_DEVICE. A stage holds the lock of
that device, and so does the supervisor of its processes: a hard kill of the worker or of the flow frees the device as soon
as nothing of them is left on it, neither before nor later, since the lock is the kernel's.
"""

from __future__ import annotations

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
    file = Path(tempfile.gettempdir(), f"tailforge-device-{name()}.lock")
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for device {name()}, which another stage holds")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield [descriptor]
    finally:
        os.close(descriptor)
