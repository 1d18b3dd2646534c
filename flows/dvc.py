"""The only caller of DVC: each command is a process, since DVC locks, prints and stops per process.

    stages      names in the order of dvc.yaml, which is topological (tests/test_dvc.py)
    changed     stages that would run
    sweep       results of stages that are no more
    reproduce   stages, one after the other: ran | cached | skipped
    settle      waits for stages that others have left
    outs        what dvc.lock has recorded: hashes of results
    contents    the files of results, by hash, from the cache or the remote
    verify      the files of the cache that do not have their hash
    push, pull  results to the remote and from it
    checkout    what dvc.lock has recorded, back in its place
    share       a second checkout with the cache of the first

`--single-item` leaves the order of stages to the caller; `--wait-for-lock` keeps a finished stage from being lost when
another command holds the lock at its end. DVC knows who else is at work by process ids in a file; what the dead left there
is removed before each command.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, cast

import yaml

Outcome = Literal["ran", "cached", "skipped"]

GRACE = 20.0  # seconds a stage has to leave after SIGTERM
PROGRESS_EVERY = 5.0  # seconds between two states of one progress bar in the log

_OUTCOMES: dict[Outcome, re.Pattern[str]] = {
    "skipped": re.compile(r"^(Stage )?'[^']+' didn't change, skipping"),
    "cached": re.compile(r"^Stage '[^']+' is cached - skipping run"),
}
_BEGUN = re.compile(r"^(?:Running stage|Stage) '([^']+)'")
_COMMAND = re.compile(r"^> ")  # DVC echoes the command; what follows is the stage's own
_STATUS = re.compile(r"ERROR: failed to reproduce '[^']+': failed to run: .*, exited with (-?\d+)$")
# DVC, but that dvc.lock is whole at any moment: DVC itself empties the file and writes it anew after each stage, and one that a
# kill leaves empty or cut stops every command after it.
_DVC = """\
import io, os, sys
from dvc.cli import main
from dvc.utils.serialize import _common, _yaml
def whole(path, data, dumper, fs=None, **options):
    stream, folder, name = io.StringIO(), *os.path.split(path)
    dumper(data, stream, **options)
    partial = os.path.join(folder, f".{name}.tmp")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(stream.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
assert _common._dump_data is _yaml._dump_data
_common._dump_data = _yaml._dump_data = whole
sys.exit(main(sys.argv[1:]))
"""
# DVC's own way to fetch a revision reads the remote from that revision's .dvc/config, where it may not have been yet, and takes
# a relative address for one below /. By hash, the configuration of today counts.
_FETCH = """\
import sys
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo
try:
    Repo().cloud.pull([HashInfo("md5", md5) for md5 in sys.argv[1:]])
except DvcException as error:
    sys.exit(str(error))
"""
_PULL = """\
import sys
from dvc.exceptions import DvcException
from dvc.repo import Repo
name, which = sys.argv[1:]
try:
    repo = Repo()
    stage, = repo.stage.collect(name)
    made = {out.def_path for other in repo.index.stages for out in other.outs}
    wanted = [str(item.def_path) for item in getattr(stage, which)]
    if which == "deps":  # a dependency that lies below or above the result of another stage is that result
        below = lambda a, b: a == b or a.startswith(b + "/") or b.startswith(a + "/")
        wanted = [out for out in sorted(made) if any(below(out, dep) for dep in wanted)]
    if wanted:
        repo.pull(wanted, force=True)
except DvcException as error:
    sys.exit(str(error))
"""
_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")
_PASSWORD = re.compile(r"(://[^/:@\s]*:)[^/@\s]+@")
_CHATTER = re.compile(
    r"^(To track the changes with git|\tgit add|To enable auto staging|\tdvc config core\.autostage|Use `dvc push`"
    r"|Updating lock file|Generating lock file|Data and pipelines are up to date|$)"
)


class DvcError(RuntimeError):
    """DVC itself refused; the message is its own."""


class StageFailed(RuntimeError):
    """A stage failed; the message carries its own last lines. `exit_status` is the stage's, 128 + n where signal n ended it."""

    def __init__(self, stage: str, exit_status: int, lines: Sequence[str]) -> None:
        super().__init__(stage, exit_status, lines)
        self.stage, self.exit_status, self.lines = stage, exit_status, tuple(lines)

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it, or a process of its own: somebody, or the kernel where memory ran out. It may go on."""
        return self.exit_status == 128 + signal.SIGKILL

    def __str__(self) -> str:
        return "\n".join([f"stage {self.stage} failed with exit status {self.exit_status}:", *self.lines])


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
    """`command` under flows/supervisor.py, with the descriptors `keep` open; leaving the block early, by any exception, stops
    it and waits for its end."""
    supervisor = [sys.executable, "-I", str(Path(__file__).with_name("supervisor.py")), str(grace)]
    process = subprocess.Popen(
        [*supervisor, *command], cwd=cwd, env=environment(), start_new_session=True,
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


def stages(project: Path) -> list[str]:
    """Names of all stages in the order of dvc.yaml. Raises DvcError."""
    return _ask(project, "stage", "list", "--name-only").split()


def cache(project: Path) -> Path:
    """The folder of the project's cache. Raises DvcError."""
    return (project / _ask(project, "cache", "dir").strip()).resolve()


def changed(project: Path, *stages: str, but: Collection[Path] = ()) -> list[str]:
    """The stages that would run, of those that are named if any is. What has changed at the paths `but`, which they read, does
    not count. Raises DvcError."""
    found: dict[str, list[Any]] = json.loads(_ask(project, "status", "--json", *stages))
    known = set(map(str, but))
    return [stage for stage, reasons in found.items() if any(_counts(reason, known) for reason in reasons)]


def _counts(reason: str | dict[str, dict[str, Any]], known: set[str]) -> bool:
    """Whether `reason`, as DVC gives it ("changed command", {"changed deps": {path: how}}), has more than paths of `known`."""
    return isinstance(reason, str) or any(what != "changed deps" or not at.keys() <= known for what, at in reason.items())


def share(project: Path, other: Path) -> None:
    """Give another checkout of a project its cache and local settings (remotes, credentials), and put the results of its
    dvc.lock in place, as far as the cache has them. Raises DvcError."""
    local = project / ".dvc" / "config.local"
    if local.is_file():
        shutil.copy2(local, other / ".dvc" / "config.local")
    _ask(other, "cache", "dir", "--local", str(cache(project)))
    checkout(other, "--force")


def checkout(project: Path, *options: str) -> None:
    """Put the results of dvc.lock in place, as far as the cache has them. Raises DvcError where results lie there that no
    cache has, which `--force` replaces."""
    _ask(project, "checkout", "--quiet", "--allow-missing", *options)


def outs(project: Path) -> dict[str, dict[str, str]]:
    """{stage: {path: md5}} of dvc.lock, where stages that dvc.yaml has no more may still stand. Raises DvcError."""
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
    """Remove the results of stages that dvc.yaml has no more (a family that was dropped), so that none that reads the folder
    above them takes them in; the cache keeps them. Returns their paths."""
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
    """Whether `path`, which stands in a file that others may have written, lies in the project and is none of its own files."""
    place, root = (project / path).resolve(), project.resolve()
    return root in place.parents and not place.relative_to(root).parts[0].startswith(".")


def contents(project: Path, hashes: Sequence[str], *, fetch: bool = True) -> dict[str, dict[str, Path]]:
    """{md5: {path inside the result: its file in the cache}}, each file checked against its hash.

    What the cache lacks is fetched from the default remote where `fetch`. Raises DvcError for what is not to be had or damaged.
    """
    store = cache(project) / "files" / "md5"
    refusal = ""
    for _ in range(2 if fetch else 0):  # the lists of folders, then the files in them
        if lacking := [own for md5 in hashes for own in _lacking(store, md5)]:
            try:
                _run(project, _FETCH, *lacking)
            except DvcError as error:
                refusal = f": {error}"
                break
    for md5 in hashes:
        if absent := _lacking(store, md5):
            places = f"neither in the cache {store} nor in the remote" if fetch else f"not in the cache {store}"
            raise DvcError(f"{', '.join(absent[:3])}{' and more' if absent[3:] else ''} of result {md5} is {places}{refusal}")
    return {md5: {path: _checked(store, own) for path, own in _members(store, md5).items()} for md5 in hashes}


def verify(project: Path) -> tuple[int, list[tuple[str, Path]]]:
    """(files of the cache that dvc.lock names, those that do not have their hash, as (path of the result, file)).

    DVC itself trusts a file of its cache as long as it is write-protected. Raises DvcError.
    """
    store, seen, damaged = cache(project) / "files" / "md5", set[str](), list[tuple[str, Path]]()
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


def push(project: Path, *stages: str) -> None:
    """Send the results of the working tree, or of `stages` alone, to the default remote. Raises DvcError."""
    _ask(project, "push", "--quiet", *stages)


def pull(project: Path, stage: str, *, own: bool = False) -> None:
    """Fetch what a stage reads of the results of others (`own`: its own results) and put it in place. Raises DvcError."""
    _run(project, _PULL, stage, "outs" if own else "deps")


def reproduce(
    project: Path,
    stages: Sequence[str],
    *,
    force: Collection[str] = (),
    log: Callable[[str], object] = print,
    keep: Sequence[int] = (),
) -> Generator[Outcome, None, None]:
    """Bring `stages` up to date in this order, those in `force` even if nothing changed; yields the outcome of each.

    `log` gets their output line by line, as it comes; a stage's outcome comes before the first line of the next. `keep` are
    descriptors that stay open until nothing of a stage is left. Raises StageFailed. Leaving early, by any exception within or
    by closing, stops the stage that runs before it passes on.
    """
    _forget_dead_processes(project, log)
    with open(_lock(project), "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        for forced, names in itertools.groupby(stages, lambda stage: stage in force):
            yield from _reproduce(project, list(names), ["--force"] if forced else [], log, [*keep, lock.fileno()])


def settle(project: Path, log: Callable[[str], object]) -> None:
    """Wait until no stage that `reproduce` has started is left in the project, whoever asked for it. One on a worker outlives
    the run that sent it, and would record the settings of what is checked out beneath it."""
    with open(_lock(project), "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for a stage in {project}, of a run that is no more")
            fcntl.flock(lock, fcntl.LOCK_EX)


def _lock(project: Path) -> Path:
    """A file whose lock is shared by all processes of the stages that run in the project."""
    file = project / ".tailforge" / "stages.lock"
    file.parent.mkdir(exist_ok=True)
    return file


def _reproduce(
    project: Path, stages: Sequence[str], options: Sequence[str], log: Callable[[str], object], keep: Sequence[int]
) -> Generator[Outcome, None, None]:
    """One DVC process for all `stages`: its own start takes longer than most of what it does for a stage."""
    command = [sys.executable, "-c", _DVC, "--wait-for-lock", "repro", "--single-item", *options, *stages]
    done = 0
    outcome: Outcome = "ran"
    own: deque[str] | None = None
    last: deque[str] = deque(maxlen=20)
    status = 1
    with supervised(command, cwd=project, output=subprocess.PIPE, grace=GRACE, keep=keep) as process:
        assert process.stdout is not None
        for line in _lines(process.stdout):
            if (begun := _BEGUN.match(line)) and begun[1] in stages[done + 1 :]:
                while stages[done] != begun[1]:
                    yield outcome
                    done += 1
                outcome, own, last = "ran", None, deque(maxlen=20)
            outcome = next((name for name, pattern in _OUTCOMES.items() if pattern.match(line)), outcome)
            if failed := _STATUS.search(line):
                line = line[: failed.start()]  # of a progress bar that the stage's end has cut off
                status = int(failed[1])
                status = 128 - status if status < 0 else status  # -9 of a process that a signal ended is 137 to a shell
            if _COMMAND.match(line) and own is None:
                own = deque(maxlen=20)
            elif not _CHATTER.match(line):
                (last if own is None else own).append(line)
                log(line)
    if process.returncode:
        raise StageFailed(stages[done], status, own or last)
    yield from [outcome] * (len(stages) - done)


def _forget_dead_processes(project: Path, log: Callable[[str], object]) -> None:
    """Remove from DVC's list of who reads and writes what (.dvc/tmp/rwlock) whoever is no DVC process.

    DVC forgets ids that nobody has. A list that a kill left torn, or an id that another program has now, would stop it until
    someone removes the file by hand. It changes the list under the same lock as DVC. Linux: elsewhere the list is left alone.
    """
    file = project / ".dvc" / "tmp" / "rwlock"
    if sys.platform != "linux" or not file.is_file():
        return
    with open(file.with_name("rwlock.lock"), "a", encoding="utf-8") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        try:
            listed = json.loads(file.read_text(encoding="utf-8"))
            processes = [*listed.get("write", {}).values(), *itertools.chain(*listed.get("read", {}).values())]
            gone = [process["pid"] for process in processes if process and not _is_dvc(process["pid"])]
        except (ValueError, AttributeError, KeyError, TypeError):
            file.unlink()
            log("removed DVC's list of running processes: a killed process left it torn")
            return
        if gone:
            alive = {
                "write": {path: own for path, own in listed.get("write", {}).items() if own.get("pid") not in gone},
                "read": {path: [o for o in own if o["pid"] not in gone] for path, own in listed.get("read", {}).items()},
            }
            file.write_text(json.dumps({mode: {path: own for path, own in at.items() if own} for mode, at in alive.items()}))
            log(f"removed from DVC's list of running processes: {', '.join(map(str, sorted(set(gone))))}, no DVC any more")


def _is_dvc(pid: int) -> bool:
    try:
        return b"dvc" in Path(f"/proc/{int(pid)}/cmdline").read_bytes()
    except OSError:
        return False


def _ask(project: Path, *arguments: str) -> str:
    return _run(project, _DVC, *arguments)


def _run(project: Path, code: str, *arguments: str) -> str:
    _forget_dead_processes(project, lambda line: print(line, file=sys.stderr))
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=project, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr if "Traceback" not in done.stderr else done.stderr.strip().rpartition("\n")[2]
        said = _PASSWORD.sub(r"\1***@", said)  # of a remote's address
        if "dvc.lock'" in said:  # torn: by a bare `dvc repro` that was killed, or a hand
            said += "; `git checkout dvc.lock` brings it back"
        raise DvcError(" ".join(said.split()).removeprefix("ERROR: ") or f"dvc {' '.join(arguments[:2])} failed")
    return done.stdout


def _object(store: Path, md5: str) -> Path:
    return store / md5[:2] / md5[2:]


def _lacking(store: Path, md5: str) -> list[str]:
    """Hashes of what the cache lacks of a result."""
    if not _object(store, md5).is_file():
        return [md5]
    return [own for own in _members(store, md5).values() if not _object(store, own).is_file()]


def _members(store: Path, md5: str) -> dict[str, str]:
    """{path: md5} of the files of a folder, which is the JSON text of such a list; of a file, itself."""
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


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines as they come. A state of a progress bar (ended by a carriage return) is a line every PROGRESS_EVERY seconds."""
    shown = 0.0
    with io.TextIOWrapper(cast(io.BufferedReader, stream), encoding="utf-8", errors="replace", newline="") as text:
        for raw in text:
            line = raw.rstrip("\r\n")
            if raw.endswith("\n"):
                yield line
            elif line and time.monotonic() - shown >= PROGRESS_EVERY:
                shown = time.monotonic()
                yield line
