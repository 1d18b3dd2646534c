"""Arms: what a classifier is trained on, and nothing else.

An arm turns train rows, and perhaps a pool of synthetic rows, into a TrainingPlan. Arms differ in the plan alone: network,
optimiser, number of steps and the seeds of each step's draws are the same for all, and a plan has no field for them.

Row i is drawn with probability q_i and its loss is weighted by w_i, so that what is minimised is

    L(f) = sum_i q_i w_i l(f(x_i) + o, y_i) / sum_i q_i w_i

and the classes are seen with the prior  pi_y = sum_{i: y_i = y} q_i w_i / sum_i q_i w_i,  of real and synthetic rows together.

    real                      q uniform over rows, o = 0
    oversample                classes drawn evenly
    logit_adjustment          o_y = tau log pi_y (Menon et al., 2021, eq. 10)
    augment                   images transformed
    augment+logit_adjustment  both
    mixup                     pairs of images and targets mixed (Zhang et al., 2018)
    synthetic                 the best of the above, and accepted synthetic rows with weight w
    synthetic_unfiltered      the same dose and weight, from all rows of the pool
    replay                    each row that `synthetic` adds is a train image of its class again, with the same weight
    synthetic_only            accepted rows alone: the classification accuracy score (Ravuri & Vinyals, 2019)

How added rows enter each recipe. Rows are drawn uniformly, real or not, and w weighs the loss. Logit adjustment needs the prior
of what the loss sees, which is pi above and not that of the real rows: the minimiser is f_y = log p(x | y) + const for tau = 1
whatever was added, and so adding rows alone cannot shift the prior of an adjusted arm. Where classes are drawn evenly,
weights are brought to mean one within each class, or else a class full of light rows would weigh less than the recipe promises.

Dose: let a_c rows of class c be usable, n_c of its real rows be in the plan, and m_c = min(a_c, max(0, fill_to - n_c)). Dose
d adds round(d m_c) of them, the first of a permutation that the seed decides: a smaller dose is a subset of a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.config import Classifier
from pipeline.errors import LeakError
from pipeline.manifest import Manifest
from pipeline.seeds import numpy_rng


@dataclass(frozen=True)
class TrainingPlan:
    """Rows, how often each is drawn, how much its loss weighs, and how images and loss are treated."""

    images: Tensor  # uint8 (n, c, h, w)
    targets: Tensor  # int64 (n,), or float32 (n, k) whose rows sum to one
    weights: Tensor  # float32 (n,), > 0
    draw: Tensor  # float64 (n,), sums to one
    transform: str  # none | affine | flip_affine | trivial
    offset: Tensor  # float32 (k,), added to the logits in the loss
    mixup_alpha: float | None = None

    @property
    def soft_targets(self) -> Tensor:
        """float32 (n, k)."""
        if self.targets.is_floating_point():
            return self.targets
        return torch.nn.functional.one_hot(self.targets, len(self.offset)).float()


@dataclass(frozen=True)
class Recipe:
    """How a plan treats its rows."""

    balanced: bool = False
    tau: float = 0.0
    transform: str = "none"
    mixup_alpha: float | None = None


def recipes(config: Classifier) -> Mapping[str, Recipe]:
    """The real-only arms by name."""
    return {
        "real": Recipe(),
        "oversample": Recipe(balanced=True),
        "logit_adjustment": Recipe(tau=config.tau),
        "augment": Recipe(transform=config.augment),
        "augment+logit_adjustment": Recipe(transform=config.augment, tau=config.tau),
        "mixup": Recipe(mixup_alpha=config.mixup_alpha),
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
    adds: Literal["nothing", "accepted", "unfiltered", "replay"] = "nothing"
    keeps_real: bool = True
    dose: float = 0.0
    weight: float = 1.0
    fill_to: int = 0

    def build(self, material: Material, seed: int) -> TrainingPlan:
        """The plan of this arm for one seed, which decides the rows of the dose."""
        added = self._added(material, seed)
        real = np.arange(len(material.targets)) if self.keeps_real else np.zeros(0, np.int64)
        again = _replayed(material, added, seed) if self.adds == "replay" else None
        extra = material.pool_images[added] if again is None else material.images[again]
        targets = np.concatenate([material.targets[real], material.pool_targets[added]])
        weights = np.concatenate([np.ones(len(real)), np.full(len(added), self.weight)])
        draw = np.full(len(targets), 1.0 / max(1, len(targets)))
        if self.recipe.balanced:
            rows = np.bincount(targets, minlength=material.n_classes)
            draw = 1.0 / (rows[targets] * np.count_nonzero(rows))
            weights *= (rows / np.maximum(np.bincount(targets, weights, material.n_classes), 1e-12))[targets]
        return TrainingPlan(
            images=torch.from_numpy(np.concatenate([material.images[real], extra])),
            targets=torch.from_numpy(targets),
            weights=torch.from_numpy(weights).float(),
            draw=torch.from_numpy(draw),
            transform=self.recipe.transform,
            offset=_offset(targets, draw * weights, material.n_classes, self.recipe.tau),
            mixup_alpha=self.recipe.mixup_alpha,
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
