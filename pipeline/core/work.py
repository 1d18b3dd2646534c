"""Files that exist whole or not at all, and work that survives a kill.

`write` puts a file in place by write, fsync, rename. `resumable` gives a stage a folder that outlives the process. Its name
is the hash of everything that decides the result (settings, input files, code), so only an equal run resumes the unfinished
work. When the stage is done, the entries of the folder are synced to the disk and moved into place.

Unfinished work may stay for days, and a flipped bit in it would enter the result unseen. So `write` records the hash of each
file there (JOURNAL). A later run checks the hashes. It removes files that do not match, and they are made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StorageError

PARTIAL = Path(".tailforge/partial")
JOURNAL = ".written"  # in a folder of unfinished work: a line `hash name` for each file that `write` put there
_NO_ROOM, _FAILS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}, {errno.EIO, errno.ESTALE}


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn the errors of a full, read-only or failing disk into StorageError; pass all others on."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM | _FAILS:
            raise
        room = error.errno in _NO_ROOM
        raise StorageError(
            f"{path}: {error.strerror}",
            expected="a disk with room" if room else "a disk that reads and writes",
            remedy=f"{'free some space' if room else 'repair the disk or mount'} and run again: finished work is kept",
        ) from error


def write(path: Path, data: bytes | str) -> None:
    """Put `data` at `path`. After a crash the file is the old one or the new one, never a mixture."""
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            _note(path, raw)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


def write_json(path: Path, value: object) -> None:
    """Put `value` at `path` as JSON with sorted keys, so that equal values give equal bytes. Raises ValueError for NaN."""
    write(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def key(*parts: object) -> str:
    """Hash of settings (any JSON value) and of files (a Path: its bytes; a folder: its files in order)."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        if isinstance(part, Path):
            for file in sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]:
                digest.update(file.relative_to(part.parent).as_posix().encode() + b"\0")
                with open(file, "rb") as stream:
                    digest.update(hashlib.file_digest(stream, "blake2b").digest())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\0")
    return digest.hexdigest()


def code_key() -> str:
    """Hash of this package's sources, so that unfinished work of other code is not resumed."""
    root = Path(__file__).parents[1]
    digest = hashlib.blake2b(digest_size=12)
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


@contextmanager
def resumable(out: Path, *decided_by: object) -> Iterator[Path]:
    """A folder for the unfinished entries of folder `out`. It is kept when the process dies, and an equal run resumes it.

    On success each entry is moved into `out` and replaces what was there. Work of other settings for the same `out` is
    removed first. Names that start with a dot, at any depth, are not part of the result: checkpoints, and leftovers of
    killed processes.
    """
    place = PARTIAL / "-".join(out.parts).strip("/.")
    folder = place / key(code_key(), *decided_by)
    with storage(out):
        for other in place.iterdir() if place.is_dir() else ():
            if other != folder:
                shutil.rmtree(other)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_damaged(folder)
        yield folder
        _finish(folder)
        out.mkdir(parents=True, exist_ok=True)
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith("."):
                continue
            target = out / entry.name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            os.replace(entry, target)
        _sync(out)
        shutil.rmtree(place)


def _note(path: Path, raw: bytes) -> None:
    """Record the hash of the bytes `raw` that will be at `path`, if that is unfinished work."""
    n = len(PARTIAL.parts)
    if path.parts[:n] != PARTIAL.parts or len(path.parts) < n + 3:
        return
    folder, name = Path(*path.parts[: n + 2]), Path(*path.parts[n + 2 :]).as_posix()
    with open(folder / JOURNAL, "ab") as journal:  # not synced: a file without its line is accepted as it is
        # The newline comes first: a torn line ends there.
        journal.write(f"\n{hashlib.blake2b(raw, digest_size=16).hexdigest()} {name}".encode())


def _remove_damaged(folder: Path) -> None:
    """Remove files that do not match their recorded hash, and say so."""
    journal = folder / JOURNAL
    if not journal.is_file():
        return
    lines = journal.read_text(encoding="utf-8", errors="replace").splitlines()
    noted = {name: digest for digest, _, name in (line.partition(" ") for line in lines)}
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        digest = noted.get(file.relative_to(folder).as_posix())
        if digest and hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() != digest:
            print(f"{file} was damaged since it was written: it is made again", file=sys.stderr)
            file.unlink()


def _finish(folder: Path) -> None:
    """Remove hidden files and folders from the entries of `folder`, and sync the rest before it is moved: a power cut may keep
    a rename and lose the bytes."""
    for place, below, files in os.walk(folder):
        hidden = [name for name in below if name.startswith(".")]
        below[:] = [name for name in below if name not in hidden]
        if Path(place) != folder:
            for name in hidden:
                shutil.rmtree(Path(place, name))
            for name in [name for name in files if name.startswith(".")]:
                Path(place, name).unlink()
                files.remove(name)
        for name in files:
            _sync(Path(place, name))
        _sync(Path(place))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
