"""Training and sampling beside the plain recipe, and as shares of the processor's peak."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import plain
from pipeline import config
from pipeline.core import images
from pipeline.core.manifest import Manifest
from pipeline.core.seeds import derive, numpy_rng
from pipeline.datasets.rows import rows
from pipeline.encoders.judges import Judges
from pipeline.generators import diffusion, flow_matching, registry
from pipeline.generators.shared.augmentation import CONDITIONS
from pipeline.generators.shared.networks.unet import UNet
from pipeline.runtime.training import Learner, Optimisation, autocast, device
from pipeline.validation import fidelity

SIZE, CLASSES = 28, 10
SECONDS, PLAIN_SECONDS = 40.0, 60.0  # of training
TRIAL = 30  # steps that tell how many the time allows
ROWS = 128  # images sampled in each setting: a block
TIMES = 3  # that it is sampled, for the time
BATCH = 128
# As benchmarks.gain has it for 28 x 28 images; what is not here is params.yaml's.
OURS = {"width": 64, "batch_images": BATCH, "patch": 2, "guidance": "none", "augment": 0.05, "threads": 0, "solver_steps": 8}
SOLVER_STEPS = (8, 5, 3, 2)  # of Heun: 15, 9, 5 and 3 evaluations
DDIM_STEPS = (50, 20, 10, 5)
PLAIN_STEPS = (20, 10)  # with the plain recipe's own weights
WIDTHS = (32, 64, 128)  # whose shares of the peak are told; `tailforge init` writes 32
LONG_TAIL = [round(60 * 20 ** (-c / 9)) for c in range(CLASSES)]  # of the digits, where there is no MNIST
MATRICES = (1024, 2048, 4096)
BOOTSTRAP = 1000

Figure = tuple[str, float, str]


@dataclass(frozen=True)
class Setting:
    """A way of sampling: how fast it is, and how far its images are from real ones, with the interval of that."""

    name: str
    evaluations: int
    images_per_second: float
    kid: float
    low: float
    high: float

    def as_good_as(self, other: Setting) -> bool:
        """KID within the other's interval, or below."""
        return self.kid <= other.high


def best(settings: Sequence[Setting]) -> Setting:
    """The setting with the least KID."""
    return min(settings, key=lambda one: one.kid)


def fastest(settings: Sequence[Setting], target: Setting) -> Setting | None:
    """The fastest setting that is as good as `target`; None where none is."""
    good = [one for one in settings if one.as_good_as(target)]
    return max(good, key=lambda one: one.images_per_second, default=None)


def at_the_speed_of(lent: Sequence[Setting], plain_ones: Sequence[Setting]) -> list[Setting]:
    """Settings of `lent` at the evaluations a second of the plain network, the most that it has shown."""
    speed = max(one.images_per_second * one.evaluations for one in plain_ones)
    return [replace(one, images_per_second=speed / one.evaluations) for one in lent]


def sampling_figures(ours: Sequence[Setting], theirs: Sequence[Setting]) -> list[Figure]:
    """The ratio of the fastest settings without loss, whether ours is then as good, and the ratio at their quality."""
    mine, other = (fastest(settings, best(settings)) for settings in (ours, theirs))
    assert mine is not None and other is not None  # the best setting is as good as itself
    level = fastest(ours, best(theirs))
    at_theirs = level.images_per_second / other.images_per_second if level else 0.0
    return [
        ("sampling_ratio", mine.images_per_second / other.images_per_second, ""),
        ("sampling_ratio_ours_evaluations", mine.evaluations, ""),
        ("sampling_ratio_plain_evaluations", other.evaluations, ""),
        ("ours_at_least_as_good", float(mine.as_good_as(other)), ""),
        ("plain_at_least_as_good", float(other.as_good_as(mine)), ""),
        ("sampling_ratio_at_their_quality", at_theirs, ""),
    ]


def share(flop: float, units: float, per_second: float, peak: float) -> float:
    """Share of `peak` FLOP/s where work of `flop` for `units` images is done at `per_second` images a second."""
    return flop / units * per_second / peak


def flop(work: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products and convolutions in `work`, its backward passes included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak() -> float:
    """FLOP/s of the fastest bf16 product of square matrices."""
    found = 0.0
    for n in MATRICES:
        a, b = (torch.randn(n, n).to(device(), torch.bfloat16) for _ in range(2))
        for _ in range(6):
            began = time.perf_counter()
            float((a @ b)[0, 0])
            found = max(found, 2 * n**3 / (time.perf_counter() - began))
    return found


@dataclass(frozen=True)
class Data:
    """Scarce train rows, and two sets of real rows that nothing is fitted on, uint8 (n, 1, 28, 28); classes int64 (n,)."""

    name: str
    train: tuple[Tensor, Tensor]
    real: tuple[Tensor, Tensor]
    other: tuple[Tensor, Tensor]


def data() -> Data:
    """MNIST by its long-tail list where TAILFORGE_DATASETS has it, else scikit-learn's digits, enlarged."""
    folder = Path(os.environ.get("TAILFORGE_DATASETS", ""), "mnist")
    listed = folder / "mnist_lt_ir100.json"
    unused = {"name": "", "table": "", "groups": "", "image_size": SIZE, "channels": 1, "resize": "pad", "flips": "none"}
    if listed.is_file():
        every = [row for row in rows(config.Data(source="idx", path=str(folder), **unused)) if row.split == "train"]
        ids = json.loads(listed.read_text(encoding="utf-8"))["ids"]
        kept = {int(i) for own in ids.values() for i in own}
        scarce = np.array([i in kept for i in range(len(every))])
    else:
        every = list(rows(config.Data(source="digits", path="", **unused)))
    labels = torch.tensor([int(row.label) for row in every])
    pixels = torch.stack([torch.from_numpy(np.array(row.read())) for row in every])[:, None]
    if not listed.is_file():
        pixels = F.interpolate(pixels.float(), SIZE, mode="bilinear").round().byte()
        scarce = np.zeros(len(every), bool)
        for c, n in enumerate(LONG_TAIL):
            scarce[np.flatnonzero(labels == c)[:n]] = True
    left, parts = np.flatnonzero(~scarce), []
    for part in range(2):  # the first and the second rows of each class, in the order of the labels that are sampled
        own = [left[labels[left] == c][part * _count(c) : (part + 1) * _count(c)] for c in range(CLASSES)]
        parts.append(torch.from_numpy(np.concatenate(own)))
    train = torch.from_numpy(np.flatnonzero(scarce))
    real, other = ((pixels[part], labels[part]) for part in parts)
    name = "MNIST, long tail" if listed.is_file() else "digits, enlarged"
    return Data(name, (pixels[train], labels[train]), real, other)


def _count(c: int) -> int:
    """Images of class c among ROWS, as even as may be."""
    return ROWS // CLASSES + (c < ROWS % CLASSES)


def judges(train: tuple[Tensor, Tensor], params: config.Params, folder: Path) -> Judges:
    """The project's judges, fitted on the scarce rows."""
    pixels, labels = train
    n, names = len(pixels), [f"row-{i}" for i in range(len(pixels))]
    manifest = Manifest.from_columns(
        sample_id=names, image=images.encode_all(pixels), label=[str(c) for c in labels.tolist()], split=["train"] * n,
        group=names, origin=["real"] * n, generator=[None] * n, seed=[None] * n, sources=[[]] * n,
        pixel_hash=[images.pixel_hash(image) for image in pixels],
    )  # fmt: skip
    classes = [str(c) for c in range(CLASSES)]
    return Judges.fit(manifest, classes, settings=params.judges, flips="none", seed=0, folder=folder)


def measure() -> Iterator[Figure]:
    """Figures of this part."""
    torch.manual_seed(0)
    params, found = config.read(), data()
    settings = registry.settings(params, "flow_matching").model_copy(update=OURS)
    labels = found.real[1]
    yield f"data|{found.name}|train rows", len(found.train[0]), ""
    highest = peak()

    # Ours: a short fit says how many steps the time allows; the long one is what is measured.
    pixels, targets = images.to_float(found.train[0]), found.train[1]
    _, tried = _fit(flow_matching.FlowMatching, settings, pixels, targets, TRIAL)
    steps = max(2 * TRIAL, int(SECONDS / tried.seconds * TRIAL))
    model, fitted = _fit(flow_matching.FlowMatching, settings, pixels, targets, steps)
    lender = registry.settings(params, "diffusion").model_copy(update={**OURS, "solver": "ddim"})
    lent, _ = _fit(diffusion.Diffusion, lender, pixels, targets, steps)
    theirs = plain.as_large_as(SIZE, CLASSES, plain.parameters(model.networks))
    trained = plain.train(
        theirs, *found.train, batch=BATCH, seconds=PLAIN_SECONDS, class_power=settings.model_dump()["class_power"]
    )  # fmt: skip
    speeds = fitted.images / fitted.seconds, trained.images / trained.seconds

    with tempfile.TemporaryDirectory() as folder:
        jury = judges(found.train, params, Path(folder))
    real = jury.look(found.real[0]).flat

    def told(name: str, evaluations: int, make: Callable[[], Tensor]) -> Setting:
        least = math.inf
        for _ in range(TIMES):
            began = time.perf_counter()
            made = images.to_uint8(make())
            least = min(least, time.perf_counter() - began)
        return Setting(name, evaluations, len(made) / least, *_kid(real, jury.look(made).flat))

    def ours_by(of: Any, steps: int) -> Tensor:
        of.config = of.config.model_copy(update={"solver_steps": steps})
        made: Tensor = of.sample(labels, [derive(0, "speed", i) for i in range(len(labels))])
        return made

    ours_by(model, 2)
    plain.sample(theirs, labels[:BATCH], 2, BATCH)
    mine = [told(f"ours, Heun {n}", 2 * n - 1, lambda n=n: ours_by(model, n)) for n in SOLVER_STEPS]
    other = [told(f"plain, DDIM {n}", n, lambda n=n: plain.sample(theirs, labels, n, BATCH)) for n in PLAIN_STEPS]
    highest = max(highest, peak())
    lent_by = [told(f"lent, DDIM {n}", n, lambda n=n: ours_by(lent, n)) for n in DDIM_STEPS]
    lent_by = at_the_speed_of(lent_by, other)

    yield "data|" + found.name + "|rows judged", len(labels), ""
    per_image = flop(lambda: _step(model.networks["network"], "auto", learner=_learner(model.networks["network"]))) / BATCH
    plain_image = flop(lambda: _plain_step(theirs, train=True)) / BATCH
    for name, network, took, rate, one in (
        ("ours", model.networks, fitted, speeds[0], per_image), ("plain", theirs, trained, speeds[1], plain_image),
    ):  # fmt: skip
        yield f"training|{name}|parameters", plain.parameters(network), ""
        yield f"training|{name}|time", took.seconds, "s"
        yield f"training|{name}|images", took.images, ""
        yield f"training|{name}|speed", rate, "images/s"
        yield f"training|{name}|work", one / 1e6, "MFLOP/image"
        yield f"training|{name}|share of peak", share(one, 1, rate, highest), ""
    of_real = _kid(real, np.hstack(list(jury.embed(found.other[0]))))
    yield from zip((f"sampling|other real rows|{c}" for c in ("KID", "low", "high")), of_real, ("", "", ""), strict=True)
    forward, plain_forward = flop(lambda: _step(model.networks["network"], "auto")), flop(lambda: _plain_step(theirs))
    for one, work in [(s, forward) for s in mine] + [(s, plain_forward) for s in other + lent_by]:
        yield f"sampling|{one.name}|KID", one.kid, ""
        yield f"sampling|{one.name}|low", one.low, ""
        yield f"sampling|{one.name}|high", one.high, ""
        yield f"sampling|{one.name}|evaluations", one.evaluations, ""
        yield f"sampling|{one.name}|speed", one.images_per_second, "images/s"
        yield f"sampling|{one.name}|share of peak", share(work, BATCH, one.images_per_second * one.evaluations, highest), ""
    for width in WIDTHS:
        for name, value in _step_shares(width, highest):
            yield f"width of ours|{width}|{name}", value, "images/s" if name.endswith("speed") else ""
    yield "threads", torch.get_num_threads(), ""
    yield "peak", highest / 1e9, "GFLOP/s"
    yield "training_ratio", speeds[0] / speeds[1], ""
    yield "plain_reached_our_quality", float(best(other).as_good_as(best(mine))), ""
    yield from sampling_figures(mine, lent_by)
    yield "training_peak_share", share(per_image, 1, speeds[0], highest), ""
    yield "sampling_peak_share", max(share(forward, BATCH, s.images_per_second * s.evaluations, highest) for s in mine), ""


def _fit(kind: Any, settings: Any, pixels: Tensor, targets: Tensor, steps: int) -> tuple[Any, plain.Trained]:
    """A model after so many steps, and what its `fit` took."""
    changed = settings.model_copy(update={"steps": steps})
    began = time.perf_counter()
    model = kind(changed, shape=(1, SIZE, SIZE), n_classes=CLASSES).fit(pixels, targets, seed=0)
    return model, plain.Trained(steps * BATCH, time.perf_counter() - began)


def _kid(real: np.ndarray, made: np.ndarray) -> tuple[float, float, float]:
    """KID and its interval."""
    estimate, draws = fidelity.kid(real.astype(np.float64), made.astype(np.float64), BOOTSTRAP, numpy_rng(0, "speed"))
    low, high = np.percentile(draws, [fidelity.TAIL, 100 - fidelity.TAIL])
    return estimate, float(low), float(high)


def _learner(network: nn.Module) -> Learner:
    return Learner(network.train(), Optimisation(steps=1000, lr=1e-4, ema=0.998))


def _step(network: nn.Module, precision: str, learner: Learner | None = None, k: int = 0) -> None:
    """An optimiser step on random images where `learner` is given, else an evaluation."""
    where = next(network.parameters()).device
    x, t, y = torch.randn(BATCH, 1, SIZE, SIZE, device=where), torch.rand(BATCH, device=where), torch.zeros(BATCH, device=where)
    with torch.set_grad_enabled(learner is not None), autocast(precision, where):
        out = network(x, t, y.long(), torch.zeros(BATCH, CONDITIONS, device=where))
        loss = out.square().mean()
    if learner is not None:
        learner.step(loss, k)


def _plain_step(model: Any, train: bool = False) -> None:
    x, t, y = torch.randn(BATCH, 1, SIZE, SIZE), torch.zeros(BATCH).long(), torch.zeros(BATCH).long()
    with torch.set_grad_enabled(train):
        loss = model(x, t, class_labels=y).sample.square().mean()
    if train:
        loss.backward()


def _step_shares(width: int, highest: float) -> Iterator[tuple[str, float]]:
    """Images a second and shares of the peak of training and sampling steps; the fastest of several."""
    network: nn.Module = UNet(
        (1, SIZE, SIZE), CLASSES, width=width, depth=1, patch=2, dropout=0.1, conditions=CONDITIONS
    ).to(device())  # fmt: skip
    yield "parameters", plain.parameters(network)
    learner = _learner(network)
    for name, train in (("training", learner), ("sampling", None)):
        network.train(train is not None)
        work, least = flop(lambda train=train: _step(network, "auto", train)), np.inf
        for k in range(12):
            began = time.perf_counter()
            _step(network, "auto", train, k)
            least = min(least, time.perf_counter() - began)
        yield f"{name} speed", BATCH / least
        yield f"{name} share", share(work, BATCH, BATCH / least, highest)
