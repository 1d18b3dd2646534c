"""Classifiers of ten arms and five seeds: packed, and one after the other."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.speed.generator import LONG_TAIL
from benchmarks.speed.scaling import CLASSES, digits
from pipeline import config
from pipeline.arms import Arm, TrainingData, recipes
from pipeline.classifier.packed import Campaign, Run, train_all
from pipeline.metrics.registry import named

ARMS, SEEDS = 10, 5
STEPS_28 = 200  # that `tailforge init` writes for images above 16 pixels
# Form of the images, steps (0: as in params.yaml), runs made packed and one after the other.
CASES = (("digits, 8 x 8", 8, 0, 20, 5), ("digits, 28 x 28", 28, STEPS_28, 4, 2))


def campaign(size: int, steps: int) -> Campaign:
    """Long-tailed digits at size x size, trained as params.yaml says."""
    params = config.read()
    pixels, names = digits()
    targets = np.array([int(name) for name in names])
    if size != pixels.shape[-1]:
        pixels = F.interpolate(torch.from_numpy(pixels).float(), size, mode="bilinear").round().byte().numpy()
    order = [np.flatnonzero(targets == c) for c in range(len(CLASSES))]
    rows = np.concatenate([own[:n] for own, n in zip(order, LONG_TAIL, strict=True)])
    val = np.concatenate([own[-20:] for own in order])
    none = np.zeros(0, np.int64)
    material = TrainingData(
        len(CLASSES), pixels[rows], targets[rows], np.zeros((0, *pixels.shape[1:]), np.uint8), none, none.astype(bool), none,
        np.zeros(1, np.int64),
    )  # fmt: skip
    settings = params.in_mode("scratch").model_copy(update={"steps": steps} if steps else {})
    return Campaign(material, settings, "none", 0, pixels[val], targets[val], params.engine, named(params.evaluate.metric))


def runs(shared: Campaign, n: int, folder: Path) -> list[Run]:
    """`n` of the fifty runs, the arms in turn."""
    arms = [Arm(name, recipe) for name, recipe in list(recipes(shared.config).items())[:ARMS]]
    every = [Run(arm, seed, folder / arm.name / f"{seed}.safetensors") for seed in range(SEEDS) for arm in arms]
    return every[:n]


def fifty(seconds: float, made: int) -> float:
    """Seconds of ARMS x SEEDS runs in proportion to those of `made`."""
    return seconds / made * ARMS * SEEDS


def measure() -> Iterator[tuple[str, float, str]]:
    """Figures of this part."""
    workers = len(os.sched_getaffinity(0))
    for what, size, steps, packed, single in CASES:
        shared, times = campaign(size, steps), {}
        for name, n in (("packed", packed), ("one after the other", single)):
            with tempfile.TemporaryDirectory() as folder:
                todo = runs(shared, n, Path(folder))
                for run in todo:
                    run.file.parent.mkdir(parents=True, exist_ok=True)
                began = time.perf_counter()
                if name == "packed":
                    train_all(shared, todo)
                else:
                    for run in todo:
                        shared.execute(run, lambda _: None)
                times[name] = fifty(time.perf_counter() - began, n)
            yield f"classifiers|{what}, {name}|fifty runs", times[name], "s"
            yield f"classifiers|{what}, {name}|runs", n, ""
        yield f"packing_ratio, {what}", times["one after the other"] / times["packed"], ""
    yield "workers", workers, ""
