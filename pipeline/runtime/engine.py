"""Where independent pieces of work are done: in this process, in processes of this machine, or on a cluster of Ray.

    spread(job, pieces):   job(p, count) for each p in `pieces`, begun in their order

A piece (a shard of a pool, a run of a classifier) leaves its file, whole or not at all, and the contents are a function of
the job and the piece alone. So no engine, number of workers, order of work or death of a worker changes a result. A killed
stage resumes with the pieces whose files are missing. Workers get the job once and then piece after piece, as plain data and
paths. Heavy objects (a model) they load themselves and keep.

Workers do not outlive the stage: it kills them as it exits, and a worker whose stage was killed ends by itself. A worker that
dies ends the stage, with its status: what killed it may well kill the next.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import secrets
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, TypeVar, cast

from pipeline.config import Engine
from pipeline.core import work
from pipeline.errors import ConfigError, DataError, TailforgeError, WorkerLost

P = TypeVar("P")
Count = Callable[[int], None]  # called with the number of images that were finished since the last call
Job = Callable[[P, Count], None]

REPORT_SECONDS = 0.5  # between progress reports of a worker
ANSWER_SECONDS = 10.0  # for a cluster to answer


def spread(job: Job[P], pieces: Sequence[P], engine: Engine, *, usual: int, threads: int, count: Count) -> None:
    """Do every piece. `usual` is the number of local workers if engine.workers is 0; one local worker is this process itself.

    `threads` is the number of processor threads of each worker; 0 shares all threads evenly. `count` is called as images are
    finished.

    Raises the TailforgeError of a job, WorkerLost if a worker ended in another way, and ConfigError or DataError if the
    cluster cannot be reached or cannot do this work.
    """
    if not pieces:
        return
    if engine.kind == "ray":
        _on_ray(job, pieces, engine, threads or 1, count)
    elif (workers := engine.workers or usual) == 1:
        from pipeline.runtime.training import threads as computing

        with computing(threads):
            for piece in pieces:
                job(piece, count)
    else:
        import torch

        share = threads or max(1, torch.get_num_threads() // workers)
        _in_processes(job, pieces, min(workers, len(pieces)), share, count)


def _in_processes(job: Job[P], pieces: Sequence[P], workers: int, threads: int, count: Count) -> None:
    # The fork server imports torch, and what the first optimiser step imports, once. It starts no thread, so its children are
    # safe and start at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([job.__module__, "torch._dynamo"])
    process: BaseProcess
    waiting, processes, busy = deque(pieces), dict[Connection, BaseProcess](), set[Connection]()
    with termination_as_exit():
        try:
            for number in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(job, theirs, threads, _accelerator(number)), daemon=True)
                process.start()
                theirs.close()
                processes[ours] = process
                with _alive(process):
                    ours.send(waiting.popleft())
                busy.add(ours)
            while busy:
                for pipe in cast(list[Connection], wait(list(busy))):
                    with _alive(processes[pipe]):
                        word = pipe.recv()
                        if word is None and waiting:
                            pipe.send(waiting.popleft())
                        elif word is None:
                            busy.remove(pipe)
                    if isinstance(word, TailforgeError):
                        raise word
                    if isinstance(word, int):
                        count(word)
        finally:
            for process in processes.values():
                process.kill()
            for process in processes.values():
                process.join()


@contextmanager
def _alive(process: BaseProcess) -> Iterator[None]:
    """Turn the end of the process during communication into WorkerLost."""
    try:
        yield
    except (EOFError, OSError):
        process.join()
        raise _lost(f"a worker ended with status {process.exitcode}", process.exitcode) from None


def _lost(what: str, status: int | None = None) -> WorkerLost:
    return WorkerLost(
        what,
        status=status,
        expected="workers that live until all work is done",
        remedy="its output is above; if it was killed, memory may have run out: lower engine.workers in params.yaml; "
        "run again, finished work is kept",
    )


def _accelerator(number: int) -> str | None:
    """CUDA_VISIBLE_DEVICES of worker `number`: workers take the devices in turn; None if there are no devices."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named is not None else [str(i) for i in range(torch.cuda.device_count())]
    return devices[number % len(devices)] if torch.cuda.device_count() else None


def _work(job: Job[Any], pipe: Connection, threads: int, device: str | None) -> None:
    """The loop of a worker: it receives pieces and sends counts of images, and None for each finished piece."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches the terminal's whole group. The worker leaves it: the parent decides, and kills.
    os.setpgid(0, 0)
    # tqdm's own lock between processes would leak a semaphore when the worker is killed.
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())
    if device is not None:  # read when CUDA is first used, later
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    import torch

    torch.set_num_threads(threads)
    while True:
        piece = pipe.recv()
        told = _Told(pipe)
        try:
            job(piece, told)
        except TailforgeError as error:
            pipe.send(error)
            return
        told.flush()
        pipe.send(None)


class _Told:
    """Reports finished images to the parent, at most once in REPORT_SECONDS."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.images, self.at = pipe, 0, time.monotonic()

    def __call__(self, images: int) -> None:
        self.images += images
        if time.monotonic() - self.at > REPORT_SECONDS:
            self.flush()

    def flush(self) -> None:
        self.pipe.send(self.images)
        self.images, self.at = 0, time.monotonic()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def termination_as_exit() -> Iterator[None]:
    """Turn SIGTERM into SystemExit(143), so that workers are ended on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    told: list[int] = []

    def leave(number: int, _frame: FrameType | None) -> None:
        told.append(number)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except SystemExit as left:
        raise SystemExit(128 + told[0] if told else left.code) from None  # while it waits, Ray replaces the status by 1
    finally:
        signal.signal(signal.SIGTERM, before)


class _Hand:
    """A worker on a cluster: an actor that keeps the job and what the job has loaded."""

    def __init__(self, job: Job[Any], threads: int) -> None:
        self.job, self.threads = job, threads

    def begin(self, folder: str, code: str) -> TailforgeError | None:
        """Get ready in the project's `folder`, or return the reason why that fails."""
        import torch

        if not Path(folder).is_dir():
            return DataError(
                f"engine.kind=ray: {folder} does not exist on {socket.gethostname()}",
                expected="the project's folder under the same path on every machine",
                remedy="share it, for example by NFS",
            )
        if work.code_key() != code:
            return ConfigError(
                f"engine.kind=ray: {socket.gethostname()} and this machine have different code",
                expected="the same version of tailforge on every machine",
                remedy="install it there and restart its Ray node",
            )
        os.chdir(folder)
        torch.set_num_threads(self.threads)
        return None

    def do(self, piece: object) -> int | TailforgeError:
        """Do the piece. Returns the number of its images, or the error."""
        images = 0

        def told(more: int) -> None:
            nonlocal images
            images += more

        try:
            self.job(piece, told)
        except TailforgeError as error:
            return error
        return images


def _on_ray(job: Job[P], pieces: Sequence[P], engine: Engine, threads: int, count: Count) -> None:
    ray = _connected(engine)
    have = ray.cluster_resources()
    unit = "GPU" if have.get("GPU") else "CPU"
    most = int(have.get(unit, 0))
    if most == 0:
        raise ConfigError(
            f"engine.address={engine.address!r}: a cluster without a processor or GPU",
            expected="room for a worker",
            remedy="add a node to it, or set engine.kind=local",
        )
    workers = min(engine.workers or most, most, len(pieces))
    # An actor keeps what it loads. On an accelerator Ray's tasks would get a fresh process for each piece.
    needs = {"num_gpus": 1} if unit == "GPU" else {"num_cpus": 1}
    hands = []
    with termination_as_exit():
        try:
            shared = ray.put(job)
            hands = [ray.remote(_Hand).options(**needs).remote(shared, threads) for _ in range(workers)]
            folder, code = str(Path.cwd()), work.code_key()
            asked = {hand.begin.remote(folder, code): hand for hand in hands}
            waiting, done = deque(pieces), 0
            while done < len(pieces):
                [answer], _ = ray.wait(list(asked))
                hand = asked.pop(answer)
                try:
                    word = ray.get(answer)
                except ray.exceptions.RayActorError as error:
                    raise _lost(f"a worker of Ray ended: {error}") from None
                if isinstance(word, TailforgeError):
                    raise word
                if word is not None:
                    count(word)
                    done += 1
                if waiting:
                    asked[hand.do.remote(waiting.popleft())] = hand
        finally:
            for hand in hands:
                ray.kill(hand)


def _connected(engine: Engine) -> ModuleType:
    """Ray, connected for the life of this process. Raises ConfigError."""
    own: dict[str, Any] = {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads these when it is imported
    if engine.address == "local":  # a cluster of this process: closed to others on the machine, and no file in the home
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        own = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "num_cpus": engine.workers or None}
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "engine.kind=ray", expected="the package ray", remedy="install tailforge[ray], or set engine.kind=local"
        ) from None
    if ray.is_initialized():
        return ray
    try:
        host, _, port = engine.address.rpartition(":")
        if host:  # Ray would try for minutes and then end this process
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        # Ray puts the working folder of this moment first on its workers' sys.path: no module there may shadow ours.
        with contextlib.chdir(Path(__file__).parents[2]):
            ray.init(engine.address, logging_level=logging.WARNING, **own)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"engine.address={engine.address!r}: {str(error).partition(chr(10))[0]}",
            expected="the address of a Ray cluster, auto for one on this machine, or local",
            remedy="start one (`ray start --head`), or set engine.address=local",
        ) from None
    return ray
