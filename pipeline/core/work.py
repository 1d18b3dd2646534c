"""Files that are there whole or not at all, and work that survives a kill.

`write` puts a file in place by write, fsync, rename. `resumable` gives a stage a folder that outlives the process: its
name is the hash of everything that decides the result (settings, input files, code), so unfinished work is taken up
again by an equal run and never by another. When the stage is done the folder's entries are brought to the disk and moved to
their place.

Unfinished work may lie for days, and a bit that flips in it would go into the result unseen. So `write` notes in the folder
(JOURNAL) what hash a file there has, and who takes the work up removes what has another, to be made again.
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
JOURNAL = ".written"  # of a folder of unfinished work: a line `hash name` for each file that `write` put there
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
            remedy=f"{'free some space' if room else 'see to the disk or mount'} and run again: finished work is kept",
        ) from error


def write(path: Path, data: bytes | str) -> None:
    """Put `data` at `path`: after a crash the file is the old one or the new one, never between."""
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
    """Put `value` at `path` as JSON, keys sorted, so that equal values give equal bytes. Raises ValueError for NaN."""
    write(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def key(*parts: object) -> str:
    """Hash of settings (anything JSON can say) and of files (Path: their bytes; a folder: its files in order)."""
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
    """Hash of this package's sources: unfinished work of other code is not taken up."""
    root = Path(__file__).parents[1]
    digest = hashlib.blake2b(digest_size=12)
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


@contextmanager
def resumable(out: Path, *decided_by: object) -> Iterator[Path]:
    """A folder for the unfinished entries of folder `out`, kept when the process dies and taken up by an equal run.

    On success each entry is moved into `out`, replacing what was there. Work of other settings for the same `out` is
    removed first. What has a name that starts with a dot, at any depth, is no part of the result: checkpoints, and what a
    process that was killed has left beside work that was done.
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
    """Note the hash of the bytes `raw` that are to stand at `path`, where that is unfinished work."""
    n = len(PARTIAL.parts)
    if path.parts[:n] != PARTIAL.parts or len(path.parts) < n + 3:
        return
    folder, name = Path(*path.parts[: n + 2]), Path(*path.parts[n + 2 :]).as_posix()
    with open(folder / JOURNAL, "ab") as journal:  # not synced: without its line a file is taken as it is
        journal.write(f"\n{hashlib.blake2b(raw, digest_size=16).hexdigest()} {name}".encode())  # first: a torn line ends there


def _remove_damaged(folder: Path) -> None:
    """Remove what does not have the hash that was noted of it, and say so."""
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
    """Remove hidden files and folders from the entries of `folder`, and bring the rest to the disk before it is moved: after a
    loss of power a rename may be there and the bytes not."""
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
