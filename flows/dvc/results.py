"""What dvc.lock has recorded, and the files of DVC's cache that hold it.

A result is named by an md5 hash. CACHE/files/md5/ab/cdef... is the file whose hash is abcdef...; a folder is such a file
too, the JSON list of its paths and their hashes, and its name ends in `.dir`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from flows.dvc import commands
from flows.dvc.commands import DvcError

_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")


def outs(project: Path) -> dict[str, dict[str, str]]:
    """{stage: {path: md5}} of dvc.lock. Stages that dvc.yaml no longer has may still stand there. Raises DvcError."""
    lock = project / "dvc.lock"
    try:
        recorded = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {}) if lock.is_file() else {}
        found = {name: {out["path"]: out["md5"] for out in entry.get("outs", [])} for name, entry in recorded.items()}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise DvcError(
            f"{lock} is torn ({' '.join(str(error).split())[:80]}): `git checkout dvc.lock` brings it back"
        ) from None
    if strange := [md5 for paths in found.values() for md5 in paths.values() if not _HASH.fullmatch(str(md5))]:
        raise DvcError(f"{lock} is torn ({strange[0]!r} is no hash): `git checkout dvc.lock` brings it back")
    return found


def sweep(project: Path, stages: Sequence[str]) -> list[str]:
    """Remove the results of stages that are not among `stages`, as of a family that was dropped; returns their paths.

    A stage that reads the folder above would take them in. The cache keeps them. Raises DvcError.
    """
    recorded = outs(project)
    kept = {path for name in stages for path in recorded.get(name, [])}
    gone = [path for name, paths in recorded.items() if name not in stages for path in paths if path not in kept]
    found = [path for path in gone if (project / path).exists() and _is_result(project, path)]
    for path in found:
        if (project / path).is_dir():
            shutil.rmtree(project / path)
        else:
            (project / path).unlink()
    return found


def _is_result(project: Path, path: str) -> bool:
    """Whether `path` lies in the project and is none of its own files. Others may have written the file that names it."""
    place, root = (project / path).resolve(), project.resolve()
    return root in place.parents and not place.relative_to(root).parts[0].startswith(".")


def contents(project: Path, hashes: Sequence[str], *, fetch: bool = True) -> dict[str, dict[str, Path]]:
    """{md5: {path inside the result: its file in the cache}}, each file checked against its hash.

    With `fetch` the default remote gives what the cache lacks. Raises DvcError for what neither has, and for damaged files.
    """
    store = _store(project)
    refusal = ""
    for _ in range(2 if fetch else 0):  # the lists of folders, then the files in them
        if lacking := [own for md5 in hashes for own in _lacking(store, md5)]:
            try:
                commands.run(project, "fetch", *lacking)
            except DvcError as error:
                refusal = f": {error}"
                break
    for md5 in hashes:
        if absent := _lacking(store, md5):
            places = f"neither in the cache {store} nor in the remote" if fetch else f"not in the cache {store}"
            raise DvcError(f"{', '.join(absent[:3])}{' and more' if absent[3:] else ''} of result {md5} is {places}{refusal}")
    return {md5: {path: _checked(store, own) for path, own in _members(store, md5).items()} for md5 in hashes}


def verify(project: Path) -> tuple[int, list[tuple[str, Path]]]:
    """(number of files in the cache that dvc.lock names, those that do not have their hash as (path of the result, file)).

    DVC itself trusts a file of its cache as long as it is write-protected. Raises DvcError.
    """
    store, seen, damaged = _store(project), set[str](), list[tuple[str, Path]]()
    waiting = [(path, md5) for paths in outs(project).values() for path, md5 in paths.items()]
    while waiting:
        path, md5 = waiting.pop()
        if md5 in seen or not _object(store, md5).is_file():
            continue
        seen.add(md5)
        if not _intact(store, md5):
            damaged.append((path, _object(store, md5)))
        elif md5.endswith(".dir"):
            waiting += [(f"{path}/{name}", own) for name, own in _members(store, md5).items()]
    return len(seen), sorted(damaged)


def _store(project: Path) -> Path:
    return commands.cache(project) / "files" / "md5"


def _object(store: Path, md5: str) -> Path:
    return store / md5[:2] / md5[2:]


def _lacking(store: Path, md5: str) -> list[str]:
    """The hashes of a result's files that the cache lacks."""
    if not _object(store, md5).is_file():
        return [md5]
    return [own for own in _members(store, md5).values() if not _object(store, own).is_file()]


def _members(store: Path, md5: str) -> dict[str, str]:
    """{path: md5} of the files of a folder; of a file {"": its own md5}."""
    if not md5.endswith(".dir"):
        return {"": md5}
    try:
        listed = json.loads(_checked(store, md5).read_bytes())
        members = {str(entry["relpath"]): str(entry["md5"]) for entry in listed}
    except (ValueError, TypeError, KeyError, RecursionError):
        members = {"": ""}
    if not all(map(_HASH.fullmatch, members.values())):
        raise DvcError(f"{_object(store, md5)} is no list of files with their hashes: remove it, it is fetched or made again")
    return members


def _checked(store: Path, md5: str) -> Path:
    file = _object(store, md5)
    if not _intact(store, md5):
        raise DvcError(f"{file} does not have the hash {md5}: it was damaged; remove it, it is fetched or made again")
    return file


def _intact(store: Path, md5: str) -> bool:
    with open(_object(store, md5), "rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest() == md5.removesuffix(".dir")
