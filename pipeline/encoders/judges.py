"""Judges: K small classifiers, cross-fitted on the real train rows, that embed, label and calibrate.

    folds       f(i) in {0, ..., K-1} for each train row i; a group lies in one fold, classes are spread evenly over folds
    judge k     fitted on the rows with f(i) != k, classes drawn evenly, so p_k(y | x) carries no class prior
    held out    row i judged by judge f(i), which has not seen it: what judges say of real images that are new to them

A class all of whose groups fell into one fold (it has one group) would be unknown to a judge; its groups are put into every
fit, f(i) = -1: every judge knows the class, and none of its rows is ever held out. A class of two groups is held out
group by group, whatever K is.

    embedding   per block the mean and the standard deviation of each channel over the pixels, and the activations before the
                head, each standardised over the real train rows: early blocks tell noise and blur, late ones tell classes

Images above 32 pixels are averaged down to 32 before a judge sees them. A judge is never the classifier that is evaluated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import config
from pipeline.core import images, weights
from pipeline.core.manifest import Manifest
from pipeline.core.seeds import derive, numpy_rng, rng
from pipeline.encoders.resnet import SmallResNet
from pipeline.errors import DataError
from pipeline.runtime.training import Learner, Optimisation, autocast, device, loop

LARGEST = 32  # pixels: what a judge sees of an image
BATCH = 512  # images a judge looks at together when it is not being fitted
FILE = "judges.safetensors"


@dataclass(frozen=True)
class Assessment:
    """What K judges say of n images: standardised embeddings (K, n, d) and probabilities of the labels (K, n, k), float32."""

    embeddings: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """What the judge that has not seen a row says of it: (n, d) and (n, k); NaN for rows in every fit (`folds` = -1)."""

    embeddings: np.ndarray
    probabilities: np.ndarray


class Judges:
    """K fitted judges and the fold of each train row, int16 (n,), -1 for rows that every judge was fitted on."""

    def __init__(
        self,
        networks: Sequence[SmallResNet],
        folds: np.ndarray,
        *,
        classes: Sequence[str],
        shape: tuple[int, int, int],
        settings: config.Judges,
        rows: str,
    ) -> None:
        self.networks, self.folds, self.classes = list(networks), folds, list(classes)
        self.mean, self.scale = np.zeros(1, np.float32), np.ones(1, np.float32)  # of the embeddings of train, (K, 1, d)
        self.shape, self.settings, self.rows = shape, settings, rows

    @classmethod
    def fit(
        cls, train: Manifest, classes: Sequence[str], *, settings: config.Judges, flips: str, seed: int, folder: Path
    ) -> Judges:
        """Fit the judges on real train rows. `folder` keeps unfinished work (hidden files) and receives judges.safetensors.

        `flips` is data.flips of params.yaml. Raises LeakError for a row that is not train.
        """
        pixels, targets = train.training_tensors(classes, "the judges")
        folds = assign_folds(targets.numpy(), train.column("group"), settings.folds, seed)
        shape = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))
        small = thin(pixels)
        networks = []
        for k in range(settings.folds):
            seen = torch.from_numpy(folds != k)
            networks.append(
                _fit_one(small[seen], targets[seen], len(classes), settings, flips, derive(seed, "judge", k), folder, k)
            )
        judges = cls(networks, folds, classes=classes, shape=shape, settings=settings, rows=_rows(train))
        raw = judges.embed(pixels)
        judges.mean, judges.scale = raw.mean(1, keepdims=True), raw.std(1, keepdims=True) + np.float32(1e-6)
        judges.save(folder)
        return judges

    def save(self, folder: Path) -> None:
        """Write judges.safetensors: weights, folds and scales, with classes and settings in the metadata."""
        tensors = {f"{k}.{name}": value for k, n in enumerate(self.networks) for name, value in n.state_dict().items()}
        tensors |= {name: torch.from_numpy(getattr(self, name)) for name in ("folds", "mean", "scale")}
        card = {"classes": self.classes, "shape": self.shape, "settings": self.settings.model_dump(), "rows": self.rows}
        weights.save(folder / FILE, tensors, card)

    @classmethod
    def load(cls, folder: Path) -> Judges:
        """The judges that `save` wrote. Raises DataError where the file is missing, torn or of something else."""
        tensors, card = weights.load(folder / FILE)
        settings, shape = config.Judges(**card["settings"]), (card["shape"][0], card["shape"][1], card["shape"][2])
        networks = []
        for k in range(settings.folds):
            network = _network(shape, len(card["classes"]), settings)
            network.load_state_dict({n.removeprefix(f"{k}."): v for n, v in tensors.items() if n.startswith(f"{k}.")})
            networks.append(network.eval())
        folds, mean, scale = (tensors[name].numpy() for name in ("folds", "mean", "scale"))
        judges = cls(networks, folds, classes=card["classes"], shape=shape, settings=settings, rows=card["rows"])
        judges.mean, judges.scale = mean, scale
        return judges

    def look(self, pixels: Tensor) -> Assessment:
        """What every judge says of uint8 images (n, c, h, w)."""
        both = [self._look(network, pixels) for network in self.networks]
        return Assessment((np.stack([e for e, _ in both]) - self.mean) / self.scale, np.stack([p for _, p in both]))

    def embed(self, pixels: Tensor) -> np.ndarray:
        """Embeddings (K, n, d) of uint8 images (n, c, h, w)."""
        return self.look(pixels).embeddings

    def probabilities(self, pixels: Tensor) -> np.ndarray:
        """Probabilities of the labels (K, n, k) of uint8 images (n, c, h, w)."""
        return self.look(pixels).probabilities

    def held_out(self, train: Manifest) -> HeldOut:
        """Each train row as judged by the judge that has not seen it. Raises DataError for other rows than those fitted on."""
        self.require_rows(train)
        said = self.look(train.images())
        unseen = (self.folds >= 0)[:, None]
        embeddings, probabilities = (x[self.folds, np.arange(len(train))] for x in (said.embeddings, said.probabilities))
        return HeldOut(np.where(unseen, embeddings, np.nan), np.where(unseen, probabilities, np.nan))

    def require_rows(self, train: Manifest) -> None:
        """Raise DataError unless `train` has the rows, in the order, that the judges were fitted on."""
        if _rows(train) != self.rows:
            raise DataError("the judges were fitted on other train rows", remedy="run the stage judges")

    @torch.inference_mode()
    def _look(self, network: SmallResNet, pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
        where = device()
        network = network.to(where)
        said = [_features(network, images.to_float(thin(part).to(where))) for part in torch.split(pixels, BATCH)]
        return torch.cat([e for e, _ in said]).cpu().numpy(), torch.cat([p for _, p in said]).cpu().numpy()


def thin(pixels: Tensor) -> Tensor:
    """uint8 (n, c, h, w) -> uint8, averaged down to at most 32 x 32 pixels."""
    if pixels.shape[-1] <= LARGEST:
        return pixels
    chunks = (F.adaptive_avg_pool2d(part.float(), LARGEST).round_().byte() for part in torch.split(pixels, BATCH))
    return torch.cat([*chunks, pixels.new_empty((0, pixels.shape[1], LARGEST, LARGEST))])


def assign_folds(targets: np.ndarray, groups: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Fold of each row, int16 (n,), from its class (n,) and group (n,); -1 for rows that belong into every fit.

    Groups are placed one by one, those with the rarest class first and the larger first, each into the fold that holds the
    least share of its classes (ties: fewest rows).
    """
    n_classes = int(targets.max()) + 1
    _, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((group.max() + 1, n_classes))
    np.add.at(counts, (group, targets), 1)
    total = counts.sum(0)
    share = counts / np.maximum(total, 1)
    rarest = np.where(counts > 0, total, np.inf).min(1)
    chance = numpy_rng(seed, "folds").permutation(len(counts))
    held, rows = np.zeros((n_folds, n_classes)), np.zeros(n_folds)
    fold = np.empty(len(counts), dtype=np.int16)
    for g in np.lexsort((chance, -counts.sum(1), rarest)):
        f = np.lexsort((rows, held[:, counts[g] > 0].sum(1)))[0]
        fold[g], held[f], rows[f] = f, held[f] + share[g], rows[f] + counts[g].sum()
    for c in np.flatnonzero(total):
        members = np.flatnonzero(counts[:, c])
        if len(set(fold[members])) == 1:
            fold[members] = -1
    return fold[group]


def _features(network: SmallResNet, x: Tensor) -> tuple[Tensor, Tensor]:
    levels, h = [], network.stem(x)
    for block in network.blocks:
        h = block(h)
        levels += [h.mean((2, 3)), h.std((2, 3), correction=0)]
    last = F.silu(network.norm(h)).mean((2, 3))
    return torch.cat([*levels, last], 1), network.head(last).softmax(1)


def _network(shape: tuple[int, int, int], n_classes: int, settings: config.Judges) -> SmallResNet:
    size = min(shape[1], LARGEST)
    return SmallResNet((shape[0], size, size), n_classes, settings.width)


def _fit_one(
    pixels: Tensor, targets: Tensor, n_classes: int, settings: config.Judges, flips: str, seed: int, folder: Path, k: int
) -> SmallResNet:
    where = device()
    shape = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "weights"))
        network = _network(shape, n_classes, settings).to(where)
    finished = folder / f".judge-{k}.safetensors"
    if finished.exists():
        network.load_state_dict(weights.load(finished)[0])
        return network.eval()
    plan = Optimisation(settings.steps, settings.lr, weight_decay=settings.weight_decay, ema=settings.ema)
    learner = Learner(network, plan)
    evenly = 1.0 / torch.bincount(targets, minlength=n_classes).clamp_min(1)[targets].double()

    def update(step: int) -> float:
        draw = rng(seed, "batch", step)
        chosen = torch.multinomial(evenly, settings.batch_images, replacement=True, generator=draw)
        x = images.to_float(_augment(pixels[chosen], flips, draw).to(where))
        with autocast("auto", where):
            logits = network(x)
        # Smoothed labels keep judges of few images from being sure of everything (Szegedy et al., 2016).
        return learner.step(F.cross_entropy(logits.float(), targets[chosen].to(where), label_smoothing=0.1), step)

    loop(
        {"judge": learner}, update, steps=settings.steps, seed=seed, name=f"judge {k + 1}/{settings.folds}",
        images_per_step=settings.batch_images, folder=folder / f".judge-{k}",
    )  # fmt: skip
    learner.finish()
    weights.save(finished, network.state_dict(), {"judge": k})
    return network


def _augment(pixels: Tensor, flips: str, draw: torch.Generator) -> Tensor:
    """Shift each image by up to a sixteenth of its size (one pixel at least), edges repeated; mirror it where allowed."""
    n, _, size, _ = pixels.shape
    far = max(1, size // 16)
    grid = torch.arange(size)
    y, x = ((grid + torch.randint(-far, far + 1, (n, 1), generator=draw)).clamp(0, size - 1) for _ in range(2))
    for axis, allowed in ((x, flips != "none"), (y, flips == "both")):
        if allowed:
            mirrored = torch.rand(n, generator=draw) < 0.5
            axis[mirrored] = axis[mirrored].flip(1)
    return pixels[torch.arange(n)[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _rows(train: Manifest) -> str:
    """Hash of which images the rows are, in order."""
    names: Iterator[str] = iter(train.column("pixel_hash"))
    return hashlib.blake2b("\n".join(names).encode(), digest_size=16).hexdigest()
