"""Judges: K encoders with heads, cross-fitted on the real train rows, that embed, label and calibrate.

    folds       f(i) in {0, ..., K-1} for each train row i; a group lies in one fold, classes are spread evenly over folds
    judge k     fitted on the rows with f(i) != k, classes drawn evenly, so p_k(y | x) carries no class prior
    held out    row i assessed by judge f(i), which has not seen it: what judges say of real images that are new to them

A class all of whose groups fell into one fold (it has one group) would be unknown to a judge; its groups are put into every
fit, f(i) = -1: every judge knows the class, and none of its rows is ever held out. A class of two groups is held out
group by group, whatever K is.

    embedding   the features of judge k's encoder, each standardised over the real train rows

An encoder that is fitted is fitted K times, with its head. One that is fixed is the same for all judges, and K heads are fitted
on its features. A judge is never the classifier that is evaluated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.core import weights
from pipeline.core.images import at_resolution
from pipeline.core.manifest import Manifest
from pipeline.core.seeds import derive, numpy_rng
from pipeline.encoders import store
from pipeline.encoders.base import Encoder, Fitted, Fixed, Shape, kind
from pipeline.encoders.heads import Head
from pipeline.errors import DataError

FILE = "judges.safetensors"
NONE = config.Encoder()


@dataclass(frozen=True)
class Judge:
    """What embeds an image, and what reads its label from the features."""

    encoder: Encoder
    head: Head


@dataclass(frozen=True)
class Assessment:
    """What K judges say of n images: standardised embeddings (K, n, d) and probabilities of the labels (K, n, k), float32."""

    embeddings: np.ndarray
    probabilities: np.ndarray
    shared: bool = False  # by all judges: they have one encoder, and so the same embeddings

    @property
    def flat(self) -> np.ndarray:
        """The embeddings of an image as one row: judge after judge (n, K d), or the one that all share (n, d)."""
        return self.embeddings[0] if self.shared else np.hstack(list(self.embeddings))


@dataclass(frozen=True)
class HeldOut:
    """What the judge that has not seen a row says of it: (n, d) and (n, k); NaN for rows in every fit (`folds` = -1)."""

    embeddings: np.ndarray
    probabilities: np.ndarray


class Judges:
    """K fitted judges and the fold of each train row, int16 (n,), -1 for rows that every judge was fitted on."""

    def __init__(
        self,
        judges: Sequence[Judge],
        folds: np.ndarray,
        *,
        classes: Sequence[str],
        shape: Shape,
        settings: config.Judges,
        encoder: config.Encoder,
        resolution: int | None,
        rows: str,
    ) -> None:
        self.judges, self.folds, self.classes = list(judges), folds, list(classes)
        self.mean, self.scale = np.zeros(1, np.float32), np.ones(1, np.float32)  # of the embeddings of train, (K, 1, d)
        self.shape, self.settings, self.encoder, self.rows = shape, settings, encoder, rows
        self.resolution = resolution

    @classmethod
    def fit(
        cls,
        train: Manifest,
        classes: Sequence[str],
        *,
        settings: config.Judges,
        encoder: config.Encoder = NONE,
        resolution: int | None = None,
        flips: str,
        seed: int,
        folder: Path,
    ) -> Judges:
        """Fit the judges on real train rows. `folder` keeps unfinished work (hidden files) and receives what `save` writes.

        `flips` is data.flips of params.yaml, `encoder` its section of that name. With a `resolution` judges see no more detail
        in any image than in one of so many pixels a side. Raises LeakError for a row that is not train.
        """
        images, labels = train.training_tensors(classes, "the judges")
        pixels = (images if resolution is None else at_resolution(images, resolution)).numpy()
        targets = labels.numpy()
        folds = assign_folds(targets, train.column("group"), settings.folds, seed)
        shape = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))
        looks = kind(settings.encoder)
        given = pixels if issubclass(looks, Fitted) else store.features(pixels, looks.made(shape, encoder))
        for k in range(settings.folds):
            file, seen = _file(folder, k), folds != k
            if file.exists():
                continue
            place, name, own = folder / f".judge-{k}", f"judge {k + 1}/{settings.folds}", derive(seed, "judge", k)
            if issubclass(looks, Fitted):
                looks.fit(
                    given[seen], targets[seen], len(classes), settings=settings, flips=flips, seed=own, folder=place, name=name,
                    rows=f"train rows of this project without fold {k}",
                ).save(file)  # fmt: skip
            else:
                Head.fit(
                    given[seen], targets[seen], len(classes), settings=settings, seed=own, folder=place, name=name
                ).save(file)  # fmt: skip
        members = _load(folder, shape, settings, encoder)
        judges = cls(
            members, folds, classes=classes, shape=shape, settings=settings, encoder=encoder,
            resolution=resolution, rows=_rows(train)
        )  # fmt: skip
        raw = judges.embed(images)
        judges.mean = raw.mean(1, keepdims=True)
        judges.scale = scale(raw.std(1, keepdims=True), fixed=issubclass(looks, Fixed))
        judges._save_shared(folder)
        return judges

    def save(self, folder: Path) -> None:
        """Write a file for each judge, and judges.safetensors: folds and scales, with classes and settings in the metadata."""
        for k, judge in enumerate(self.judges):
            (judge.encoder if isinstance(judge.encoder, Fitted) else judge.head).save(_file(folder, k))
        self._save_shared(folder)

    def _save_shared(self, folder: Path) -> None:
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in ("folds", "mean", "scale")}
        card = {
            "classes": self.classes,
            "shape": self.shape,
            "settings": self.settings.model_dump(),
            "encoder": self.encoder.model_dump(),
            "resolution": self.resolution,
            "rows": self.rows,
            "origins": [asdict(judge.encoder.origin) for judge in self.judges],
        }
        weights.save(folder / FILE, tensors, card)

    @classmethod
    def load(cls, folder: Path) -> Judges:
        """The judges that `save` wrote. Raises DataError where a file is missing, torn or of something else."""
        tensors, card = weights.load(folder / FILE)
        settings, encoder = config.Judges(**card["settings"]), config.Encoder(**card["encoder"])
        shape = (card["shape"][0], card["shape"][1], card["shape"][2])
        members = _load(folder, shape, settings, encoder)
        for judge, origin in zip(members, card["origins"], strict=True):
            if asdict(judge.encoder.origin) != origin:
                raise DataError(
                    f"the judges in {folder} were fitted with other weights of the encoder {settings.encoder}",
                    expected=f"weights {origin['weights']}",
                    remedy="run the stage judges",
                )
        folds, mean, scale = (tensors[name].numpy() for name in ("folds", "mean", "scale"))
        judges = cls(
            members, folds, classes=card["classes"], shape=shape, settings=settings, encoder=encoder,
            resolution=card["resolution"], rows=card["rows"]
        )  # fmt: skip
        judges.mean, judges.scale = mean, scale
        return judges

    def look(self, pixels: Tensor) -> Assessment:
        """What every judge says of uint8 images (n, c, h, w)."""
        images = (pixels if self.resolution is None else at_resolution(pixels, self.resolution)).numpy()
        encoders = {id(judge.encoder): judge.encoder for judge in self.judges}  # judges may share one
        features = {key: store.features(images, encoder) for key, encoder in encoders.items()}
        own = [features[id(judge.encoder)] for judge in self.judges]
        probabilities = [judge.head.probabilities(z) for judge, z in zip(self.judges, own, strict=True)]
        return Assessment((np.stack(own) - self.mean) / self.scale, np.stack(probabilities), len(encoders) == 1)

    def embed(self, pixels: Tensor) -> np.ndarray:
        """Embeddings (K, n, d) of uint8 images (n, c, h, w)."""
        return self.look(pixels).embeddings

    def probabilities(self, pixels: Tensor) -> np.ndarray:
        """Probabilities of the labels (K, n, k) of uint8 images (n, c, h, w)."""
        return self.look(pixels).probabilities

    def held_out(self, train: Manifest) -> HeldOut:
        """Each train row as assessed by the judge that has not seen it. Raises DataError for other rows than the fit had."""
        self.require_rows(train)
        said = self.look(train.images())
        unseen = (self.folds >= 0)[:, None]
        embeddings, probabilities = (x[self.folds, np.arange(len(train))] for x in (said.embeddings, said.probabilities))
        return HeldOut(np.where(unseen, embeddings, np.nan), np.where(unseen, probabilities, np.nan))

    def require_rows(self, train: Manifest) -> None:
        """Raise DataError unless `train` has the rows, in the order, that the judges were fitted on."""
        if _rows(train) != self.rows:
            raise DataError("the judges were fitted on other train rows", remedy="run the stage judges")


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


LEAST = 0.1  # of the mean deviation of features: what varies less is not standardised further


def scale(deviation: np.ndarray, *, fixed: bool) -> np.ndarray:
    """What features are divided by, from their deviations float32 (…, d) over the real train rows.

    Of an encoder that others trained some features hardly vary on these rows. They would be huge on the first image that has
    them.
    """
    if fixed:
        deviation = np.maximum(deviation, np.float32(LEAST) * deviation.mean(-1, keepdims=True))
    return np.asarray(deviation + np.float32(1e-6))


def _file(folder: Path, k: int) -> Path:
    return folder / f"judge-{k}.safetensors"


def _load(folder: Path, shape: Shape, settings: config.Judges, encoder: config.Encoder) -> list[Judge]:
    """The judges of which each has its file in `folder`."""
    looks, files = kind(settings.encoder), [_file(folder, k) for k in range(settings.folds)]
    if issubclass(looks, Fitted):
        return [Judge(one, one.head) for one in map(looks.load, files)]
    shared: Fixed = looks.made(shape, encoder)
    return [Judge(shared, Head.load(file)) for file in files]


def _rows(train: Manifest) -> str:
    """Hash of which images the rows are, in order."""
    names: Iterator[str] = iter(train.column("pixel_hash"))
    return hashlib.blake2b("\n".join(names).encode(), digest_size=16).hexdigest()
