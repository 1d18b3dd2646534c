"""Cost a row: what stages call, on 1,000 to 1,000,000 rows, each in a process of its own.

`python -m benchmarks.speed.scaling WHAT ROWS` prints the seconds and the peak memory in MB of one.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import config
from pipeline.core import images
from pipeline.core.manifest import SCHEMA, Manifest

CLASSES = [str(c) for c in range(10)]
CHUNK = 1000  # rows made at a time
SIZES = {
    "write": (1_000, 10_000, 100_000, 1_000_000),
    "read": (1_000, 10_000, 100_000, 1_000_000),
    "validation": (1_000, 10_000, 100_000, 1_000_000),
    "gate": (1_000, 10_000),
    "duplicates": (1_000, 10_000, 100_000),
    "sampling": (1_000, 10_000, 100_000),
}
Work = Callable[[], object]


def growth(seconds: dict[int, float]) -> dict[int, float]:
    """The time a row over that at a tenth of the rows, for each number of rows that has such."""
    return {n: seconds[n] / n / (seconds[n // 10] / (n // 10)) for n in seconds if n // 10 in seconds}


def digits() -> tuple[np.ndarray, list[str]]:
    """The 1,797 digits, uint8 (n, 1, 8, 8), and their labels."""
    from pipeline.datasets.digits import rows

    every = list(rows(config.read().data))
    return np.stack([np.asarray(row.read())[None] for row in every]), [row.label for row in every]


def tables(n: int) -> Iterator[pa.Table]:
    """Synthetic rows, CHUNK at a time, images among 1,000."""
    pixels, labels = digits()
    pixels, labels = pixels[:CHUNK], labels[:CHUNK]
    pngs = [images.encode_png(image) for image in pixels]
    for start in range(0, n, CHUNK):
        m = min(CHUNK, n - start)
        names = [f"naive-{i:08d}" for i in range(start, start + m)]
        yield Manifest.from_columns(
            sample_id=names, image=pngs[:m], label=labels[:m], split=["train"] * m, group=names, origin=["synthetic"] * m,
            generator=["naive"] * m, seed=range(start, start + m), sources=[[f"row-{j}" for j in range(10)]] * m,
            pixel_hash=[f"{i:032x}" for i in range(start, start + m)],
        ).table  # fmt: skip


def train() -> Manifest:
    """1,000 real train rows."""
    pixels, labels = digits()
    names = [f"row-{i}" for i in range(CHUNK)]
    return Manifest.from_columns(
        sample_id=names, image=[images.encode_png(i) for i in pixels[:CHUNK]], label=labels[:CHUNK], split=["train"] * CHUNK,
        group=names, origin=["real"] * CHUNK, generator=[None] * CHUNK, seed=[None] * CHUNK, sources=[[]] * CHUNK,
        pixel_hash=[images.pixel_hash(i) for i in pixels[:CHUNK]],
    )  # fmt: skip


def write(n: int, folder: Path) -> Work:
    """A manifest of n rows, streamed as `prepare` does; the rows are made beforehand, a thousand at a time, again and again."""
    from pipeline.datasets.assemble import write_manifest

    one = next(iter(tables(CHUNK)))
    return lambda: write_manifest(folder / "rows.parquet", (one for _ in range(n // CHUNK)))


def read(n: int, folder: Path) -> Work:
    """All columns but the images."""
    _pool(n, folder)
    return lambda: Manifest.read(folder, columns=[name for name in SCHEMA.names if name != "image"])


def validation(n: int, folder: Path) -> Work:
    """Expectations on the table of a pool."""
    from pipeline.validation import table

    import_module_quietly("great_expectations.expectations")
    _pool(n, folder / "pool")
    real = train()

    def work() -> object:
        rows = Manifest.read(folder / "pool", columns=[name for name in SCHEMA.names if name != "image"])
        return table.validate(
            rows, real, CLASSES, family="naive", needed=dict.fromkeys(CLASSES, 1), largest_share=1.0, docs=folder / "docs"
        )  # fmt: skip

    return work


def gate(n: int, folder: Path) -> Work:
    """All that the stage `validate` does with a pool, made by the family `naive`."""
    from pipeline.encoders.judges import Judges
    from pipeline.validation import gate

    import_module_quietly("great_expectations.expectations")
    params = config.read()
    real, settings = train(), params.judges.model_copy(update={"steps": 30})
    jury = Judges.fit(real, CLASSES, settings=settings, flips="none", seed=0, folder=folder)
    sampling(n, folder / "pool")()
    (folder / "out").mkdir()
    return lambda: gate.check_pool(
        folder / "pool", real, real.take(np.arange(500)), jury, CLASSES, family="naive", params=params, out=folder / "out",
        docs=folder / "docs",
    )  # fmt: skip


def duplicates(n: int, folder: Path) -> Work:
    """Near-duplicates among thumbnails: digits with noise, one in a hundred a copy of the one before it."""
    from pipeline.datasets.duplicates import near_pairs

    rng, (pixels, _) = np.random.default_rng(0), digits()
    thumbs = pixels.reshape(len(pixels), -1)[rng.integers(len(pixels), size=n)].astype(np.int16)
    thumbs = np.clip(thumbs + rng.integers(-40, 41, size=thumbs.shape), 0, 255).astype(np.uint8)
    thumbs[1::100] = thumbs[::100][: len(thumbs[1::100])]
    return lambda: near_pairs(thumbs, 2.0)


def sampling(n: int, folder: Path) -> Work:
    """A pool of the family `naive`, in shards as params.yaml has it."""
    import torch

    from pipeline.generators import naive, registry
    from pipeline.generators.sampling import Plan, write_pool

    folder.mkdir(exist_ok=True)
    pixels, labels = digits()
    params = config.read()
    model = naive.Naive(registry.settings(params, "naive"), shape=(1, 8, 8), n_classes=10)
    model.fit(images.to_float(torch.from_numpy(pixels)), torch.tensor([int(label) for label in labels]), seed=0)
    of = list(range(n))
    plan = Plan([f"naive-{i:08d}" for i in of], [i % 10 for i in of], of, [[f"row-{i % CHUNK}"] for i in of])
    return lambda: write_pool(
        lambda: model, "naive", plan, CLASSES, folder, shard_images=params.sample.shard_images, where=params.engine
    )


def import_module_quietly(name: str) -> None:
    """Import what takes seconds, so that it does not count."""
    from importlib import import_module

    import_module(name)


def _pool(n: int, folder: Path) -> None:
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    with pq.ParquetWriter(folder / "part-00000.parquet", SCHEMA) as writer:
        for part in tables(n):
            writer.write_table(part)


WORKS: dict[str, Callable[[int, Path], Work]] = {
    "write": write, "read": read, "validation": validation, "gate": gate, "duplicates": duplicates, "sampling": sampling,
}  # fmt: skip


def measure() -> Iterator[tuple[str, float, str]]:
    """Figures of this part."""
    worst = 0.0
    for what, sizes in SIZES.items():
        seconds: dict[int, float] = {}
        for n in sizes:
            found = json.loads(
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.speed.scaling", what, str(n)], capture_output=True, text=True, check=True
                ).stdout.splitlines()[-1]
            )
            seconds[n] = found["seconds"]
            yield f"{what}|{n:,} rows|time a row", 1e6 * seconds[n] / n, "µs"
            if n in growth(seconds):
                yield f"{what}|{n:,} rows|growth", growth(seconds)[n], ""
                worst = max(worst, growth(seconds)[n])
            yield f"{what}|{n:,} rows|memory", found["peak_mb"], "MB"
    yield "worst_growth", worst, ""


def main(what: str, n: int) -> None:
    """Print {"seconds", "peak_mb"}; the least of several goes where they are short."""
    least, spent = float("inf"), 0.0
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            work = WORKS[what](n, Path(folder))
            began = time.perf_counter()
            work()
            taken = time.perf_counter() - began
        least, spent = min(least, taken), spent + taken
        if spent > 2.0:
            break
    print(json.dumps({"seconds": least, "peak_mb": _peak_memory() / 1e6}))


def _peak_memory() -> int:
    """Bytes. Not getrusage: what that tells of a process begins with its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
