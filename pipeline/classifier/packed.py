"""Many training runs, packed: worker processes of one thread each, one run at a time in each of them.

A small network cannot use several threads, so k runs side by side finish sooner than k runs one after the other on all
threads (docs/evaluation.md has the measurement). A run is a function of (arm, seed, material) and every worker has one
thread, so results do not depend on the number of workers. On an accelerator the runs go one after the other in this process.

A finished run is a file, written whole or not at all, with its validation score in its card: a stage that was killed goes on
with the runs whose files are missing. Workers outlive nobody: the parent kills them on its way out, and one whose parent was
killed sees the closed sentinel and ends.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import cast

import numpy as np
import torch
from tqdm import tqdm

from pipeline import training, weights
from pipeline.arms import Arm, Material
from pipeline.classifier import train
from pipeline.config import Classifier
from pipeline.errors import TailforgeError
from pipeline.seeds import derive

REPORT_SECONDS = 0.5  # between a worker's words on its progress


@dataclass(frozen=True)
class Run:
    """One arm with its `number`-th seed, and the file of its weights."""

    arm: Arm
    number: int
    file: Path

    @property
    def score(self) -> float:
        """Balanced accuracy on validation rows, from the file's card. Raises DataError where the run is not finished."""
        return float(weights.load(self.file)[1]["validation"])


@dataclass(frozen=True)
class Campaign:
    """What all runs share. `val_images` uint8 (n, c, h, w) and `val_targets` (n,) give scores, and nothing else."""

    material: Material
    config: Classifier
    flips: str
    seed: int
    val_images: np.ndarray
    val_targets: np.ndarray

    def execute(self, run: Run, progress: Callable[[int], None]) -> None:
        """Train, score and write one run."""
        seed = derive(self.seed, "classifier", run.number)
        plan = run.arm.build(self.material, seed)
        checkpoints = run.file.parent / f".{run.file.stem}"
        network = train.fit(plan, self.config, seed, flips=self.flips, folder=checkpoints, progress=progress)
        probabilities = train.predict(network, torch.from_numpy(self.val_images))
        score = train.balanced_accuracy(probabilities, self.val_targets)
        _, *shape = self.material.images.shape
        train.save(
            network, run.file, self.config, (shape[0], shape[1], shape[2]), self.material.n_classes,
            arm=run.arm.name, dose=run.arm.dose, labels=run.arm.labels, number=run.number, validation=score,
        )  # fmt: skip
        shutil.rmtree(checkpoints, ignore_errors=True)


def train_all(campaign: Campaign, runs: Sequence[Run], workers: int | None = None) -> None:
    """Execute the runs whose files are missing. `workers`: None for one per core that this process may use.

    Raises what a run raised.
    """
    todo = [run for run in runs if not run.file.exists()]
    if not todo:
        return
    for folder in {run.file.parent for run in todo}:
        for torn in folder.glob(".*.tmp"):
            torn.unlink()
    bar = tqdm(
        total=len(todo) * campaign.config.steps * campaign.config.batch_images, desc=f"train {len(todo)} classifiers",
        unit=" images", unit_scale=True, mininterval=0.5 if sys.stderr.isatty() else 10.0, dynamic_ncols=True,
    )  # fmt: skip

    def count(images: int) -> None:
        bar.update(images)

    with bar:
        if training.device().type == "cpu":
            _pack(campaign, todo, workers or len(os.sched_getaffinity(0)), count)
        else:
            for run in todo:
                campaign.execute(run, count)


def _pack(campaign: Campaign, runs: Sequence[Run], workers: int, progress: Callable[[int], None]) -> None:
    # The fork server imports torch once, and what the first optimiser step imports, and starts no thread: its children are
    # safe, and start at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.classifier.packed", "torch._dynamo"])
    pipes: dict[Connection, ForkServerProcess] = {}
    waiting, unfinished = list(reversed(runs)), len(runs)
    with _termination_as_exit():
        try:
            for _ in range(min(workers, len(runs))):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(campaign, theirs), daemon=True)
                process.start()
                theirs.close()
                pipes[ours] = process
                ours.send(waiting.pop())
            while unfinished:
                for pipe in cast(list[Connection], wait(list(pipes))):
                    try:
                        word = pipe.recv()
                    except EOFError:
                        pipes[pipe].join()
                        raise RuntimeError(f"a training worker ended with status {pipes[pipe].exitcode}") from None
                    if isinstance(word, TailforgeError):
                        raise word
                    if isinstance(word, int):
                        progress(word)
                        continue
                    unfinished -= 1
                    if waiting:
                        pipe.send(waiting.pop())
        finally:
            for process in pipes.values():
                process.kill()
            for process in pipes.values():
                process.join()


def _work(campaign: Campaign, pipe: Connection) -> None:
    """The life of a worker: runs come in, counts of images and the finished run go out."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches the terminal's whole group: out of it, since the parent decides, and kills.
    os.setpgid(0, 0)
    # tqdm's own lock between processes would leave a semaphore behind when the worker is killed.
    tqdm.set_lock(threading.RLock())
    torch.set_num_threads(1)
    while True:
        run: Run = pipe.recv()
        count = _Counter(pipe)
        try:
            campaign.execute(run, count)
        except TailforgeError as error:
            pipe.send(error)
            return
        count.flush()
        pipe.send(run)


class _Counter:
    """Tells the parent how many images were used, not more often than REPORT_SECONDS."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.images, self.told = pipe, 0, time.monotonic()

    def __call__(self, images: int) -> None:
        self.images += images
        if time.monotonic() - self.told > REPORT_SECONDS:
            self.flush()

    def flush(self) -> None:
        self.pipe.send(self.images)
        self.images, self.told = 0, time.monotonic()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    """SIGTERM as SystemExit(143), so that the workers are killed on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
