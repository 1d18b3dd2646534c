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
    synthetic                 the best of the above, and accepted synthetic rows with weight w
    synthetic_unfiltered      the same dose and weight, from all rows of the pool
    replay                    each row that `synthetic` adds is a train image of its class again, with the same weight
    synthetic_only            accepted rows alone: the classification accuracy score (Ravuri & Vinyals, 2019)
    shuffled                  `synthetic` with the labels of its added rows permuted among them: must not be a gain
    again                     the best real-only arm under other seeds: what no difference at all looks like

Let n_y = sum_{i: y_i = y} w_i be the rows of class y by their weights, real ones (w = 1) and added ones together. Then

    class_balanced    w_i is multiplied by (1 - beta) / (1 - beta^n_y), brought to mean one over the classes that have rows
    ldam_drw          s D_y is taken off the label's logit, D_y = C / n_y^(1/4), C so that the largest D_y is a setting;
                      logits are s cos(features, weights of the class)
    balanced softmax  (Ren et al., 2020)  -log n_y e^(f_y) / sum_j n_j e^(f_j)  is  l(f + log n, y), and a softmax does not see
                      the constant log sum_j n_j: it is logit adjustment with tau = 1, and no arm of its own

A plan may end with a late phase: the last steps with a q, w and o of their own, for the whole network or for its last layer.

How added rows enter each recipe. Rows are drawn uniformly, real or not, and w weighs the loss. Logit adjustment needs the prior
of what the loss sees, which is pi above and not that of the real rows: the minimiser is f_y = log p(x | y) + const for tau = 1
whatever was added, and so adding rows alone cannot shift the prior of an adjusted arm. Where classes are drawn evenly,
weights are brought to mean one within each class, or else a class full of light rows would weigh less than the recipe promises.
SMOTE fills what added rows leave open, up to the rows of the largest class, and weighs classes evenly in the same way. Its
points lie between real rows where the class has any, so that `synthetic` and `replay` hold the same points.

Dose: let a_c rows of class c be usable, n_c of its real rows be in the plan, and m_c = min(a_c, max(0, fill_to - n_c)). Dose
d adds round(d m_c) of them, the first of a permutation that the seed decides: a smaller dose is a subset of a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.config import Classifier
from pipeline.errors import LeakError
from pipeline.manifest import Manifest
from pipeline.seeds import numpy_rng

Mix = Literal["none", "mixup", "cutmix"]


@dataclass(frozen=True)
class Late:
    """The last `share` of the steps: how often each row is drawn then, how much its loss weighs, and the offset to that.

    With `head_only` the network's body stands still, its last layer is drawn anew, and the learning rate starts again.
    """

    share: float  # of the steps, in [0, 1]
    weights: Tensor  # float32 (n,), > 0
    draw: Tensor  # float64 (n,), sums to one
    offset: Tensor  # float32 (k,)
    head_only: bool


@dataclass(frozen=True)
class TrainingPlan:
    """Rows, how often each is drawn, how much its loss weighs, and how images and loss are treated."""

    images: Tensor  # uint8 (n, c, h, w)
    targets: Tensor  # int64 (n,), or float32 (n, k) whose rows sum to one
    weights: Tensor  # float32 (n,), > 0
    draw: Tensor  # float64 (n,), sums to one
    transform: str  # none | affine | flip_affine | trivial
    offset: Tensor  # float32 (k,), added to the logits in the loss
    margin: Tensor  # float32 (k,), >= 0, taken off the label's logit in the loss
    cosine: float | None = None  # scale of a last layer that sees angles alone; None is a linear one
    mix: Mix = "none"
    mix_alpha: float = 0.0  # images are mixed by Beta(alpha, alpha), > 0; unused without a mix
    late: Late | None = None

    def switch(self, steps: int) -> int:
        """The first of `steps` steps that belongs to the late phase; `steps` where there is none."""
        return steps if self.late is None else steps - round(self.late.share * steps)

    @property
    def soft_targets(self) -> Tensor:
        """float32 (n, k)."""
        if self.targets.is_floating_point():
            return self.targets
        return torch.nn.functional.one_hot(self.targets, len(self.offset)).float()


@dataclass(frozen=True)
class LateRecipe:
    """How the last `share` of the steps treat their rows; `balanced` and `beta` as in Recipe, `head_only` as in Late."""

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
    late: LateRecipe | None = None


def recipes(config: Classifier) -> Mapping[str, Recipe]:
    """The real-only arms by name."""
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
            augment, margin=config.ldam_margin, cosine=config.cosine_scale, late=LateRecipe(config.drw_share, beta=beta)
        ),
        # Kang et al. (2020), section 4, classifier re-training: features from rows as they are, decisions from even classes.
        "crt": replace(augment, late=LateRecipe(config.crt_share, balanced=True, head_only=True)),
        "smote": replace(augment, neighbours=config.smote_neighbours),
    }


@dataclass(frozen=True)
class Material:
    """Rows that plans may be made of, checked and decoded: `Material.of` is the only way here, and it lets no leak through.

    Arrays, so that a worker process can be handed them. `sources` (j,) and `first` (m + 1,) hold, for pool row i, the train
    rows of its own class that it came from, sources[first[i] : first[i + 1]]; none where they are unknown or all of the class.
    """

    n_classes: int
    images: np.ndarray  # uint8 (n, c, h, w)
    targets: np.ndarray  # int64 (n,)
    pool_images: np.ndarray  # uint8 (m, c, h, w)
    pool_targets: np.ndarray  # int64 (m,)
    accepted: np.ndarray  # bool (m,)
    sources: np.ndarray  # int64 (j,)
    first: np.ndarray  # int64 (m + 1,)

    @classmethod
    def of(
        cls, train: Manifest, classes: Sequence[str], pool: Manifest | None = None, accepted: np.ndarray | None = None
    ) -> Material:
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


def require_origin(rows: Manifest, origin: str) -> None:
    """Raise LeakError unless every row's origin is `origin`."""
    found = set(rows.table["origin"].unique().to_pylist()) - {origin}
    if found:
        raise LeakError(f"an arm was handed rows of origin {', '.join(sorted(map(str, found)))}", expected=f"{origin} rows")


def _sources(train: Manifest, pool: Manifest, targets: np.ndarray, pool_targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sources, first) of Material. Raises LeakError for a source that is no train row."""
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
    """A recipe, and what is added to the real rows. `fill_to` counts real and added rows together."""

    name: str
    recipe: Recipe
    adds: Literal["nothing", "accepted", "unfiltered", "shuffled", "replay"] = "nothing"
    keeps_real: bool = True
    dose: float = 0.0
    weight: float = 1.0
    fill_to: int = 0

    def build(self, material: Material, seed: int) -> TrainingPlan:
        """The plan of this arm for one seed, which decides the rows of the dose and the points of SMOTE."""
        recipe, k = self.recipe, material.n_classes
        added = self._added(material, seed)
        real = np.arange(len(material.targets)) if self.keeps_real else np.zeros(0, np.int64)
        again = _replayed(material, added, seed) if self.adds == "replay" else None
        extra = material.pool_images[added] if again is None else material.images[again]
        images = np.concatenate([material.images[real], extra])
        labels = material.pool_targets[added]
        if self.adds == "shuffled":
            labels = numpy_rng(seed, "shuffle").permutation(labels)
        targets = np.concatenate([material.targets[real], labels])
        weights = np.concatenate([np.ones(len(real)), np.full(len(added), self.weight)])
        if recipe.neighbours:
            points, base = _smote(images, targets, len(real), k, recipe.neighbours, seed)
            images, targets = np.concatenate([images, points]), np.concatenate([targets, targets[base]])
            weights = _even(targets, np.concatenate([weights, weights[base]]), k)
        late = None
        if (end := recipe.late) is not None:
            late = Late(end.share, *_weighting(targets, weights, k, end.balanced, end.beta, recipe.tau), end.head_only)
        return TrainingPlan(
            images=torch.from_numpy(images),
            targets=torch.from_numpy(targets),
            transform=recipe.transform,
            margin=_margin(targets, weights, k, recipe.margin * (recipe.cosine or 1.0)),
            cosine=recipe.cosine,
            mix=recipe.mix,
            mix_alpha=recipe.mix_alpha,
            late=late,
            **_weighting(targets, weights, k, recipe.balanced, recipe.beta, recipe.tau)._asdict(),
        )

    def _added(self, material: Material, seed: int) -> np.ndarray:
        """Rows of the pool that this arm adds, int64, class by class."""
        if self.adds == "nothing":
            return np.zeros(0, np.int64)
        usable = np.ones_like(material.accepted) if self.adds == "unfiltered" else material.accepted
        chosen = []
        for c in range(material.n_classes):
            rows = np.flatnonzero(usable & (material.pool_targets == c))
            present = int((material.targets == c).sum()) if self.keeps_real else 0
            full = min(len(rows), max(0, self.fill_to - present))
            chosen.append(numpy_rng(seed, "dose", c).permutation(rows)[: round(self.dose * full)])
        return np.concatenate(chosen)


def _replayed(material: Material, added: np.ndarray, seed: int) -> np.ndarray:
    """For each added row a train row of its class, among its sources where they are known, each used as often as the others."""
    order = numpy_rng(seed, "replay").random(len(material.targets))
    used = np.zeros(len(material.targets))
    out = np.empty(len(added), np.int64)
    for i, row in enumerate(added):
        candidates = material.sources[material.first[row] : material.first[row + 1]]
        if not len(candidates):
            candidates = np.flatnonzero(material.targets == material.pool_targets[row])
        out[i] = candidates[np.argmin(used[candidates] + order[candidates])]
        used[out[i]] += 1
    return out


class _Weighting(NamedTuple):
    """The fields of TrainingPlan and of Late of these names."""

    weights: Tensor
    draw: Tensor
    offset: Tensor


def _weighting(targets: np.ndarray, weights: np.ndarray, k: int, balanced: bool, beta: float | None, tau: float) -> _Weighting:
    draw = np.full(len(targets), 1.0 / max(1, len(targets)))
    if beta is not None:
        weights = weights * _effective(np.bincount(targets, weights, k), beta)[targets]
    if balanced:
        rows = np.bincount(targets, minlength=k)
        draw = 1.0 / (rows[targets] * np.count_nonzero(rows))
        weights = _even(targets, weights, k)
    offset = _offset(targets, draw * weights, k, tau)
    return _Weighting(torch.from_numpy(weights).float(), torch.from_numpy(draw), offset)


def _even(targets: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """`weights` (n,) brought to mean one within each class."""
    rows = np.bincount(targets, minlength=k)
    even: np.ndarray = weights * (rows / np.maximum(np.bincount(targets, weights, k), 1e-12))[targets]
    return even


def _effective(n: np.ndarray, beta: float) -> np.ndarray:
    """(1 - beta) / (1 - beta^n) (k,) for classes of n (k,) rows, brought to mean one over the classes with n > 0.

    The class-balanced term of Cui et al. (2019), section 4: one over the effective number of proposition 1. beta = 0 weighs
    classes of one row or more alike; beta towards 1 gives 1 / n.
    """
    some = n > 0
    factor = np.where(some, (1 - beta) / (1 - beta ** np.where(some, n, 1.0)), 0.0)
    factor *= np.count_nonzero(some) / max(factor.sum(), 1e-12)
    return factor


def _margin(targets: np.ndarray, weights: np.ndarray, k: int, largest: float) -> Tensor:
    """C / n^(1/4) (k,), Cao et al. (2019), section 3.2; C so that the greatest is `largest`; zero for a class without rows."""
    n = np.bincount(targets, weights, k)
    some, margin = n > 0, np.zeros(k)
    margin[some] = largest * (n[some].min(initial=np.inf) / n[some]) ** 0.25
    return torch.from_numpy(margin).float()


def _smote(
    images: np.ndarray, targets: np.ndarray, n_real: int, k: int, neighbours: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(points, base): what fills each class of `targets` (n,) up to the largest one, and the row (m,) that each point is of.

    x = a + u (b - a), u uniform on [0, 1], for a row a and one of its `neighbours` nearest of the same class (Chawla et al.,
    2002, section 4.2), Euclidean in pixels; fewer where the class has fewer, and a class of one row is repeated. The first
    `n_real` rows are the real ones; added rows are used where a class has no other. Each row is used as often as the others.
    """
    rows = np.bincount(targets, minlength=k)
    points, bases = [images[:0]], [np.zeros(0, np.int64)]
    for c in np.flatnonzero((rows > 0) & (rows < rows.max(initial=0))):
        r = numpy_rng(seed, "smote", int(c))
        own = np.flatnonzero(targets == c)
        own = own[own < n_real] if own[0] < n_real else own
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


def _offset(targets: np.ndarray, mass: np.ndarray, n_classes: int, tau: float) -> Tensor:
    """tau log pi (k,); zero for a class without rows, which is thereby learned never to be predicted."""
    prior = np.bincount(targets, mass, n_classes) / max(mass.sum(), 1e-12)
    return torch.from_numpy(tau * np.log(np.where(prior > 0, prior, 1.0))).float()


def synthetic_arms(recipe: Recipe, *, dose: float, weight: float, fill_to: int) -> Mapping[str, Arm]:
    """The arms of one generator, by name, for the dose and weight that validation chose."""
    arm = Arm("synthetic", recipe, "accepted", dose=dose, weight=weight, fill_to=fill_to)
    return {
        "synthetic": arm,
        "synthetic_unfiltered": replace(arm, name="synthetic_unfiltered", adds="unfiltered"),
        "replay": replace(arm, name="replay", adds="replay"),
        "synthetic_only": Arm("synthetic_only", recipe, "accepted", keeps_real=False, dose=1.0, fill_to=fill_to),
    }


def null_arms(recipe: Recipe, *, dose: float, weight: float, fill_to: int) -> Mapping[str, Arm]:
    """Arms that cannot be a gain, by name. Where validation chose no dose, the labels of a full one are shuffled."""
    shuffled = Arm("shuffled", recipe, "shuffled", dose=dose or 1.0, weight=weight or 1.0, fill_to=fill_to)
    return {"shuffled": shuffled, "again": Arm("again", recipe)}
