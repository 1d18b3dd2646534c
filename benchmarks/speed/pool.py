"""What an image of a pool costs beside the network that makes it, and what the network computes; two forms of image.

    processor seconds    of one thread; other work on the machine counts less than on a clock, waits for a disk do not count
    an image, marginal   (s(n) - s(m)) / (n - m) for n > m images: what does not grow with a pool is left out

28 x 28 are the digits, enlarged; 256 x 256 are cut from the two photographs that come with scikit-learn. Networks are counted
on torch's device `meta`: operations and FLOP without any computing, so this says nothing of how fast they are.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed.generator import flop
from benchmarks.speed.scaling import CLASSES, digits, import_module_quietly
from pipeline import config
from pipeline.classifier import networks
from pipeline.core import images, work
from pipeline.core.manifest import Manifest
from pipeline.core.seeds import numpy_rng
from pipeline.encoders import small
from pipeline.encoders.base import LEVELS
from pipeline.encoders.judges import Judges
from pipeline.encoders.pixels import Pixels
from pipeline.encoders.small import Small
from pipeline.evaluation.intervals import resample
from pipeline.evaluation.score import score
from pipeline.generators.sampling import Plan, write_pool
from pipeline.generators.shared.augmentation import CONDITIONS
from pipeline.generators.shared.networks.unet import UNet
from pipeline.metrics.predictions import Predictions
from pipeline.metrics.standard import BalancedAccuracy
from pipeline.runtime import training
from pipeline.runtime.training import Learner, Optimisation
from pipeline.validation import gate
from pipeline.validation.checks import Checks, Measured

REPEATS = 4
TRAIN_ROWS, VAL_ROWS = 500, 100
TEST_ROWS = (500, 2000)
WHOLE = (2_000, 30_000)  # rows that the gate handles together
FILES, MEGABYTES = 2000, 200  # that DVC is handed

Figure = tuple[str, float, str]


@dataclass(frozen=True)
class Form:
    """A form of image, the U-Net for it, and sizes of pools, small and large, that take seconds."""

    name: str
    shape: tuple[int, int, int]
    unet: dict[str, int]
    sizes: tuple[int, int]


FORMS = (
    Form("28 x 28", (1, 28, 28), {"width": 64, "depth": 1, "patch": 2}, (500, 2500)),
    Form("256 x 256", (3, 256, 256), {"width": 128, "depth": 2, "patch": 2}, (50, 250)),
)


class Calls(TorchDispatchMode):
    """How many operations are called that compute: on a GPU each launches a kernel or more."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


class Made:
    """Stands for a model: images that are there already, in the order of their seeds."""

    def __init__(self, pixels: Tensor) -> None:
        self.made = images.to_float(pixels)

    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """float32 (n, c, h, w)."""
        return self.made[seeds]


def pixels(form: Form, n: int) -> Tensor:
    """`n` different images of `form`, uint8 (n, c, h, w), with a little noise."""
    rng, (channels, size, _) = np.random.default_rng(0), form.shape
    if channels == 1:
        small = torch.from_numpy(digits()[0]).float()
        base = F.interpolate(small, size, mode="bilinear")[torch.arange(n) % len(small)].numpy()
    else:
        from sklearn.datasets import load_sample_images

        photos = [photo.transpose(2, 0, 1) for photo in load_sample_images().images]
        corners = [
            (rng.integers(p.shape[1] - size), rng.integers(p.shape[2] - size)) for p in (photos[i % 2] for i in range(n))
        ]
        base = np.stack([photos[i % 2][:, y : y + size, x : x + size] for i, (y, x) in enumerate(corners)])
    noise = rng.integers(-1, 2, size=base.shape)
    return torch.from_numpy(np.clip(base.round() + noise, 0, 255).astype(np.uint8))


def labels(n: int) -> list[int]:
    """Classes in turn."""
    return [i % len(CLASSES) for i in range(n)]


def real(form: Form, split: str, n: int) -> Manifest:
    """`n` real rows."""
    these = pixels(form, n)
    names = [f"{split}-{i}" for i in range(n)]
    return Manifest.from_columns(
        sample_id=names, image=images.encode_all(these), label=[CLASSES[c] for c in labels(n)], split=[split] * n, group=names,
        origin=["real"] * n, generator=[None] * n, seed=[None] * n, sources=[[]] * n,
        pixel_hash=[images.pixel_hash(image) for image in these],
    )  # fmt: skip


def processor_seconds(do: Callable[[], object], children: bool = False) -> float:
    """Of all threads of this process, or of the processes that `do` starts; the least of several goes."""

    def now() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    taken = []
    for _ in range(REPEATS):
        began = now()
        do()
        taken.append(now() - began)
    return min(taken)


def marginal(seconds: dict[int, float]) -> float:
    """Seconds that one more takes, from those of two numbers of them."""
    (m, few), (n, many) = sorted(seconds.items())
    return (many - few) / (n - m)


def jury(form: Form, folder: Path) -> tuple[Manifest, Judges]:
    """Real train rows and judges that were fitted on them, in few steps."""
    train = real(form, "train", TRAIN_ROWS)
    settings = config.read().judges.model_copy(update={"steps": 30})
    return train, Judges.fit(train, CLASSES, settings=settings, flips="none", seed=0, folder=folder)


def plan(n: int) -> Plan:
    """Rows to sample, seed i for row i; sources are all train rows of the class, as in a run."""
    own = [[f"train-{i}" for i, c in enumerate(labels(TRAIN_ROWS)) if c == k] for k in range(len(CLASSES))]
    of = labels(n)
    return Plan([f"made-{i:08d}" for i in range(n)], of, list(range(n)), [own[c] for c in of])


def by_shard(form: Form, train: Manifest, judges: Judges, folder: Path) -> Iterator[Figure]:
    """Encoding, writing, reading and looking at images: what can be done shard by shard."""
    params = config.read()
    checks = Checks(train, judges, Pixels(form.shape, LEVELS), CLASSES, settings=params.validate_, seed=0)
    found: dict[str, dict[int, float]] = {
        name: {} for name in ("encode PNG", "write shards", "decode PNG", "look", "look without networks")
    }
    for n in form.sizes:
        these, pool = pixels(form, n), folder / f"pool-{n}"
        pool.mkdir()

        def write(n: int = n, these: Tensor = these, pool: Path = pool) -> None:
            for old in pool.iterdir():
                old.unlink()
            write_pool(
                lambda: Made(these), "flow_matching", plan(n), CLASSES, pool, shard_images=params.sample.shard_images,
                where=params.engine,
            )  # type: ignore[arg-type, return-value]  # fmt: skip

        encoded = images.encode_all(these)
        found["encode PNG"][n] = processor_seconds(lambda these=these: images.encode_all(these))
        found["write shards"][n] = processor_seconds(write)
        found["decode PNG"][n] = processor_seconds(lambda encoded=encoded: images.decode_all(encoded))
        found["look"][n] = processor_seconds(lambda pool=pool: gate._measure(pool, checks, CLASSES, train))
        known = judges.judges[0].encoder.features(these[: Small.batch].numpy())
        with mock.patch.object(Small, "_encode", lambda _, part, known=known: known[: len(part)]):
            found["look without networks"][n] = processor_seconds(lambda pool=pool: gate._measure(pool, checks, CLASSES, train))
    for name, seconds in found.items():
        yield f"{form.name}|{name}|processor time an image", 1e6 * marginal(seconds), "µs"
    yield f"{form.name}|PNG|size an image", sum(map(len, encoded)) / n, "bytes"
    yield f"{form.name}|shard|size an image", sum(file.stat().st_size for file in pool.glob("*.parquet")) / n, "bytes"


def whole(form: Form, train: Manifest, judges: Judges, folder: Path) -> Iterator[Figure]:
    """What the gate does with the rows of all shards together: expectations, duplicates, checks, fidelity."""
    params, val = config.read(), real(form, "val", VAL_ROWS)
    checks, few = (
        Checks(train, judges, Pixels(form.shape, LEVELS), CLASSES, settings=params.validate_, seed=0),
        pixels(form, 100),
    )
    seen, rng, seconds = checks.measure(few, np.array(labels(100))), np.random.default_rng(0), {}
    for n in WHOLE:
        pool, out, of = folder / f"rows-{n}", folder / f"out-{n}", plan(n)
        for path in (pool, out):
            path.mkdir()
        rows = Manifest.from_columns(
            sample_id=of.ids, image=[b""] * n, label=[CLASSES[c] for c in of.labels], split=["train"] * n, group=of.ids,
            origin=["synthetic"] * n, generator=["flow_matching"] * n, seed=of.seeds, sources=of.sources,
            pixel_hash=[f"{i:032x}" for i in range(n)],
        )  # fmt: skip
        pq.write_table(rows.table, pool / "part-00000.parquet", compression="zstd")
        thumbs = rng.standard_normal((n, seen.directions.shape[1])).astype(np.float32)
        thumbs = (thumbs / np.linalg.norm(thumbs, axis=1, keepdims=True)).astype(np.float16)
        again = np.arange(n) % len(few)
        values = {name: value[again] for name, value in seen.values.items()}
        looked = Measured(values, seen.nearest[again], thumbs, seen.embeddings[again]), np.ones(n, dtype=bool)
        with mock.patch.object(gate, "_measure", return_value=looked):  # the look at pixels is measured by itself
            seconds[n] = processor_seconds(
                lambda pool=pool, out=out: gate.check_pool(
                    pool, train, val, judges, CLASSES, family="flow_matching", params=params, out=out, docs=out / "docs"
                )
            )  # fmt: skip
    yield f"{form.name}|rest of the gate|processor time an image", 1e6 * marginal(seconds), "µs"
    kept = sum(x.nbytes for x in (*values.values(), looked[0].nearest, thumbs, looked[0].embeddings))
    yield f"{form.name}|kept by the gate|size an image", kept / n, "bytes"
    checked = sum((out / name).stat().st_size for name in ("checks.parquet", "images.parquet"))
    yield f"{form.name}|checks|size an image", checked / n, "bytes"
    yield f"{form.name}|row without image|size an image", rows.table.drop_columns(["image", "sources"]).nbytes / n, "bytes"
    yield f"{form.name}|a source of a row|size an image", rows.table["sources"].nbytes / sum(map(len, of.sources)), "bytes"


def counted(form: Form) -> Iterator[Figure]:
    """Parameters, FLOP and operations of the U-Net, of the classifier and of a judge of a form."""
    params, n = config.read(), 2
    with torch.device("meta"):
        unet: nn.Module = UNet(form.shape, len(CLASSES), dropout=0.1, conditions=CONDITIONS, **form.unet)
        classifier = networks.build(params.in_mode("scratch"), form.shape, len(CLASSES))
        judge = small.build(form.shape, len(CLASSES), params.judges.width)
        x, t, y = torch.zeros(n, *form.shape), torch.zeros(n), torch.zeros(n).long()
        a, seen = torch.zeros(n, CONDITIONS), torch.zeros(n, *small.seen(form.shape))
    for name, network, given in (
        ("U-Net", unet, (x, t, y, a)), ("classifier", classifier, (x,)), ("judge", judge, (seen,)),
    ):  # fmt: skip

        def evaluate(network: nn.Module = network, given: tuple[Tensor, ...] = given) -> None:
            with torch.no_grad():
                network(*given)

        def train(network: nn.Module = network, given: tuple[Tensor, ...] = given) -> None:
            network(*given).square().mean().backward()

        yield f"{form.name}, {name}|network|parameters", sum(p.numel() for p in network.parameters()), ""
        for what, do in (("evaluation", evaluate), ("training", train)):
            with Calls() as calls:
                do()
            yield f"{form.name}, {name}|{what}|work", flop(do) / n / 1e6, "MFLOP/image"
            yield f"{form.name}, {name}|{what}|operations", calls.count, ""


def per_gigabyte(folder: Path) -> Iterator[Figure]:
    """Hashing and copying: DVC's of an output, a stage's of its input, a checkpoint's."""
    data, gigabytes = np.random.default_rng(0).bytes(MEGABYTES * 1_000_000), MEGABYTES / 1000
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}

    def dvc(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *words, "--quiet"], cwd=folder, env=environment, check=True)

    def added(files: int, size: int) -> float:
        def add() -> None:
            fresh = folder / f"added-{time.monotonic_ns()}"  # other bytes each time: what the cache has is not copied
            fresh.mkdir()
            for i in range(files):
                (fresh / f"{i}.png").write_bytes(f"{fresh.name} {i}".encode() + data[:size])
            dvc("add", fresh.name)

        return processor_seconds(add, children=True)

    dvc("init", "--no-scm")
    one = added(1, 300)
    yield "DVC|a file|processor time", 1e6 * (added(1 + FILES, 300) - one) / FILES, "µs"
    yield "DVC|a gigabyte|processor time", 1e6 * (added(1, len(data)) - one) / gigabytes, "µs"
    file = folder / "data"
    file.write_bytes(data)
    yield "stage's hash|a gigabyte|processor time", 1e6 * processor_seconds(lambda: work.key(file)) / gigabytes, "µs"
    network = nn.Linear(2500, 4000)  # 10 million parameters
    learner = Learner(network, Optimisation(steps=10, lr=1e-4, ema=0.99))
    learner.step(network(torch.ones(1, 2500)).square().mean(), 0)
    size = sum(x.numel() * x.element_size() for x in learner.tensors().values())
    taken = processor_seconds(lambda: training._save({"network": learner}, folder, 1))
    yield "checkpoint|a parameter|size", size / sum(p.numel() for p in learner.parameters), "bytes"
    yield "checkpoint|a gigabyte|processor time", 1e6 * taken / (size / 1e9), "µs"


def scoring() -> float:
    """Processor seconds of the stage `evaluate` for an arm and a test row: five seeds, ten classes, all resamples."""
    params, seconds = config.read(), {}
    for n in TEST_ROWS:
        rng, targets = numpy_rng(0, "scores"), np.array(labels(n))
        raw = rng.random((params.arms.seeds, n, len(CLASSES)))
        drawn = resample(targets, np.arange(n), n_seeds=params.arms.seeds, n=params.evaluate.bootstrap, seed=0)
        predictions = raw / raw.sum(2, keepdims=True)
        seconds[n] = processor_seconds(
            lambda p=predictions, y=targets, drawn=drawn: score(Predictions(p, y), drawn, {}, BalancedAccuracy())
        )  # fmt: skip
    return marginal(seconds)


def measure() -> Iterator[Figure]:
    """Figures of this part."""
    import_module_quietly("great_expectations.expectations")
    with training.threads(1):  # threads that wait for each other would count too
        for form in FORMS:
            with tempfile.TemporaryDirectory() as folder:
                train, judges = jury(form, Path(folder))
                yield from by_shard(form, train, judges, Path(folder))
                yield from whole(form, train, judges, Path(folder))
            yield from counted(form)
        yield "evaluate|an arm and test row|processor time", 1e6 * scoring(), "µs"
    with tempfile.TemporaryDirectory() as folder:
        yield from per_gigabyte(Path(folder))
