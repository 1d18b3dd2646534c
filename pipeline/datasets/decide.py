"""The side of each row, decided on names, hashes and thumbnails alone.

    components   identical rows, near-duplicates and given groups, united: they must stay on one side
    left out     the same pixels under two labels; rows that an official split has on two sides
    sides        the official ones, or carved from the rest: test, then validation
    scarcity     thins train; dropped rows go to a carved test set if nothing of their group remains in train or val
    past         a row of the previous version keeps its side, together with its whole component
    reserve      rows that scarcity dropped and no test set took, if nothing of their group is in val or test. They count as
                 left out and have one use: to show how many more real images would have done what the synthetic ones did

Every choice is a function of the seed, the past, and the rows in the order of their source.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Params
from pipeline.core import seeds
from pipeline.datasets import duplicates, lists, scarcity, split
from pipeline.datasets.past import Past
from pipeline.datasets.rows import FORMATS, natural
from pipeline.datasets.split import OUT, RESERVE, SIDES, TEST, TRAIN, VAL
from pipeline.errors import DataError


@dataclass
class Decision:
    """The decision about the n rows of a source, in its order."""

    paths: pa.ChunkedArray  # (n,)
    sample_ids: pa.ChunkedArray  # (n,)
    classes: list[str]
    labels: np.ndarray  # (n,) index into classes, -1 if it is unknown
    side: np.ndarray  # (n,) TRAIN, VAL, TEST, RESERVE or OUT
    group: np.ndarray  # (n,) first row of the group
    stood: np.ndarray  # (n,) previous side of its component, TRAIN if there were several; -1 if it is new
    official_test: bool
    groups_known: bool = False
    near_duplicates: int = 0  # rows with at least one other row that shows the same
    reasons: dict[int, str] = field(default_factory=dict)  # why a readable row is OUT or RESERVE
    warnings: list[str] = field(default_factory=list)

    def counts(self, side: int) -> np.ndarray:
        """Number of rows of each class (k,) on `side`."""
        return np.bincount(self.labels[self.side == side], minlength=len(self.classes))

    def leave_out(self, rows: np.ndarray, reason: str) -> None:
        """Put `rows` OUT, for `reason`."""
        self.side[rows] = OUT
        self.reasons.update(dict.fromkeys(rows.tolist(), reason))


def decide(table: pa.Table, thumbnails: np.ndarray, params: Params, past: Past) -> Decision:
    """`table` has the columns intake.DECIDED_ON for n rows; `thumbnails` (m, d) belong to readable ones. Raises DataError."""
    readable = pc.is_null(table["reason"]).to_numpy()
    official = pc.index_in(table["split"], pa.array(SIDES)).fill_null(-1).to_numpy()
    classes, labels = _classes(table["label"])
    sample_ids = past.names(_sample_ids(table["path"], table["name"]), table["path"], table["pixel_hash"])
    _check_classes(classes, labels, readable, official)
    made = Decision(
        table["path"],
        sample_ids,
        classes,
        labels,
        side=np.where(readable, np.where(official < 0, TRAIN, official), OUT),
        group=np.arange(len(table)),
        stood=np.full(len(table), -1),
        official_test=bool((official == TEST).any()),
    )
    kept, given = _lists(table, params, made)

    rows = np.flatnonzero(readable)
    identical = rows[duplicates.equal_pairs(_codes(table["pixel_hash"])[rows])]
    near = rows[duplicates.near_pairs(thumbnails, params.split.near_duplicate_levels)]
    same = duplicates.components(len(table), identical)
    alike = duplicates.components(len(table), identical, near)
    made.near_duplicates = int((np.bincount(alike)[alike] > 1).sum())
    made.group = duplicates.components(len(table), identical, near, *given)

    made.stood = _lowest(past.sides(table["pixel_hash"]), made.group)

    _two_sides(made, same, alike, params.split.on_identical)
    _two_labels(made, same)
    _carve(made, official, kept, params)
    _thin(made, kept, params)
    _check_sides(made)
    return made


def _lowest(sides: np.ndarray, components: np.ndarray) -> np.ndarray:
    """The lowest of `sides` (n,) in each row's component, ignoring -1; -1 if there is none. Shape (n,)."""
    lowest = np.full(len(sides), OUT, dtype=np.int64)
    np.minimum.at(lowest, components[sides >= 0], sides[sides >= 0])
    found: np.ndarray = np.where(lowest == OUT, -1, lowest)[components]
    return found


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Integers (n,): equal for equal values, -1 for null."""
    encoded = pc.dictionary_encode(column).combine_chunks()
    return np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _classes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """(classes in order, index of each row's class, -1 if it is unknown)."""
    classes = natural(column.unique().drop_null().to_pylist())
    labels = pc.index_in(column, pa.array(classes, pa.string())).fill_null(-1).to_numpy()
    return classes, labels.astype(np.int64)


def _sample_ids(paths: pa.ChunkedArray, names: pa.ChunkedArray) -> pa.ChunkedArray:
    """The short name of each row if no other row has it, else its path. Raises DataError for a path that is listed twice."""
    codes = _codes(paths)
    twice = np.flatnonzero(np.bincount(codes)[codes] > 1) if len(codes) else codes
    if len(twice):
        raise DataError(f"{paths[int(twice[0])].as_py()!r} is listed twice", expected="each image once", remedy="remove one")
    short = _codes(names)
    ids = pc.if_else(pa.array(np.bincount(short)[short] == 1), names, paths) if len(short) else names
    return ids if pc.count_distinct(ids).as_py() == len(ids) else paths


def _check_classes(classes: list[str], labels: np.ndarray, readable: np.ndarray, official: np.ndarray) -> None:
    k = len(classes)
    if k < 2:
        found = f"one class, {classes[0]!r}" if k else "no images"
        raise DataError(f"the data have {found}", expected="images of two classes or more", remedy="check data.path")
    train = np.bincount(labels[(official <= TRAIN) & (labels >= 0)], minlength=k)
    usable = np.bincount(labels[readable & (official <= TRAIN)], minlength=k)
    for c, name in enumerate(classes):
        if not train[c]:
            where = SIDES[int(official[labels == c].max())]
            raise DataError(
                f"class {name!r} is in {where} but not in train",
                expected="train images of every class",
                remedy="add some, or name it in data.leave_out",
            )
        if not usable[c]:
            raise DataError(
                f"none of the {train[c]} images of class {name!r} can be read",
                expected=f"{FORMATS} files",
                remedy="replace them, or remove the class",
            )
        if usable[c] == 1:
            raise DataError(
                f"class {name!r} has a single image",
                expected="at least 2, to learn from and to test on",
                remedy="add images, or name it in data.leave_out",
            )


def _lists(table: pa.Table, params: Params, made: Decision) -> tuple[np.ndarray, list[np.ndarray]]:
    """(rows that scarcity.ids keeps, bool (n,); pairs of rows in one group of the source, and of data.groups)."""
    kept, given, files = np.zeros(len(table), dtype=bool), [table["group"]], lists.files(params)
    if files:
        names = lists.Names(*(table[column].to_pylist() for column in ("path", "name", "label", "split", "group")))
        if "data.groups" in files:
            found = lists.groups(files["data.groups"], names, len(table), made.warnings)
            given.append(pa.chunked_array([pa.array(found, pa.string())]))
        if "scarcity.ids" in files:
            kept = lists.ids(files["scarcity.ids"], names, made.classes, len(table), made.warnings)
    made.groups_known = any(column.null_count < len(column) for column in given)
    return kept & (made.labels >= 0), [_pairs(column) for column in given]


def _pairs(groups: pa.ChunkedArray) -> np.ndarray:
    """Pairs of rows of equal group, null aside."""
    rows = np.flatnonzero(groups.is_valid().to_numpy())
    pairs: np.ndarray = rows[duplicates.equal_pairs(_codes(groups)[rows])]
    return pairs


def _two_sides(made: Decision, same: np.ndarray, alike: np.ndarray, on_identical: str) -> None:
    """Leave rows out of a lower official side if a higher one holds them too."""
    inside = np.where(made.side == OUT, -1, made.side)
    identical = split.across(inside, same)
    if identical.any() and on_identical == "error":
        row = int(np.flatnonzero(identical)[0])
        twin = int(np.flatnonzero((same == same[row]) & (inside > inside[row]))[0])
        a, b = made.paths[row].as_py(), made.paths[twin].as_py()
        raise DataError(
            f"{a!r} of {SIDES[inside[row]]} and {b!r} of {SIDES[inside[twin]]} are the same image",
            expected="no image on two sides",
            remedy="remove one, or set split.on_identical=drop",
        )
    near, group = split.across(inside, alike), split.across(inside, made.group)
    for rows, what in (
        (identical, "identical to an image"),
        (near & ~identical, "near-duplicate of an image"),
        (group & ~near, "in one group with an image"),
    ):
        for side in (TRAIN, VAL):
            if (here := np.flatnonzero(rows & (inside == side))).size:
                above = " or ".join(SIDES[side + 1 :])
                made.leave_out(here, f"{what} of {above}")
                made.warnings.append(f"left out of {SIDES[side]}: {here.size} images, {what} of {above}")


def _two_labels(made: Decision, same: np.ndarray) -> None:
    """Leave out images whose pixels have two labels. An official test set stays as it is."""
    inside = np.flatnonzero(made.side != OUT)
    low, high = np.full(len(same), len(made.classes)), np.full(len(same), -1)
    np.minimum.at(low, same[inside], made.labels[inside])
    np.maximum.at(high, same[inside], made.labels[inside])
    rows = inside[(low < high)[same[inside]]]
    for row in rows[made.side[rows] != TEST].tolist():
        pair = f"{made.classes[low[same[row]]]} and {made.classes[high[same[row]]]}"
        made.leave_out(np.array([row]), f"the same pixels have the labels {pair}")
    if len(rows):
        made.warnings.append(
            f"{len(rows)} images have the same pixels as an image of another label; they are not used for training"
        )


def _carve(made: Decision, official: np.ndarray, kept: np.ndarray, params: Params) -> None:
    """Carve test and val from train if the data have none: first rows that were there before, then as many others as needed."""
    counts = made.counts(TRAIN)
    listed = np.isin(made.group, made.group[kept])  # images that a list keeps for train are carved last
    carved = [part for part in ((TEST, params.split.test, 1), (VAL, params.split.val, 0)) if not (official == part[0]).any()]
    for side, _, _ in carved:
        made.side[(made.side == TRAIN) & (made.stood == side)] = side
    for side, share, later in carved:
        rows = np.flatnonzero((made.side == TRAIN) & (made.stood < 0))
        have, bound = (
            made.counts(side),
            np.bincount(made.labels[(made.side == TRAIN) & (made.stood >= 0)], minlength=len(counts)),
        )
        goals = np.maximum(split.targets(counts, share) - have, 0)
        stay = np.maximum(split.remain(made.counts(TRAIN), later) - bound, 0)
        rng = seeds.numpy_rng(params.seed, "split", SIDES[side])
        taken = split.carve(made.labels[rows], made.group[rows], goals, stay, rng, listed[rows])
        made.side[rows[taken]] = side
        for c in np.flatnonzero(made.counts(side) == 0):
            made.warnings.append(f"class {made.classes[c]!r} is too small for an image in {SIDES[side]}, or is one group")
    lost = np.bincount(made.labels[kept & (made.side != TRAIN)], minlength=len(counts))
    for c in np.flatnonzero(lost):
        made.warnings.append(f"class {made.classes[c]!r}: {lost[c]} of the listed images are in val or test, or were left out")


def _thin(made: Decision, kept: np.ndarray, params: Params) -> None:
    """Apply scarcity to train."""
    if params.scarcity.kind == "as_is":
        return
    rows, available = np.flatnonzero(made.side == TRAIN), made.counts(TRAIN)
    if params.scarcity.kind == "ids":
        stays = kept[rows]
    else:
        counts = scarcity.wanted(params.scarcity, made.classes, available)
        for c in np.flatnonzero(counts > available):
            made.warnings.append(f"class {made.classes[c]!r} has {available[c]} train images, {counts[c]} were requested")
        stays = scarcity.choose(made.labels[rows], made.classes, counts, params.seed, made.stood[rows] == TRAIN)
    dropped = rows[~stays]
    made.leave_out(dropped, "scarcity")
    if params.scarcity.dropped == "test" and not made.official_test:
        bound = made.group[(made.side == TRAIN) | (made.side == VAL)]
        free = dropped[~np.isin(made.group[dropped], bound)]
        made.side[free] = TEST
        for row in free.tolist():
            del made.reasons[row]
    judged_on = made.group[(made.side == VAL) | (made.side == TEST)]  # including rows of `dropped` that went to test
    made.side[dropped[~np.isin(made.group[dropped], judged_on)]] = RESERVE


def _check_sides(made: Decision) -> None:
    for c in np.flatnonzero(made.counts(TRAIN) == 0):
        raise DataError(
            f"class {made.classes[c]!r} keeps no train image",
            expected="at least 1",
            remedy="correct groups or lists, lower split.near_duplicate_levels, or keep more in scarcity",
        )
    for side in (VAL, TEST):
        if not made.counts(side).any():
            raise DataError(f"{SIDES[side]} is empty", expected="images", remedy="add images or use smaller groups")
