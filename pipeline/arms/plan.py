"""Plans: the rows of a training run, how often each is drawn, and how images and loss are treated; and how an arm builds one.

Row i is drawn with probability q_i, its loss weighs w_i and has an offset o, so that what is minimised is

    L(f) = sum_i q_i w_i l(f(x_i) + o, y_i) / sum_i q_i w_i

A plan may end with a deferred schedule: the last steps with a q, w and o of their own, for the whole network or its last layer.
weighting.py says how q, w and o follow from the rows.

A real-only arm is a recipe (recipes.py) on the train rows. Let `best` be the best of them on validation. The others are

    synthetic             best, and accepted synthetic rows
    synthetic_unfiltered  the same fraction, from all rows of the pool
    replay                each row that `synthetic` adds is a train image of its class again, labelled in the same way; with a
                          teacher's soft labels, augmented and mixed as the teacher's recipe does it
    synthetic_only        accepted rows alone: the classification accuracy score (Ravuri & Vinyals, 2019)
    shuffled              `synthetic` with the labels of its added rows permuted among them: must not be a gain
    aa_control            best under other seeds: what no difference at all looks like

Resolution. A generator may work at fewer pixels than the classifier. Then blur would be the mark of a synthetic image. So each
draw of a train image takes it at the generator's resolution with a probability of one half, in every arm that adds rows, and
`replay` adds train images at that resolution.

Labels. An added row has the class it was made for (hard), or the soft labels p(y | x) of a teacher, the mean of the runs of the
best recipe (Hinton et al., 2015). The teacher's softmax(f) is a posterior under rho (weighting.py), so that the target of a row
whose offset is o' is softmax(log p + o').
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.arms import smote
from pipeline.arms.data import TrainingData
from pipeline.arms.recipes import DeferredRecipe, Mix, Recipe
from pipeline.arms.weighting import Part, Weighting, margins, weighting
from pipeline.core.seeds import numpy_rng

Labels = Literal["hard", "soft"]


@dataclass(frozen=True)
class DeferredSchedule:
    """The last `share` of the steps: how often each row is drawn then, how much its loss weighs, and its offset.

    With `head_only` the network's body stands still, its last layer is drawn anew, and the learning rate starts again.
    """

    share: float  # of the steps, in [0, 1]
    weights: Tensor  # float32 (n,), > 0
    draw: Tensor  # float64 (n,), sums to one
    offset: Tensor  # float32 (k,)
    added_offset: Tensor  # float32 (k,)
    head_only: bool


@dataclass(frozen=True)
class TrainingPlan:
    """Rows, how often each is drawn, how much its loss weighs, and how images and loss are treated."""

    images: Tensor  # uint8 (n, c, h, w), or float16 (n, 1 + v, d): features of views
    targets: Tensor  # int64 (n,)
    soft_labels: Tensor  # float32 (n, k): a teacher's p(y | x), or zeros where the row's label is certain
    weights: Tensor  # float32 (n,), > 0
    draw: Tensor  # float64 (n,), sums to one
    transform: str  # none | affine | flip_affine | trivial
    offset: Tensor  # float32 (k,), added to the logits in the loss
    added_offset: Tensor  # float32 (k,), the same for rows that were added
    n_added: int  # so many rows, the last ones, were added
    margin: Tensor  # float32 (k,), >= 0, taken off the label's logit in the loss
    cosine: float | None = None  # scale of a last layer that sees angles alone; None is a linear one
    mix: Mix = "none"
    mix_alpha: float = 0.0  # images are mixed by Beta(alpha, alpha), > 0; unused without a mix
    low: Tensor | None = None  # as images: what a draw takes in their place with a probability of one half
    deferred: DeferredSchedule | None = None

    def switch(self, steps: int) -> int:
        """The first of `steps` steps that belongs to the deferred schedule; `steps` where there is none."""
        return steps if self.deferred is None else steps - round(self.deferred.share * steps)

    def offsets(self, part: TrainingPlan | DeferredSchedule) -> Tensor:
        """float32 (n, k): each row's offset in this plan or in its deferred schedule."""
        n, k = len(self.targets), len(self.offset)
        added = torch.arange(n) >= n - self.n_added
        return torch.where(added[:, None], part.added_offset.expand(n, k), part.offset.expand(n, k))

    def soft_targets(self, offsets: Tensor) -> Tensor:
        """float32 (n, k) for offsets (n, k): softmax(log p + offset) of a teacher's soft labels p, or one at the label."""
        adjusted = self.soft_labels * offsets.softmax(1)
        certain = torch.nn.functional.one_hot(self.targets, offsets.shape[1]).float()
        taught = self.soft_labels.any(1, keepdim=True)
        return torch.where(taught, adjusted / adjusted.sum(1, keepdim=True).clamp(min=1e-30), certain)


@dataclass(frozen=True)
class Arm:
    """A recipe, and what is added to the real rows. Without real rows (`keeps_real`) classes are drawn as often as added."""

    name: str
    recipe: Recipe
    adds: Literal["nothing", "accepted", "unfiltered", "shuffled", "replay"] = "nothing"
    keeps_real: bool = True
    synthetic_fraction: float = 0.0
    labels: Labels = "hard"

    def build(self, data: TrainingData, seed: int) -> TrainingPlan:
        """The plan of this arm for one seed, which decides the points of SMOTE and what is replayed or shuffled."""
        soft = self.labels == "soft" and self.synthetic_fraction > 0
        recipe = self.recipe.student() if soft else self.recipe
        if recipe.transform == "none":
            data = data.as_they_are()
        k, added = data.n_classes, self._added(data, seed)
        adds = self.keeps_real and len(added.targets) > 0
        low = data.low_images if adds else None
        base = _Rows.certain(data.images, data.targets, k, low) if self.keeps_real else added
        beside = self._beside(data, added, recipe) if self.keeps_real else []
        if recipe.neighbours:
            points = smote.points(base.images, base.targets, k, recipe.neighbours, seed)
            base = base.and_(_Rows.certain(points.images, base.targets[points.rows], k))
        rows = base.and_(*(part for part, _ in beside))
        parts = [Part(part.targets, share) for part, share in beside]

        def weighted(part: Recipe | DeferredRecipe) -> Weighting:
            return weighting(base.targets, parts, k, balanced=part.balanced, beta=part.beta, tau=recipe.tau)

        deferred = None
        if (end := recipe.deferred) is not None:
            deferred = DeferredSchedule(end.share, *weighted(end), end.head_only)
        return TrainingPlan(
            images=torch.from_numpy(rows.images),
            targets=torch.from_numpy(rows.targets),
            soft_labels=torch.from_numpy(rows.soft_labels),
            n_added=len(rows.targets) - len(base.targets),
            transform=recipe.transform,
            margin=margins(np.bincount(base.targets, minlength=k), recipe.margin * (recipe.cosine or 1.0)),
            cosine=recipe.cosine,
            mix=recipe.mix,
            mix_alpha=recipe.mix_alpha,
            low=None if low is None else torch.from_numpy(rows.low),
            deferred=deferred,
            **weighted(recipe)._asdict(),
        )

    def _beside(self, data: TrainingData, added: _Rows, recipe: Recipe) -> list[tuple[_Rows, float]]:
        """What comes beside the real rows, each part with its share of the draws: augmented images, then the added rows."""
        fraction = self.synthetic_fraction if len(added.targets) else 0.0
        parts = [(_augmented(data), (1 - fraction) * recipe.distilled)] if recipe.distilled else []
        return [*parts, (added, fraction)] if fraction else parts

    def _added(self, data: TrainingData, seed: int) -> _Rows:
        """What this arm adds, class by class."""
        usable = np.ones_like(data.accepted) if self.adds == "unfiltered" else data.accepted
        none = self.adds == "nothing" or (self.keeps_real and self.synthetic_fraction == 0)
        added = np.zeros(0, np.int64) if none else np.flatnonzero(usable)
        added = added[np.argsort(data.pool_targets[added], kind="stable")]
        targets, taught = data.pool_targets[added], self.labels == "soft" and len(added) > 0
        if self.adds == "replay" and taught:
            return _augmented(data, low=True).in_the_classes_of(targets)
        train = data.images if data.low_images is None else data.low_images
        chosen = train[_replays(data, added, seed)] if self.adds == "replay" else data.pool_images[added]
        rows = _Rows.certain(chosen, targets, data.n_classes)
        if taught:
            assert data.pool_soft_labels is not None
            rows = replace(rows, soft_labels=data.pool_soft_labels[added].astype(np.float32))
        if self.adds == "shuffled":
            rows = replace(rows, targets=numpy_rng(seed, "shuffle").permutation(targets))
        return rows


@dataclass(frozen=True)
class _Rows:
    """Rows of a plan: its fields of these names."""

    images: np.ndarray  # uint8 (n, c, h, w), or float16 (n, 1 + v, d)
    targets: np.ndarray  # int64 (n,)
    soft_labels: np.ndarray  # float32 (n, k)
    low: np.ndarray  # as images, at the pool's resolution; the same where they have no other

    @classmethod
    def certain(cls, images: np.ndarray, targets: np.ndarray, k: int, low: np.ndarray | None = None) -> _Rows:
        """Rows whose labels are certain."""
        return cls(images, targets, np.zeros((len(targets), k), np.float32), images if low is None else low)

    def and_(self, *others: _Rows) -> _Rows:
        """These rows, then the others."""
        return _Rows(*(np.concatenate([getattr(rows, f.name) for rows in (self, *others)]) for f in fields(self)))

    def in_the_classes_of(self, targets: np.ndarray) -> _Rows:
        """For each of `targets` (a,) a row of its class; the rows of a class take turns."""
        out = np.empty(len(targets), np.int64)
        for c in np.unique(targets):
            wanted = targets == c
            out[wanted] = np.resize(np.flatnonzero(self.targets == c), np.count_nonzero(wanted))
        return _Rows(*(getattr(self, f.name)[out] for f in fields(self)))


def _augmented(data: TrainingData, *, low: bool = False) -> _Rows:
    """The augmented and mixed train images, with the teacher's soft labels; with `low` at the pool's resolution alone."""
    images, soft, lowered = data.augmented_images, data.augmented_soft_labels, data.low_augmented_images
    if low and lowered is not None:
        images, soft = lowered, data.low_augmented_soft_labels
    assert images is not None and data.augmented_targets is not None and soft is not None
    return _Rows(images, data.augmented_targets, soft.astype(np.float32), images if lowered is None else lowered)


def _replays(data: TrainingData, added: np.ndarray, seed: int) -> np.ndarray:
    """For each pool row of `added` (a,) a train row of its class, one of its sources where they are known.

    Each candidate is used as often as the others.
    """
    order = numpy_rng(seed, "replay").random(len(data.targets))
    used = np.zeros(len(data.targets))
    out = np.empty(len(added), np.int64)
    for i, row in enumerate(added):
        candidates = data.sources[data.first[row] : data.first[row + 1]]
        if not len(candidates):
            candidates = np.flatnonzero(data.targets == data.pool_targets[row])
        out[i] = candidates[np.argmin(used[candidates] + order[candidates])]
        used[out[i]] += 1
    return out


def synthetic_arms(
    recipe: Recipe, *, synthetic_fraction: float, labels: Labels, alone: Recipe | None = None
) -> Mapping[str, Arm]:
    """The arms of one generator, by name, for the fraction and the labels that validation chose.

    `alone` is the recipe of `synthetic_only`, where it is another than `recipe`: a student has no augmented rows there.
    """
    arm = Arm("synthetic", recipe, "accepted", synthetic_fraction=synthetic_fraction, labels=labels)
    return {
        "synthetic": arm,
        "synthetic_unfiltered": replace(arm, name="synthetic_unfiltered", adds="unfiltered"),
        "replay": replace(arm, name="replay", adds="replay"),
        "synthetic_only": Arm("synthetic_only", alone or recipe, "accepted", keeps_real=False),
    }


def null_arms(recipe: Recipe, *, synthetic_fraction: float) -> Mapping[str, Arm]:
    """Null controls, by name: arms that cannot be a gain. With synthetic fraction 0, `shuffled` takes half of the draws."""
    return {
        "shuffled": Arm("shuffled", recipe, "shuffled", synthetic_fraction=synthetic_fraction or 0.5),
        "aa_control": Arm("aa_control", recipe),
    }
