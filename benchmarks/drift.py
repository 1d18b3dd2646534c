"""How often drift is called on equal data, and how often a change is found: `python -m benchmarks.drift` writes both tables
into docs/drift.md.

Real digits (scikit-learn), drawn anew for each trial. False alarms are counted a version: ten classes with 60 ... 3 images to
which a sixth comes, at least one. `judges` asks the same of embeddings of judges that were fitted on the images before, and so
know these and not the ones that came: few trials, since each fits them anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

from benchmarks import marks
from pipeline import config
from pipeline.core.images import encode_png, pixel_hash
from pipeline.core.manifest import Manifest
from pipeline.datasets.drift import Sample, two_sample
from pipeline.encoders.judges import Judges
from pipeline.encoders.statistics import Statistics

PAGE = Path("docs/drift.md")
COUNTS = [60, 43, 30, 22, 15, 11, 8, 5, 4, 3]
CAME = [max(1, n // 6) for n in COUNTS]
SIZES = ((60, 12), (20, 5), (8, 4))
ALPHA = 0.05

Images = np.ndarray  # uint8 (n, 1, 8, 8)


def features(images: Images) -> np.ndarray:
    """What the stage drift compares by default, float64 (n, d)."""
    return Statistics((1, 8, 8)).features(images).astype(np.float64)


def piles() -> list[Images]:
    """The images of each digit."""
    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)[:, None]
    return [images[digits.target == label] for label in range(10)]


def changes(rng: np.random.Generator) -> dict[str, Callable[[Images], Images]]:
    """What befalls the images that came."""
    return {
        "none": lambda x: x,
        "noise, standard deviation 40 of 255": lambda x: np.clip(x + rng.normal(0, 40, x.shape), 0, 255),
        "three quarters as bright": lambda x: x * 0.75,
        "shifted by a pixel": lambda x: np.roll(x, 1, 3),
        "blurred over 2 x 2 pixels": lambda x: np.mean([np.roll(x, s, (2, 3)) for s in ((0, 0), (0, 1), (1, 0), (1, 1))], 0),
        "turned by 15 degrees": lambda x: np.clip(rotate(x, 15, axes=(2, 3), reshape=False, order=1), 0, 255),
    }


def power(trials: int = 100) -> Iterator[str]:
    """Lines of a table: the share of trials in which one class of n images, to which m came, is called changed."""
    rng, own = np.random.default_rng(0), piles()
    yield f"| change | {' | '.join(f'{n} and {m}, {kind}' for n, m in SIZES for kind in ('mmd', 'energy'))} |"
    yield "|---" * (1 + 2 * len(SIZES)) + "|"
    for name, change in {**changes(rng), "another class": None}.items():
        cells = []
        for n, m in SIZES:
            for kind in ("mmd", "energy"):
                found = 0
                for trial in range(trials):
                    drawn = rng.permutation(own[trial % 10])[: n + m]
                    other = rng.permutation(own[(trial + 1) % 10])[:m] if change is None else change(drawn[n:])
                    images = np.concatenate([drawn[:n], np.asarray(other).round().astype(np.uint8)])
                    sample = Sample(features(images), np.repeat([False, True], [n, m]))
                    found += two_sample([sample], kind, 199, rng)[0][0].p <= ALPHA
                cells.append(f"{found / trials:.2f}")
        yield f"| {name} | {' | '.join(cells)} |"


def false_alarms(trials: int = 400) -> Iterator[str]:
    """Lines of a table: the share of versions without a change in which anything is called changed."""
    rng, own = np.random.default_rng(11), [features(pile) for pile in piles()]
    yield "| test | alpha | false alarms a version | without Holm's adjustment |"
    yield "|---|---|---|---|"
    for kind in ("mmd", "energy"):
        for alpha in (0.01, 0.05, 0.1):
            adjusted = alone = 0
            for _ in range(trials):
                samples = [_drawn(z, n, m, rng) for z, n, m in zip(own, COUNTS, CAME, strict=True)]
                tests, together = two_sample(samples, kind, round(11 / alpha), rng)
                assert together is not None
                adjusted += min(test.adjusted for test in [*tests, together]) <= alpha
                alone += min(test.p for test in tests) <= alpha
            yield f"| {kind} | {alpha} | {adjusted / trials:.3f} | {alone / trials:.3f} |"


def judges(trials: int = 6) -> None:
    """The same with embeddings of judges that know the images before."""
    rng, own, settings = np.random.default_rng(3), piles(), config.read().judges
    alarms, alone, whole = 0, list[float](), list[float]()
    for _ in range(trials):
        drawn = [rng.permutation(pile)[: n + m] for pile, n, m in zip(own, COUNTS, CAME, strict=True)]
        known = np.concatenate([pile[:n] for pile, n in zip(drawn, COUNTS, strict=True)])
        labels = np.repeat([str(c) for c in range(10)], COUNTS).tolist()
        with tempfile.TemporaryDirectory() as folder:
            jury = Judges.fit(
                _manifest(known, labels),
                [str(c) for c in range(10)],
                settings=settings,
                flips="none",
                seed=0,
                folder=Path(folder),
            )
        samples = []
        for pile, n, m in zip(drawn, COUNTS, CAME, strict=True):
            embedded = jury.look(torch.from_numpy(pile)).flat.astype(np.float64)
            samples.append(Sample(embedded, np.repeat([False, True], [n, m])))
        tests, together = two_sample(samples, "mmd", 220, rng)
        assert together is not None
        alarms += min(test.adjusted for test in [*tests, together]) <= ALPHA
        alone += [test.p for test in tests]
        whole.append(together.p)
    print(f"judges fitted on the images before, alpha {ALPHA}: {alarms} of {trials} equal versions are called changed;")
    rate, of_all = np.mean(np.array(alone) <= ALPHA), np.round(whole, 3).tolist()
    print(f"p <= {ALPHA} in {rate:.3f} of {len(alone)} classes; p of all together {of_all}")


def write(name: str, lines: Iterable[str]) -> None:
    """Write the table between the marks of this name in docs/drift.md, telling each line as it comes."""
    made = []
    for line in lines:
        print(line, flush=True)
        made.append(line)
    marks.replace(PAGE, name, "\n".join(made))


def _drawn(z: np.ndarray, n: int, m: int, rng: np.random.Generator) -> Sample:
    return Sample(z[rng.permutation(len(z))[: n + m]], np.repeat([False, True], [n, m]))


def _manifest(images: Images, labels: list[str]) -> Manifest:
    n = len(images)
    ids = [f"row-{i}" for i in range(n)]
    return Manifest.from_columns(
        sample_id=ids, image=[encode_png(image) for image in images], label=labels, split=["train"] * n, group=ids,
        origin=["real"] * n, generator=[None] * n, seed=[None] * n, sources=[[]] * n,
        pixel_hash=[pixel_hash(image) for image in images],
    )  # fmt: skip


if __name__ == "__main__":
    write("false alarms", false_alarms())
    write("power", power())
    judges()
