"""Arms: what a classifier is trained on, and nothing else.

An arm turns train rows, and perhaps a pool of synthetic rows, into a TrainingPlan. Arms differ in the plan alone: the
network's body, the optimiser, the number of steps and the seeds of each step's draws are the same for all, and a plan has no
field for them.

Row i is drawn with probability q_i and its loss is weighted by w_i, so that what is minimised is

    L(f) = sum_i q_i w_i l(f(x_i) + o, y_i) / sum_i q_i w_i

and the classes are seen with the prior  pi_y = sum_{i: y_i = y} q_i w_i / sum_i q_i w_i,  of real and synthetic rows together.

    real                      q uniform over rows, o = 0
    oversample                classes drawn evenly
    logit_adjustment          o_y = tau log pi_y (Menon et al., 2021, eq. 10)
    augment                   images transformed
    augment+logit_adjustment  both
    augment+logit_adjustment_strong  both, with a second, larger tau
    mixup                     pairs of images and targets mixed (Zhang et al., 2018, eq. 1)
    cutmix                    augment, a box of one image pasted into another, targets mixed by area (Yun et al., 2019, eq. 1)
    cutmix+logit_adjustment   both
    class_balanced            augment, and w_i over the effective number of its class's rows (Cui et al., 2019, section 4)
    ldam_drw                  augment; margins and a cosine last layer; `class_balanced` in the last steps (Cao et al., 2019)
    crt                       augment; in the last steps the last layer alone, anew, q even over classes (Kang et al., 2020)
    smote                     augment; classes filled with points between their own rows (Chawla et al., 2002)
    self_distillation         the student (below) of the best of these, on train images that are moved and mixed
    synthetic                 the best of the above, and accepted synthetic rows
    synthetic_unfiltered      the same fraction, from all rows of the pool
    replay                    each row that `synthetic` adds is a train image of its class again, labelled in the same way; with
                              a teacher's soft labels, moved and mixed as the teacher's recipe does
    synthetic_only            accepted rows alone: the classification accuracy score (Ravuri & Vinyals, 2019)
    shuffled                  `synthetic` with the labels of its added rows permuted among them: must not be a gain
    again                     the best real-only arm under other seeds: what no difference at all looks like

Let n_y be the rows of class y before any are added. Then

    class_balanced    w_i = (1 - beta) / (1 - beta^n_y), brought to mean one over the classes that have rows
    ldam_drw          s D_y is taken off the label's logit, D_y = C / n_y^(1/4), C so that the largest D_y is a setting;
                      logits are s cos(features, weights of the class)
    balanced softmax  (Ren et al., 2020)  -log n_y e^(f_y) / sum_j n_j e^(f_j)  is  l(f + log n, y), and a softmax does not see
                      the constant log sum_j n_j: it is logit adjustment with tau = 1, and no arm of its own

A plan may end with a deferred schedule: the last steps with a q, w and o of their own, for the whole network or its last layer.

Added rows. With synthetic fraction d, a share d of the draws goes to added rows, evenly over the classes that have some (their
prior pi'), and 1 - d to the others as without them; a student's augmented images count among the added rows. A network trained
with o alone learns f_y = log p(x | y) rho_y with rho = pi^(1 - tau).
The loss of added rows has an offset of its own for which the same f is best,

    o'_y = log pi'_y - log rho_y

so that adding rows shifts no prior, and what an arm gains is not what a logit offset gives too. A class that one of the two
parts lacks is ruled out in that part (an offset of NEVER), and so not unlearned there.

Labels. An added row has the class it was made for (hard), or the opinion p(y | x) of a teacher, the mean of the runs of the
best recipe (soft; Hinton et al., 2015). Their softmax(f) is a posterior under rho: the target is softmax(log p + o').

Students. An opinion is of an image as it is, and the teacher hands on what it learned from moved and mixed images: its student
neither moves nor mixes any row (`Recipe.student`). Self-distillation gives a share of the student's draws to train images that
were moved and mixed beforehand as the teacher's recipe does, with the teacher's soft labels of what came out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.config import Classifier
from pipeline.core.manifest import Manifest
from pipeline.core.seeds import numpy_rng
from pipeline.errors import LeakError

Mix = Literal["none", "mixup", "cutmix"]
Labels = Literal["hard", "soft"]
NEVER = -20.0  # an offset that rules a class out; minus infinity times a target of zero is not a number


@dataclass(frozen=True)
class DeferredSchedule:
    """The last `share` of the steps: how often each row is drawn then, how much its loss weighs, and the offset to that.

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

    images: Tensor  # uint8 (n, c, h, w)
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
        """float32 (n, k) for offsets (n, k): softmax(log p + offset) of the teacher's opinion p, or one at the label."""
        adjusted = self.soft_labels * offsets.softmax(1)
        certain = torch.nn.functional.one_hot(self.targets, offsets.shape[1]).float()
        judged = self.soft_labels.any(1, keepdim=True)
        return torch.where(judged, adjusted / adjusted.sum(1, keepdim=True).clamp(min=1e-30), certain)


@dataclass(frozen=True)
class DeferredRecipe:
    """How the last `share` of the steps treat their rows: `balanced`, `beta` as in Recipe, `head_only` as in the schedule."""

    share: float
    balanced: bool = False
    beta: float | None = None
    head_only: bool = False


@dataclass(frozen=True)
class Recipe:
    """How a plan treats its rows; as it stands, not at all."""

    balanced: bool = False  # classes are drawn evenly, and `beta` then changes nothing
    beta: float | None = None  # in [0, 1): rows weigh 1 / effective number of their class
    tau: float = 0.0
    transform: str = "none"
    mix: Mix = "none"
    mix_alpha: float = 0.0
    margin: float = 0.0  # of the class with the fewest rows, in units of a cosine where the last layer has one
    cosine: float | None = None
    neighbours: int = 0  # k of SMOTE; 0 makes no points
    distilled: float = 0.0  # in [0, 1): share of the draws for moved train images with a teacher's soft labels
    deferred: DeferredRecipe | None = None

    def student(self) -> Recipe:
        """What runs of this recipe teach: rows as they are, at the prior that the teacher ended with, and nothing else.

        Another prior than the teacher's would make its soft labels those of another posterior.
        """
        end = self.deferred or self
        return Recipe(balanced=end.balanced or self.neighbours > 0, beta=end.beta, tau=self.tau, distilled=self.distilled)


def recipes(config: Classifier) -> Mapping[str, Recipe]:
    """The real-only arms that need no teacher, by name."""
    augment, beta = Recipe(transform=config.augment), config.class_balanced_beta
    cutmix = replace(augment, mix="cutmix", mix_alpha=config.cutmix_alpha)
    return {
        "real": Recipe(),
        "oversample": Recipe(balanced=True),
        "logit_adjustment": Recipe(tau=config.tau),
        "augment": augment,
        "augment+logit_adjustment": replace(augment, tau=config.tau),
        "augment+logit_adjustment_strong": replace(augment, tau=config.tau_strong),
        "mixup": Recipe(mix="mixup", mix_alpha=config.mixup_alpha),
        "cutmix": cutmix,
        "cutmix+logit_adjustment": replace(cutmix, tau=config.tau),
        "class_balanced": replace(augment, beta=beta),
        # Cao et al. (2019), algorithm 1: re-weighting waits until the features have been learned from rows as they are.
        "ldam_drw": replace(
            augment, margin=config.ldam_margin, cosine=config.cosine_scale, deferred=DeferredRecipe(config.drw_share, beta=beta)
        ),
        # Kang et al. (2020), section 4, classifier re-training: features from rows as they are, decisions from even classes.
        "crt": replace(augment, deferred=DeferredRecipe(config.crt_share, balanced=True, head_only=True)),
        "smote": replace(augment, neighbours=config.smote_neighbours),
    }


@dataclass(frozen=True)
class TrainingData:
    """Rows that plans may be made of, checked and decoded: `TrainingData.of` is the only way here, and it lets no leak through.

    Arrays, so that a worker process can be handed them. `sources` (j,) and `first` (m + 1,) hold, for pool row i, the train
    rows of its own class that it came from, sources[first[i] : first[i + 1]]; none where they are unknown or all of the class.
    `pool_soft_labels` are what a teacher says of the pool's rows. `augmented_images` are train images, augmented and mixed as
    the teacher's recipe does, and `augmented_soft_labels` what the teacher says of them; for arms that have a teacher.
    `reserve_images` are real rows beside the train set; the first of a class are those that a short learning curve uses.
    """

    n_classes: int
    images: np.ndarray  # uint8 (n, c, h, w)
    targets: np.ndarray  # int64 (n,)
    pool_images: np.ndarray  # uint8 (m, c, h, w)
    pool_targets: np.ndarray  # int64 (m,)
    accepted: np.ndarray  # bool (m,)
    sources: np.ndarray  # int64 (j,)
    first: np.ndarray  # int64 (m + 1,)
    pool_soft_labels: np.ndarray | None = None  # float (m, k), rows sum to one
    augmented_images: np.ndarray | None = None  # uint8 (d, c, h, w)
    augmented_targets: np.ndarray | None = None  # int64 (d,)
    augmented_soft_labels: np.ndarray | None = None  # float (d, k), rows sum to one
    reserve_images: np.ndarray | None = None  # uint8 (r, c, h, w)
    reserve_targets: np.ndarray | None = None  # int64 (r,), sorted

    @classmethod
    def of(
        cls, train: Manifest, classes: Sequence[str], pool: Manifest | None = None, accepted: np.ndarray | None = None
    ) -> TrainingData:
        """`pool` are synthetic rows, `accepted` (m,) which of them passed the gate.

        Raises LeakError for a row of `train` that is not real or not of split train, and for a row of `pool` that is not
        synthetic or has a known source outside `train`.
        """
        images, targets = train.training_tensors(classes, "an arm")
        require_origin(train, "real")
        if pool is None or len(pool) == 0:
            none = np.zeros(0, np.int64)
            empty = np.zeros((0, *images.shape[1:]), np.uint8)
            return cls(
                len(classes), images.numpy(), targets.numpy(), empty, none, none.astype(bool), none, np.zeros(1, np.int64)
            )
        pool_images, pool_targets = pool.training_tensors(classes, "an arm")
        require_origin(pool, "synthetic")
        y, pool_y = targets.numpy(), pool_targets.numpy()
        sources, first = _sources(train, pool, y, pool_y)
        usable = np.ones(len(pool), bool) if accepted is None else np.asarray(accepted, bool)
        return cls(len(classes), images.numpy(), y, pool_images.numpy(), pool_y, usable, sources, first)

    def with_reserve(self, reserve: Manifest, classes: Sequence[str], *, most: int, seed: int) -> TrainingData:
        """This, and at most `most` rows of each class of `reserve`: the first ones of a permutation that the seed decides.

        Raises LeakError for a row that is not real or not of split reserve.
        """
        splits = set(reserve.table["split"].unique().to_pylist()) - {"reserve"}
        if splits:
            found = ", ".join(sorted(map(str, splits)))
            raise LeakError(f"a learning curve was handed rows of split {found}", expected="rows in reserve")
        require_origin(reserve, "real")
        targets = reserve.targets(classes).numpy()
        rows = [
            numpy_rng(seed, "reserve", name).permutation(np.flatnonzero(targets == c))[:most] for c, name in enumerate(classes)
        ]
        chosen = np.concatenate(rows)
        images = reserve.take(chosen).images().numpy() if len(chosen) else self.images[:0]
        return replace(self, reserve_images=images, reserve_targets=targets[chosen])

    def reserve_counts(self, extra: int) -> np.ndarray:
        """Rows of each class (k,) that `enlarged` would add: `extra`, or all there are."""
        held = np.zeros(0, np.int64) if self.reserve_targets is None else self.reserve_targets
        return np.minimum(np.bincount(held, minlength=self.n_classes), extra)

    def enlarged(self, extra: int) -> TrainingData:
        """This with the first `extra` rows of each class in reserve at the end of the train rows, and no reserve.

        The enlarged set is the train set: class priors and all that follows from them are counted on it.
        """
        assert self.reserve_images is not None and self.reserve_targets is not None
        _, first = np.unique(self.reserve_targets, return_index=True)
        rank = np.arange(len(self.reserve_targets)) - np.repeat(first, np.diff([*first, len(self.reserve_targets)]))
        images, targets = self.reserve_images[rank < extra], self.reserve_targets[rank < extra]
        return replace(
            self,
            images=np.concatenate([self.images, images]),
            targets=np.concatenate([self.targets, targets]),
            reserve_images=None,
            reserve_targets=None,
        )


def require_origin(rows: Manifest, origin: str) -> None:
    """Raise LeakError unless every row's origin is `origin`."""
    found = set(rows.table["origin"].unique().to_pylist()) - {origin}
    if found:
        raise LeakError(f"an arm was handed rows of origin {', '.join(sorted(map(str, found)))}", expected=f"{origin} rows")


def _sources(train: Manifest, pool: Manifest, targets: np.ndarray, pool_targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sources, first) of TrainingData. Raises LeakError for a source that is no train row."""
    column = pool.table["sources"].combine_chunks()
    known = pc.list_flatten(column)
    index = pc.index_in(known, value_set=train.table["sample_id"].combine_chunks())
    if index.null_count:
        foreign = known.filter(pc.is_null(index))[0].as_py()
        raise LeakError(f"a synthetic row came from {foreign}", expected="sources among the train rows alone")
    source, row = index.to_numpy(zero_copy_only=False).astype(np.int64), pc.list_parent_indices(column).to_numpy()
    own = targets[source] == pool_targets[row]
    source, row = source[own], row[own].astype(np.int64)
    class_sizes = np.bincount(targets, minlength=int(max(targets.max(), pool_targets.max())) + 1)
    some = np.bincount(row, minlength=len(pool)) < class_sizes[pool_targets]
    source, row = source[some[row]], row[some[row]]
    return source, np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(pool)))])


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
        recipe, k, added = self.recipe, data.n_classes, self._added(data, seed)
        if self.labels == "soft" and self.synthetic_fraction > 0:
            recipe = recipe.student()
        base, parts = added, list[tuple[_Rows, float]]()
        if self.keeps_real:
            base = _Rows.certain(data.images, data.targets, k)
            fraction = self.synthetic_fraction if len(added.targets) else 0.0
            if recipe.distilled:
                parts.append((_distilled(data), (1 - fraction) * recipe.distilled))
            if fraction:
                parts.append((added, fraction))
        if recipe.neighbours:
            points, ends = _smote(base.images, base.targets, k, recipe.neighbours, seed)
            base = base.and_(_Rows.certain(points, base.targets[ends], k))
        rows = base.and_(*(part for part, _ in parts))
        shares = [(part.targets, share) for part, share in parts]

        def weighting(balanced: bool, beta: float | None) -> _Weighting:
            return _weighting(base.targets, shares, k, balanced, beta, recipe.tau)

        deferred = None
        if (end := recipe.deferred) is not None:
            deferred = DeferredSchedule(end.share, *weighting(end.balanced, end.beta), end.head_only)
        return TrainingPlan(
            images=torch.from_numpy(rows.images),
            targets=torch.from_numpy(rows.targets),
            soft_labels=torch.from_numpy(rows.soft_labels),
            n_added=len(rows.targets) - len(base.targets),
            transform=recipe.transform,
            margin=_margin(np.bincount(base.targets, minlength=k), recipe.margin * (recipe.cosine or 1.0)),
            cosine=recipe.cosine,
            mix=recipe.mix,
            mix_alpha=recipe.mix_alpha,
            deferred=deferred,
            **weighting(recipe.balanced, recipe.beta)._asdict(),
        )

    def _added(self, data: TrainingData, seed: int) -> _Rows:
        """What this arm adds, class by class."""
        usable = np.ones_like(data.accepted) if self.adds == "unfiltered" else data.accepted
        none = self.adds == "nothing" or (self.keeps_real and self.synthetic_fraction == 0)
        added = np.zeros(0, np.int64) if none else np.flatnonzero(usable)
        added = added[np.argsort(data.pool_targets[added], kind="stable")]
        targets, taught = data.pool_targets[added], self.labels == "soft" and len(added) > 0
        if self.adds == "replay" and taught:
            return _distilled(data).in_the_classes_of(targets)
        chosen = data.images[replays(data, added, seed)] if self.adds == "replay" else data.pool_images[added]
        rows = _Rows.certain(chosen, targets, data.n_classes)
        if taught:
            assert data.pool_soft_labels is not None
            rows = replace(rows, soft_labels=data.pool_soft_labels[added].astype(np.float32))
        if self.adds == "shuffled":
            rows = replace(rows, targets=numpy_rng(seed, "shuffle").permutation(targets))
        return rows


@dataclass(frozen=True)
class _Rows:
    """Rows of a plan, as its fields of these names."""

    images: np.ndarray
    targets: np.ndarray
    soft_labels: np.ndarray

    @classmethod
    def certain(cls, images: np.ndarray, targets: np.ndarray, k: int) -> _Rows:
        """Rows whose labels are certain."""
        return cls(images, targets, np.zeros((len(targets), k), np.float32))

    def and_(self, *others: _Rows) -> _Rows:
        """These rows, then the others."""
        return _Rows(*(np.concatenate([getattr(rows, f.name) for rows in (self, *others)]) for f in fields(self)))

    def in_the_classes_of(self, targets: np.ndarray) -> _Rows:
        """For each of `targets` (a,) a row of its class, all of a class in turn."""
        out = np.empty(len(targets), np.int64)
        for c in np.unique(targets):
            wanted = targets == c
            out[wanted] = np.resize(np.flatnonzero(self.targets == c), np.count_nonzero(wanted))
        return _Rows(self.images[out], self.targets[out], self.soft_labels[out])


def _distilled(data: TrainingData) -> _Rows:
    """The train images that were moved and mixed, with what the teacher says of them."""
    assert data.augmented_images is not None and data.augmented_targets is not None and data.augmented_soft_labels is not None
    return _Rows(data.augmented_images, data.augmented_targets, data.augmented_soft_labels.astype(np.float32))


def replays(data: TrainingData, added: np.ndarray, seed: int) -> np.ndarray:
    """For each row (a,) of the pool a train row of its class, of its sources where they are known, all used equally often."""
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


class _Weighting(NamedTuple):
    """The fields of TrainingPlan and of DeferredSchedule of these names."""

    weights: Tensor
    draw: Tensor
    offset: Tensor
    added_offset: Tensor


def _weighting(
    base: np.ndarray, parts: Sequence[tuple[np.ndarray, float]], k: int, balanced: bool, beta: float | None, tau: float
) -> _Weighting:
    """Of rows with targets `base` (n,), then those of each of `parts`: targets (a,) and their share of the draws, evenly."""
    rows, weights = np.bincount(base, minlength=k), np.ones(len(base))
    if beta is not None:
        weights = _effective(rows, beta)[base]
    own = _spread(base, _even(rows) if balanced else rows / max(1, len(base)))
    prior = np.bincount(base, own * weights, k)
    # A class that has added rows alone is as frequent as one of one row.
    rho = np.where(rows > 0, prior / max(prior.sum(), 1e-12), 1 / max(1, len(base))) ** (1 - tau)
    even = [_even(np.bincount(targets, minlength=k)) for targets, _ in parts]
    beside = np.sum([share * mass for mass, (_, share) in zip(even, parts, strict=True)], axis=0) if parts else np.zeros(k)
    offset = np.where((rows == 0) & (beside > 0), NEVER, _log(prior, tau))
    added_offset = np.where((beside == 0) & (rows > 0), NEVER, _log(beside, 1.0) - np.log(rho))
    draw = [(1 - sum(share for _, share in parts)) * own]
    draw += [share * _spread(targets, mass) for (targets, share), mass in zip(parts, even, strict=True)]
    weights = np.concatenate([weights, *(np.ones(len(targets)) for targets, _ in parts)])
    to = torch.from_numpy
    return _Weighting(to(weights).float(), to(np.concatenate(draw)), to(offset).float(), to(added_offset).float())


def _even(rows: np.ndarray) -> np.ndarray:
    """Equal shares (k,) for the classes that have `rows` (k,)."""
    share: np.ndarray = (rows > 0).astype(float) / max(1, np.count_nonzero(rows))
    return share


def _spread(targets: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Each row's part of the mass (k,) of its class."""
    part: np.ndarray = (mass / np.maximum(np.bincount(targets, minlength=len(mass)), 1))[targets]
    return part


def _effective(n: np.ndarray, beta: float) -> np.ndarray:
    """(1 - beta) / (1 - beta^n) (k,) for classes of n (k,) rows, brought to mean one over the classes with n > 0.

    The class-balanced term of Cui et al. (2019), section 4: one over the effective number of proposition 1. beta = 0 weighs
    classes of one row or more alike; beta towards 1 gives 1 / n.
    """
    some = n > 0
    factor = np.where(some, (1 - beta) / (1 - beta ** np.where(some, n, 1.0)), 0.0)
    factor *= np.count_nonzero(some) / max(factor.sum(), 1e-12)
    return factor


def _margin(n: np.ndarray, largest: float) -> Tensor:
    """C / n^(1/4) (k,), Cao et al. (2019), section 3.2; C so that the greatest is `largest`; zero for a class without rows."""
    some, margin = n > 0, np.zeros(len(n))
    margin[some] = largest * (n[some].min(initial=n.max(initial=1)) / n[some]) ** 0.25
    return torch.from_numpy(margin).float()


def _smote(images: np.ndarray, targets: np.ndarray, k: int, neighbours: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(points, base): what fills each class of `targets` (n,) up to the largest one, and the row (m,) that each point is of.

    x = a + u (b - a), u uniform on [0, 1], for a row a and one of its `neighbours` nearest of the same class (Chawla et al.,
    2002, section 4.2), Euclidean in pixels; fewer where the class has fewer, and a class of one row is repeated. Each row is
    used as often as the others.
    """
    rows = np.bincount(targets, minlength=k)
    points, bases = [images[:0]], [np.zeros(0, np.int64)]
    for c in np.flatnonzero((rows > 0) & (rows < rows.max(initial=0))):
        r = numpy_rng(seed, "smote", int(c))
        own = np.flatnonzero(targets == c)
        a = r.permutation(len(own))[np.arange(rows.max() - rows[c]) % len(own)]
        b = _neighbours(images[own], neighbours, a, r)
        x, y = (images[own[i]].astype(np.float32) for i in (a, b))
        u = r.random((len(a), 1, 1, 1), np.float32)
        points.append(np.rint(x + u * (y - x)).astype(np.uint8))
        bases.append(own[a])
    return np.concatenate(points), np.concatenate(bases)


def _neighbours(images: np.ndarray, k: int, rows: np.ndarray, r: np.random.Generator) -> np.ndarray:
    """For each of `rows` (m,) one of its k nearest other images, evenly drawn; itself where there is no other."""
    from sklearn.neighbors import NearestNeighbors  # a second, and one arm alone needs it

    k = min(k, len(images) - 1)
    if k == 0:
        return rows
    flat = images.reshape(len(images), -1).astype(np.float32)
    # Without a query the search leaves each image itself out, its copies not.
    nearest = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(flat).kneighbors(return_distance=False)
    chosen: np.ndarray = nearest[rows, r.integers(k, size=len(rows))]
    return chosen


def _log(mass: np.ndarray, tau: float) -> np.ndarray:
    """tau log (mass / its sum) (k,); zero for a class without any, which is thereby learned never to be predicted."""
    prior = mass / max(mass.sum(), 1e-12)
    return np.asarray(tau * np.log(np.where(prior > 0, prior, 1.0)))


def synthetic_arms(
    recipe: Recipe, *, synthetic_fraction: float, labels: Labels, alone: Recipe | None = None
) -> Mapping[str, Arm]:
    """The arms of one generator, by name, for the fraction and the labels that validation chose.

    `alone` is the recipe of synthetic images without real ones, where it is another: a student has nothing of its own there.
    """
    arm = Arm("synthetic", recipe, "accepted", synthetic_fraction=synthetic_fraction, labels=labels)
    return {
        "synthetic": arm,
        "synthetic_unfiltered": replace(arm, name="synthetic_unfiltered", adds="unfiltered"),
        "replay": replace(arm, name="replay", adds="replay"),
        "synthetic_only": Arm("synthetic_only", alone or recipe, "accepted", keeps_real=False),
    }


def null_arms(recipe: Recipe, *, synthetic_fraction: float) -> Mapping[str, Arm]:
    """Arms that cannot be a gain, by name. Where validation chose no fraction, half of the draws have shuffled labels."""
    return {
        "shuffled": Arm("shuffled", recipe, "shuffled", synthetic_fraction=synthetic_fraction or 0.5),
        "aa_control": Arm("aa_control", recipe),
    }
