"""Train, validation and test: stratified by class, whole groups on one side.

A side should hold target_c images of each class c. Groups are visited in random order. A group is taken if it brings the
side nearer to its targets, |taken - target|_1, and leaves every class what must remain. So sides are exact if groups are
small, and no group is ever on two.

An official split is kept as it is. A row that is on two of its sides is left out of the lower one (test > val > train), since
the result on a test image that was also learned from says nothing.
"""

from __future__ import annotations

import numpy as np

TRAIN, VAL, TEST, RESERVE, OUT = 0, 1, 2, 3, 4
SIDES = ("train", "val", "test")
FILES = (*SIDES, "reserve")


def carve(
    labels: np.ndarray, groups: np.ndarray, targets: np.ndarray, remain: np.ndarray, rng: np.random.Generator, last: np.ndarray
) -> np.ndarray:
    """Rows of a new side: bool (n,).

    `labels` (n,) are in 0 ... k-1, `groups` (n,) any integers. `targets` and `remain` (k,) are the numbers of images of each
    class that the side should hold and that the rest must keep. Groups with a row where `last` (n,) holds come after the
    others, and those with such rows of many classes come last.
    """
    taken = np.zeros(len(labels), dtype=bool)
    if not len(labels):
        return taken
    _, group = np.unique(groups, return_inverse=True)
    members = _members(group, labels)
    late = np.bincount(np.unique(np.stack([group[last], labels[last]]), axis=1)[0], minlength=len(members))
    order = rng.permutation(len(members))
    order = order[np.argsort(late[order], kind="stable")]
    have, left = [0] * len(targets), np.bincount(labels, minlength=len(targets)).tolist()
    wanted, least = targets.tolist(), remain.tolist()
    chosen = np.zeros(len(members), dtype=bool)

    def take(one: int) -> None:
        chosen[one] = True
        for c, m in members[one]:
            have[c] += m
            left[c] -= m

    for one in order.tolist():
        nearer = sum(abs(have[c] + m - wanted[c]) - abs(have[c] - wanted[c]) for c, m in members[one]) < 0
        if nearer and all(left[c] - m >= least[c] for c, m in members[one]):
            take(one)
    by_size = sorted(order.tolist(), key=lambda one: sum(m for _, m in members[one]))
    for c in range(len(wanted)):  # a class whose groups are all large still gets its smallest one
        for one in by_size if wanted[c] and not have[c] else ():
            if any(own == c for own, _ in members[one]) and all(left[o] - m >= 1 for o, m in members[one]):
                take(one)
                break
    taken[:] = chosen[group]
    return taken


def _members(group: np.ndarray, labels: np.ndarray) -> list[list[tuple[int, int]]]:
    """The (class, number of images) pairs of each group."""
    k = int(labels.max()) + 1
    cells, counts = np.unique(group.astype(np.int64) * k + labels, return_counts=True)
    members: list[list[tuple[int, int]]] = [[] for _ in range(int(group.max()) + 1)]
    for cell, count in zip(cells.tolist(), counts.tolist(), strict=True):
        members[cell // k].append((cell % k, count))
    return members


def targets(counts: np.ndarray, share: float) -> np.ndarray:
    """Images of each class (k,) for a side that holds `share` of `counts`: at least one if the class has two."""
    wanted: np.ndarray = np.maximum(np.rint(counts * share), counts >= 2).astype(np.int64)
    return wanted


def remain(counts: np.ndarray, later: int) -> np.ndarray:
    """Images of `counts` (k,) that must stay: two for train and one for each of `later` sides, as far as they suffice."""
    left: np.ndarray = np.clip(counts - 1, 1, 2 + later)
    return left


def across(side: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Rows of a lower official side whose component is also on a higher one (test > val > train), bool (n,)."""
    highest = np.full(len(side), -1, dtype=np.int64)
    np.maximum.at(highest, components, side)
    below: np.ndarray = side < highest[components]
    return below
