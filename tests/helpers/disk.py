"""Disk: the operations of a piece of work that change files below a folder, counted, and the n-th of them a fault.

    kill     a process dies before its n-th operation; a write is torn in half first. Nothing of it happens after: neither
             `except` nor `finally` can tidy up. `Killed` comes out of the work, or a real SIGKILL where `real`.
    once     the n-th operation fails with an error number
    always   so do all that need room from then on: a full disk

An operation is a write, fsync, rename, unlink, mkdir or rmdir by Python; what Arrow writes itself counts with the next one.
A power loss is a kill after which every file that was not synced since it was written is torn (`tear`).
"""

from __future__ import annotations

import builtins
import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

NEEDS_ROOM = ("write", "fsync", "mkdir")
NEVER = 10**9


class Killed(BaseException):
    """The process is dead. Nothing of the product's may catch it."""


class Disk:
    """`count` operations were asked for; `faults` of them failed. `at` is the number of the first that does."""

    def __init__(
        self,
        root: Path,
        at: int = NEVER,
        how: Literal["kill", "once", "always"] = "kill",
        error: int = 0,
        *,
        real: bool = False,
    ) -> None:
        self.root, self.at, self.how, self.error, self.real = root.resolve(), at, how, error, real
        self.count = self.faults = 0
        self.dead = False
        self.synced: dict[int, bytes] = {p.stat().st_ino: p.read_bytes() for p in self.files()}
        self.pending: set[Path] = set()  # folders with a rename that is not synced

    def files(self) -> list[Path]:
        return [path for path in sorted(self.root.rglob("*")) if path.is_file() and not path.is_symlink()]

    def step(self, name: str, do: Callable[[], Any], torn: Callable[[], Any] = lambda: None) -> Any:
        """One operation; `torn` is what of it happens when it fails."""
        if self.dead:
            raise Killed
        self.count += 1
        if self.count < self.at or (self.count > self.at and (self.how == "once" or name not in NEEDS_ROOM)):
            return do()
        self.faults += 1
        torn()
        if self.how != "kill":
            raise OSError(self.error, os.strerror(self.error))
        if self.real:
            os.kill(os.getpid(), signal.SIGKILL)
        self.dead = True
        raise Killed

    def tear(self, keep: float) -> list[Path]:
        """What a power loss does: of each file that is not on the disk a share of its bytes stays. Returns these files."""
        lost = [path for path in self.files() if self.synced.get(path.stat().st_ino) != path.read_bytes()]
        for path in lost:
            path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        return lost

    @contextmanager
    def watched(self) -> Iterator[Disk]:
        """Within, Python's operations below the root go through `step`."""
        before = {(module, name): getattr(module, name) for module, name in PATCHED}
        opened = io.open
        disk = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:  # type: ignore[override]
                whole = bytes(data)
                if disk.dead:
                    return len(whole)  # what buffers hold is lost with the process
                half = whole[: len(whole) // 2]
                return int(disk.step("write", lambda: super(Raw, self).write(whole), lambda: super(Raw, self).write(half)))

        def open_(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+") or not disk.is_below(file):
                return opened(file, mode, buffering, *rest, **options)
            if disk.dead:
                raise Killed
            stream = io.BufferedWriter(Raw(file, mode.replace("b", "").replace("t", "")))
            return stream if "b" in mode else io.TextIOWrapper(stream, *rest, **options)

        def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def operation(*arguments: Any, **options: Any) -> Any:
                if "dir_fd" not in options and not disk.is_below(arguments[0]):
                    return call(*arguments, **options)
                value = disk.step(name, lambda: call(*arguments, **options))
                disk.learn(name, arguments)
                return value

            return operation

        builtins.open = io.open = open_  # type: ignore[assignment]
        for (module, name), call in before.items():
            setattr(module, name, counted(name, call))
        try:
            yield self
        finally:
            builtins.open = io.open = opened
            for (module, name), call in before.items():
                setattr(module, name, call)

    def is_below(self, place: Any) -> bool:
        path = Path(os.readlink(f"/proc/self/fd/{place}")) if isinstance(place, int) else Path(os.fspath(place)).absolute()
        return path.is_relative_to(self.root)

    def learn(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "fsync":
            path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))
            if path.is_dir():
                self.pending.discard(path)
            else:
                self.synced[path.stat().st_ino] = path.read_bytes()
        elif name in ("replace", "rename"):
            self.pending.add(Path(arguments[1]).absolute().parent)


PATCHED = [(os, name) for name in ("fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir")]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


class Trial:
    """`work` done in a copy of `base`, again and again with a fault at every operation in turn; `out` is its result."""

    def __init__(self, base: Path, place: Path, out: str, work: Callable[[], None]) -> None:
        self.base, self.place, self.out, self.work = base, place, out, work
        self.fresh()
        work()
        self.expected = contents(self.place / out)
        self.points = 0

    def fresh(self) -> None:
        """The copy as it was before the work. The work is done in it."""
        os.chdir("/")
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.base, self.place)
        os.chdir(self.place)

    def ends_well(self) -> None:
        """Done again without a fault, the work ends as if there had been none, and leaves nothing else."""
        self.work()
        assert contents(self.place / self.out) == self.expected

    def faults(self, how: Literal["kill", "once", "always"], error: int = 0) -> Iterator[tuple[Disk, BaseException]]:
        """A disk after each fault there can be, and what came out of the work."""
        for at in range(1, 2000):
            self.fresh()
            disk = Disk(self.place, at, how, error)
            try:
                with disk.watched():
                    self.work()
            except (Killed, Exception) as fault:
                self.points += 1
                yield disk, fault
            else:
                if not disk.faults:
                    return
                self.points += 1  # the work did without
        raise AssertionError("the work has no end")
