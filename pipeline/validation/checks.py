"""Checks on pixels: one number per image, one interval per class.

    image x with label c passes a check  <=>  low_c <= value(x) <= high_c

    form       1 if the image decodes to uint8 of the declared channels and size (hence finite and in range), else 0
    blank      largest standard deviation of a channel over the pixels, of 255; low = blank_std
    copy       distance in pixel space to the nearest real train image of any class, of the image under any of MOVES (mirrored,
               turned by a right angle, shifted); low from real images that are looked at in the same way
    duplicate  distance in pixel space to the nearest earlier image of the pool; low from real images
    moved_copy distance in feature space to the nearest real train image of any class; low from real images. Features change
               little under moves that are none of MOVES, such as turns by a few degrees and crops
    label      mean over the judges of p_k(c | x) / max_y p_k(y | x); low = agreement. The generative model's own posterior
               p(y | x) may be one more term: it knows the class from the inside, but has seen all train rows, which its own
               samples come from
    outlier    mean over the judges of the distance in feature space to the nearest train image of class c; high from real ones
    statistics the same in the space of the encoder `statistics`: brightness, colour, edges, blur and noise. A network that was
               trained to tell objects hardly sees them

The copies and the last two are the sides of one band: too near is memorised, too far is not of the class. All are calibrated on
real *train* rows alone, on what the checks would say of a new real image:

    pixel space    features of the encoder `near` (pixels, averaged down to 16), centred, of unit norm: d = sqrt(2 - 2 cos) in
                   [0, 2]. Real reference: each train row against the rows of other groups.
    moved_copy     d(x) = |e(x) - e(nearest row)| / sqrt(dim), e the embeddings of all judges. Real reference: as in pixel
                   space.
    feature space  d_k(x) = |e_k(x) - e_k(nearest row of class c that judge k was fitted on)| / sqrt(dim). Real reference: each
                   train row by the judge that has not seen it. `statistics`: all e_k are one, standardised over train.
    threshold      t_c = slack * (w_c q_c + (1 - w_c) q_pool,c),  w_c = n_c / (n_c + shrinkage)

q_c is the quantile over the class's own rows, q_pool that over the rows of all classes, a row of a class of n rows weighing
1 / (n + shrinkage). The nearest of 3 images is farther than the nearest of 600: q_pool,c of the outlier check takes all
distances to as many reference rows as class c has, or rare classes would be measured by the yardstick of common ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import config
from pipeline.core.images import at_resolution
from pipeline.core.manifest import Manifest
from pipeline.core.seeds import numpy_rng
from pipeline.encoders.base import Encoder
from pipeline.encoders.distances import CHUNK, Nearest, distances, nearest, parts
from pipeline.encoders.judges import Judges, scale
from pipeline.encoders.statistics import Statistics

Posterior = Callable[[Tensor], np.ndarray]  # uint8 (n, c, h, w) -> p(y | x) (n, k)
# In the order in which a reason is looked for.
CHECKS = ("form", "blank", "copy", "duplicate", "moved_copy", "label", "outlier", "statistics")
QUERIES = 400  # real rows of a class that calibrate, at most (per judge, for outliers)
SAME = 0.01  # pixel-space distance below which two images are one: rounding, a level or two of noise
FARTHEST = 2.0  # the largest pixel-space distance

Move = Callable[[Tensor], Tensor]  # (n, c, s, s) -> the same


def _moved(x: Tensor, *, quarters: int, mirrored: bool, down: int, right: int) -> Tensor:
    """Mirrored, turned by quarters, shifted by so many pixels; pixels at the border continue."""
    turned = torch.rot90(x.flip(3) if mirrored else x, quarters, (2, 3))
    padded, side = F.pad(turned, (1,) * 4, mode="replicate"), x.shape[-1]
    return padded[:, :, 1 - down : 1 - down + side, 1 - right : 1 - right + side]


AS_IT_IS: Sequence[Move] = [torch.clone]
MOVES: Sequence[Move] = [
    partial(_moved, quarters=quarters, mirrored=mirrored, down=down, right=right)
    for quarters in range(4)
    for mirrored in (False, True)
    for down in (0, -1, 1)
    for right in (0, -1, 1)
]


@dataclass(frozen=True)
class Band:
    """Lowest and highest value that passes, per class (k,), float64; -inf and inf where a side is open."""

    low: np.ndarray
    high: np.ndarray

    def passes(self, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """bool (n,); NaN does not pass."""
        return np.asarray((values >= self.low[targets]) & (values <= self.high[targets]))


@dataclass(frozen=True)
class Measured:
    """What the checks see of n images. `values` holds every check but `form` and `duplicate`, (n,) each."""

    values: dict[str, np.ndarray]
    nearest: np.ndarray  # index of the nearest train row, int64 (n,)
    directions: np.ndarray  # in pixel space, float16 (n, p)
    embeddings: np.ndarray  # float16 (n, K d)


class Checks:
    """The checks, calibrated on real train rows when built. Raises LeakError for a row that is not train."""

    def __init__(
        self,
        train: Manifest,
        judges: Judges,
        near: Encoder,
        classes: Sequence[str],
        *,
        settings: config.Validate,
        seed: int,
        posterior: Posterior | None = None,
    ) -> None:
        judges.require_rows(train)
        pixels, targets = train.training_tensors(classes, "the checks")
        self.judges, self.near, self.classes, self.seed = judges, near, list(classes), seed
        self.posterior = posterior
        self.targets, self.shape = targets.numpy(), tuple(pixels.shape[1:])
        reduced = self._reduced(pixels)
        self._directions = _directions(reduced)
        said = judges.look(pixels)
        self._embeddings, self._flat = said.embeddings, said.flat
        self._statistics = Statistics(judges.shape)
        plain = self._plain_features(pixels)
        self._mean, self._scale = plain.mean(0), scale(plain.std(0), fixed=True)
        self._plain = self._standardised(plain)
        self._shrinkage = settings.shrinkage
        # Share of wrong labels of held-out real rows that the label check refuses: what its silence is worth. Of the judges
        # alone: a posterior has seen all rows, and none is held out from it.
        held = judges.held_out(train).probabilities[judges.folds >= 0]
        ratio = held / held.max(1, keepdims=True)
        ratio[np.arange(len(held)), self.targets[judges.folds >= 0]] = np.nan
        self.label_power = float((ratio[np.isfinite(ratio)] < settings.agreement).mean()) if len(held) else 0.0
        self.counts = np.bincount(self.targets, minlength=len(classes))
        k, inf = len(classes), np.inf
        # Nearer than this to train is a share copy_quantile of new real images: what fidelity calls near copies.
        group, rows = np.unique(train.column("group"), return_inverse=True)[1], self._sample("copy", self.targets >= 0)
        apart, slack = (group[rows], group), settings.copy_slack

        def typical(near: Nearest) -> np.ndarray:
            return self._near_quantiles(rows, near.distance, settings.copy_quantile)

        self.typical_near = typical(self._nearest_train(reduced[rows], groups=apart))
        unmoved = typical(self._nearest_train(reduced[rows], AS_IT_IS, apart))
        moved = typical(nearest(self._flat[rows], self._flat, apart))
        outlier, unlike = (
            settings.outlier_slack * self._outlier_quantiles(space, settings.outlier_quantile)
            for space in (self._embeddings, self._plain)
        )
        self.bands = {
            "form": Band(np.ones(k), np.full(k, inf)),
            "blank": Band(np.full(k, settings.blank_std), np.full(k, inf)),
            "copy": Band(np.maximum(SAME, slack * self.typical_near), np.full(k, inf)),
            "duplicate": Band(np.maximum(SAME, slack * unmoved), np.full(k, inf)),
            "moved_copy": Band(settings.moved_slack * moved, np.full(k, inf)),
            "label": Band(np.full(k, settings.agreement), np.full(k, inf)),
            "outlier": Band(np.full(k, -inf), outlier),
            "statistics": Band(np.full(k, -inf), unlike),
        }

    def measure(self, pixels: Tensor, targets: np.ndarray, lent: np.ndarray | None = None) -> Measured:
        """All that is measured of images uint8 (n, c, h, w) with classes (n,), whatever other images the pool holds.

        `lent` int64 (n,) is the train row of another class in whose surroundings an image lies, -1 for none: it is no copy of
        that one, however small its object.
        """
        said = self.judges.look(pixels)
        probabilities = [*said.probabilities, *([self.posterior(pixels)] if self.posterior else [])]
        agreement = [p[np.arange(len(targets)), targets] / p.max(1) for p in probabilities]
        reduced = self._reduced(pixels)
        near = self._nearest_train(reduced, but=lent)
        values = {
            "blank": pixels.double().flatten(2).std(2, correction=0).amax(1).numpy(),
            "copy": near.distance,
            "moved_copy": nearest(said.flat, self._flat, but=lent).distance,
            "label": np.asarray(np.mean(agreement, axis=0, dtype=np.float64)),
            "outlier": self._outlier_distance(said.embeddings, self._embeddings, targets),
            "statistics": self._outlier_distance(self._standardised(self._plain_features(pixels)), self._plain, targets),
        }
        return Measured(values, near.row, _directions(reduced).astype(np.float16), said.flat.astype(np.float16))

    def directions(self, pixels: Tensor) -> np.ndarray:
        """Where images uint8 (n, c, h, w) lie in pixel space: float32 (n, p), of unit norm, zero for a constant image."""
        return _directions(self._reduced(pixels))

    def _reduced(self, pixels: Tensor) -> Tensor:
        """Images as pixel space sees them: float32 (n, c, s, s)."""
        features = torch.from_numpy(self.near.features(pixels.numpy()))
        side = math.isqrt(features.shape[1] // pixels.shape[1])
        return features.view(len(pixels), pixels.shape[1], side, side)

    def duplicates(self, directions: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Distance (n,) of each image to the nearest earlier one among n; 2 where none near it was found.

        `directions` (n, p) lie in pixel space, `hashes` (n,) are pixel hashes. Signs of random projections bring alike images
        together (Charikar, 2002): 8 orders by sign, each image compared with the 4 before it, so that the cost per image does
        not grow with n. Equal images are always found; pairs at 0.2 with a probability of about 0.99 among 1,000 images.
        """
        n = len(directions)
        out = np.full(n, FARTHEST)
        if n < 2:
            return out
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        out[first[inverse] != np.arange(n)] = 0.0
        centre = self._directions.mean(0)
        bits = int(np.ceil(np.log2(n))) + 2
        weights = 2.0 ** np.arange(bits)
        for table in range(8):
            planes = numpy_rng(self.seed, "duplicates", table).standard_normal((directions.shape[1], bits)).astype(np.float32)
            codes = np.concatenate([((part.astype(np.float32) - centre) @ planes > 0) @ weights for part in parts(directions)])
            order = np.argsort(codes, kind="stable")
            for behind in range(1, min(5, n)):
                for start in range(0, n - behind, CHUNK):
                    a = order[start : min(start + CHUNK, n - behind)]
                    b = order[start + behind : min(start + CHUNK, n - behind) + behind]
                    apart = np.linalg.norm(directions[a].astype(np.float32) - directions[b].astype(np.float32), axis=1)
                    np.minimum.at(out, np.maximum(a, b), apart)
        return out

    def thresholds(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """{check: {class: {"low", "high"}}}, None where a side is open."""

        def number(x: float) -> float | None:
            return float(x) if np.isfinite(x) else None

        return {
            check: {c: {"low": number(band.low[i]), "high": number(band.high[i])} for i, c in enumerate(self.classes)}
            for check, band in self.bands.items()
        }

    def _nearest_train(
        self,
        reduced: Tensor,
        moves: Sequence[Move] = MOVES,
        groups: tuple[np.ndarray, np.ndarray] | None = None,
        *,
        but: np.ndarray | None = None,
    ) -> Nearest:
        """The train row nearest to an image of (n, c, s, s) under any of `moves`; `groups`, `but` as in distances.nearest."""
        distance, index = np.full(len(reduced), np.inf), np.zeros(len(reduced), dtype=np.int64)
        for move in moves:
            queries = _directions(move(reduced))
            for start in range(0, len(queries), CHUNK):
                part = slice(start, start + CHUNK)
                cosine = queries[part] @ self._directions.T
                if groups is not None:
                    own = groups[0][part, None] == groups[1][None, :]
                    cosine[own | (cosine > 1 - SAME**2 / 2)] = -np.inf
                if but is not None:
                    passed = np.flatnonzero(but[part] >= 0)
                    cosine[passed, but[part][passed]] = -np.inf
                best = cosine.argmax(1)
                found = np.sqrt(np.maximum(0.0, 2 - 2 * cosine[np.arange(len(best)), best].astype(np.float64)))
                nearer = found < distance[part]
                distance[part] = np.where(nearer, found, distance[part])
                index[part] = np.where(nearer, best, index[part])
        return Nearest(distance, index)

    def _near_quantiles(self, rows: np.ndarray, distance: np.ndarray, q: float) -> np.ndarray:
        """(k,) of the distances (m,) of real rows (m,)."""
        told = np.isfinite(distance)  # not so for a row without another group
        rows, distance = rows[told], distance[told]
        return self._shrunk(np.repeat(distance[:, None], len(self.classes), 1), self.targets[rows], q, empty=0.0)

    def _plain_features(self, pixels: Tensor) -> np.ndarray:
        """float32 (n, d) of images (n, c, h, w), in as much detail as judges see."""
        detail = self.judges.resolution
        return self._statistics.features((pixels if detail is None else at_resolution(pixels, detail)).numpy())

    def _standardised(self, plain: np.ndarray) -> np.ndarray:
        """(K, n, d), for all judges the same."""
        rows = (plain - self._mean) / self._scale
        return np.broadcast_to(rows, (len(self._embeddings), *rows.shape))

    def _outlier_quantiles(self, space: np.ndarray, q: float) -> np.ndarray:
        """(k,) of the distances of train rows, as features (K, n, d), by the judge that has not seen them."""
        k = len(self.classes)
        found, classes = [np.empty((0, k))], [np.empty(0, dtype=np.int64)]
        for judge, embeddings in enumerate(space):
            seen = self.judges.folds != judge
            references = np.bincount(self.targets[seen], minlength=k)
            held = self._sample(f"outlier {judge}", ~seen)
            for c in np.unique(self.targets[held]):
                mine = held[self.targets[held] == c]
                rows = numpy_rng(self.seed, "references", judge, int(c)).permutation(np.flatnonzero(seen & (self.targets == c)))
                # Column m - 1 of the running minimum is the distance to the nearest of m reference rows.
                near = np.minimum.accumulate(distances(embeddings[mine], embeddings[rows]), axis=1)
                found.append(near[:, np.clip(references, 1, len(rows)) - 1])
                classes.append(np.full(len(mine), c))
        return self._shrunk(np.concatenate(found), np.concatenate(classes), q, empty=np.inf)

    def _shrunk(self, distances: np.ndarray, classes: np.ndarray, q: float, *, empty: float) -> np.ndarray:
        """t_c / slack (k,) from distances (n, k), column c as they would be for class c, of rows of `classes` (n,)."""
        if len(distances) == 0:
            return np.full(len(self.classes), empty)
        n = np.bincount(classes, minlength=len(self.classes))
        weights = 1.0 / (n[classes] + self._shrinkage)
        out = np.empty(len(self.classes))
        for c in range(len(self.classes)):
            order = np.argsort(distances[:, c], kind="stable")
            mass = np.cumsum(weights[order])
            pooled = distances[order[min(np.searchsorted(mass, q * mass[-1]), len(order) - 1)], c]
            own = np.quantile(distances[classes == c, c], q) if n[c] else pooled
            share = n[c] / (n[c] + self._shrinkage)
            out[c] = share * own + (1 - share) * pooled
        return out

    def _outlier_distance(self, features: np.ndarray, train: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """(n,) of images with classes (n,) from features (K, n, d) and those of the train rows (K, m, d)."""
        out = np.zeros(len(targets))
        for judge, (own, known) in enumerate(zip(features, train, strict=True)):
            seen = self.judges.folds != judge
            for c in np.unique(targets):
                rows = np.flatnonzero(targets == c)
                reference = known[seen & (self.targets == c)]
                for part in parts(rows):
                    out[part] += distances(own[part], reference).min(1) / len(features)
        return out

    def _sample(self, name: str, among: np.ndarray) -> np.ndarray:
        """At most QUERIES rows of each class where `among` holds, in order."""
        chosen = []
        for c in range(len(self.classes)):
            rows = np.flatnonzero(among & (self.targets == c))
            chosen.append(numpy_rng(self.seed, "calibrate", name, c).permutation(rows)[:QUERIES])
        return np.sort(np.concatenate(chosen))


def _directions(reduced: Tensor) -> np.ndarray:
    features = reduced.flatten(1)
    return np.asarray(F.normalize(features - features.mean(1, keepdim=True), eps=1e-3))
