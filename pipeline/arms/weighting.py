"""Draws, weights, offsets and margins: how much each row and each class counts in the loss.

Row i is drawn with probability q_i and its loss weighs w_i, so that the classes are seen with the prior

    pi_y = sum_{i: y_i = y} q_i w_i / sum_i q_i w_i

Let n_y be the rows of class y before any are added, k the classes, tau, beta and the largest margin settings of the recipe.

    offset             o_y = tau log pi_y, added to the logits in the loss (Menon et al., 2021, eq. 10)
    effective numbers  w_i = (1 - beta) / (1 - beta^n_y), brought to mean one over the classes that have rows (Cui et al., 2019)
    margins            D_y = C / n_y^(1/4), taken off the label's logit (Cao et al., 2019); C makes the largest D_y the setting

Balanced softmax (Ren et al., 2020) is no treatment of its own: -log n_y e^(f_y) / sum_j n_j e^(f_j)  is  l(f + log n, y), and a
softmax does not see the constant log sum_j n_j. It is the offset with tau = 1.

Added rows. With synthetic fraction d, a share d of the draws goes to added rows, evenly over the classes that have some (their
prior is pi'), and 1 - d to the others as without them. The augmented images of a student count among the added rows. A network
trained with o alone learns f_y = log p(x | y) rho_y with rho = pi^(1 - tau). The loss of added rows has an offset of its own,
for which the same f is best:

    o'_y = log pi'_y - log rho_y

So adding rows shifts no prior, and what an arm gains is more than a logit offset gives. A class that one of the two parts lacks
is ruled out in that part (an offset of NEVER), so that it is not unlearned there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NEVER = -20.0  # an offset that rules a class out; minus infinity times a target of zero is not a number


class Part(NamedTuple):
    """Added rows of one kind."""

    targets: np.ndarray  # int64 (a,)
    share: float  # of all draws, in [0, 1]; evenly over the classes of `targets`


class Weighting(NamedTuple):
    """The fields of TrainingPlan and of DeferredSchedule of these names."""

    weights: Tensor  # float32 (n,), > 0
    draw: Tensor  # float64 (n,), sums to one
    offset: Tensor  # float32 (k,)
    added_offset: Tensor  # float32 (k,)


def weighting(
    base: np.ndarray, parts: Sequence[Part], n_classes: int, *, balanced: bool, beta: float | None, tau: float
) -> Weighting:
    """Of rows with targets `base` (n,), followed by those of each of `parts`."""
    k = n_classes
    rows, weights = np.bincount(base, minlength=k), np.ones(len(base))
    if beta is not None:
        weights = effective_numbers(rows, beta)[base]
    own = _spread(base, _even(rows) if balanced else rows / max(1, len(base)))
    prior = np.bincount(base, own * weights, k)
    # A class that has added rows alone is as frequent as one of one row.
    rho = np.where(rows > 0, prior / max(prior.sum(), 1e-12), 1 / max(1, len(base))) ** (1 - tau)
    even = [_even(np.bincount(part.targets, minlength=k)) for part in parts]
    added = np.sum([part.share * mass for mass, part in zip(even, parts, strict=True)], axis=0) if parts else np.zeros(k)
    offset = np.where((rows == 0) & (added > 0), NEVER, _log_prior(prior, tau))
    added_offset = np.where((added == 0) & (rows > 0), NEVER, _log_prior(added, 1.0) - np.log(rho))
    draw = [(1 - sum(part.share for part in parts)) * own]
    draw += [part.share * _spread(part.targets, mass) for part, mass in zip(parts, even, strict=True)]
    weights = np.concatenate([weights, *(np.ones(len(part.targets)) for part in parts)])
    to = torch.from_numpy
    return Weighting(to(weights).float(), to(np.concatenate(draw)), to(offset).float(), to(added_offset).float())


def effective_numbers(n: np.ndarray, beta: float) -> np.ndarray:
    """(1 - beta) / (1 - beta^n) (k,) for classes of n (k,) rows, brought to mean one over the classes with n > 0.

    The class-balanced term of Cui et al. (2019), section 4: one over the effective number of proposition 1. beta = 0 weighs
    classes of one row or more alike; beta towards 1 gives 1 / n.
    """
    some = n > 0
    factor = np.where(some, (1 - beta) / (1 - beta ** np.where(some, n, 1.0)), 0.0)
    factor *= np.count_nonzero(some) / max(factor.sum(), 1e-12)
    return factor


def margins(n: np.ndarray, largest: float) -> Tensor:
    """C / n^(1/4) (k,), Cao et al. (2019), section 3.2; C so that the greatest is `largest`; zero for a class without rows."""
    some, margin = n > 0, np.zeros(len(n))
    margin[some] = largest * (n[some].min(initial=n.max(initial=1)) / n[some]) ** 0.25
    return torch.from_numpy(margin).float()


def _even(rows: np.ndarray) -> np.ndarray:
    """Equal shares (k,) for the classes that have `rows` (k,)."""
    share: np.ndarray = (rows > 0).astype(float) / max(1, np.count_nonzero(rows))
    return share


def _spread(targets: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Each row's part of the mass (k,) of its class."""
    part: np.ndarray = (mass / np.maximum(np.bincount(targets, minlength=len(mass)), 1))[targets]
    return part


def _log_prior(mass: np.ndarray, tau: float) -> np.ndarray:
    """tau log (mass / its sum) (k,); zero for a class without any, which is thereby learned never to be predicted."""
    prior = mass / max(mass.sum(), 1e-12)
    return np.asarray(tau * np.log(np.where(prior > 0, prior, 1.0)))
