"""The rows that plans may be made of. `TrainingData.of` is the only way in, and it lets no leak through.

train    origin real, split train
pool     origin synthetic, split train; each known source is a train row
reserve  origin real, split reserve: what scarcity left out, for the learning curve alone

What stands under the name of images is what the classifier is handed: images, or features of their views
(classifier/inputs.py). `look` makes it from rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from pipeline.core.manifest import Manifest
from pipeline.core.seeds import numpy_rng
from pipeline.errors import DataError, LeakError

Look = Callable[[Manifest], np.ndarray]  # n rows -> uint8 (n, c, h, w), or float16 (n, 1 + v, d): features of views


def pixels(rows: Manifest) -> np.ndarray:
    """The images as they are, uint8 (n, c, h, w)."""
    return rows.images().numpy()


@dataclass(frozen=True)
class TrainingData:
    """Rows that plans may be made of, checked and decoded, as arrays that a worker process can be handed.

    Pool row i came from the train rows sources[first[i] : first[i + 1]] of its own class; there are none where its sources are
    unknown or are the whole class. For arms with a teacher there are its soft labels of the pool, and train images that were
    augmented and mixed as the teacher's recipe does it, with the teacher's soft labels of them. The reserve holds real rows
    beside the train set; a short learning curve uses the first ones of each class.
    """

    n_classes: int
    images: np.ndarray  # uint8 (n, c, h, w), or float16 (n, 1 + v, d); so are the other images
    targets: np.ndarray  # int64 (n,)
    pool_images: np.ndarray  # (m, …)
    pool_targets: np.ndarray  # int64 (m,)
    accepted: np.ndarray  # bool (m,)
    sources: np.ndarray  # int64 (j,)
    first: np.ndarray  # int64 (m + 1,)
    pool_soft_labels: np.ndarray | None = None  # float (m, k), rows sum to one
    augmented_images: np.ndarray | None = None  # (d, …), of features one view
    augmented_targets: np.ndarray | None = None  # int64 (d,)
    augmented_soft_labels: np.ndarray | None = None  # float (d, k), rows sum to one
    low_images: np.ndarray | None = None  # (n, …), the train images at the resolution of the pool, where that is lower
    low_augmented_images: np.ndarray | None = None  # (d, …), of these the same as `augmented_images` of `images`
    low_augmented_soft_labels: np.ndarray | None = None  # float (d, k), rows sum to one
    reserve_images: np.ndarray | None = None  # (r, …)
    reserve_targets: np.ndarray | None = None  # int64 (r,), sorted

    @classmethod
    def of(
        cls,
        train: Manifest,
        classes: Sequence[str],
        pool: Manifest | None = None,
        accepted: np.ndarray | None = None,
        *,
        look: Look = pixels,
        low: Look | None = None,
    ) -> TrainingData:
        """`pool` are synthetic rows, `accepted` (m,) says which of them were accepted; without it all are.

        `low` is `look` at the resolution of the pool, where that is lower.

        Raises LeakError for a row of `train` that is not real or not of split train, and for a row of `pool` that is not
        synthetic or has a known source outside `train`.
        """
        for rows, origin in ((train, "real"), (pool, "synthetic")):
            if rows is not None and len(rows):
                rows.require_train("an arm")
                require_origin(rows, origin)
        images, y = look(train), train.targets(classes).numpy()
        if pool is None or len(pool) == 0:
            none = np.zeros(0, np.int64)
            return cls(len(classes), images, y, images[:0], none, none.astype(bool), none, np.zeros(1, np.int64))
        pool_y = pool.targets(classes).numpy()
        usable = np.ones(len(pool), bool) if accepted is None else np.asarray(accepted, bool)
        known = _sources(train, pool, y, pool_y)
        lowered = low(train) if low else None
        return cls(len(classes), images, y, look(pool), pool_y, usable, known.sources, known.first, low_images=lowered)

    def as_they_are(self) -> TrainingData:
        """This without moved views: of features the first view alone, of images themselves."""
        if self.images.ndim != 3:
            return self
        low = None if self.low_images is None else self.low_images[:, :1]
        return replace(self, images=self.images[:, :1], pool_images=self.pool_images[:, :1], low_images=low)

    def with_reserve(
        self, reserve: Manifest, classes: Sequence[str], *, most: int, seed: int, look: Look = pixels
    ) -> TrainingData:
        """This with at most `most` rows of each class of `reserve`: the first ones of a permutation that the seed decides.

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
        images = look(reserve.take(chosen)) if len(chosen) else self.images[:0]
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


class _Sources(NamedTuple):
    """The fields of TrainingData of these names."""

    sources: np.ndarray
    first: np.ndarray


def _sources(train: Manifest, pool: Manifest, targets: np.ndarray, pool_targets: np.ndarray) -> _Sources:
    """Of each pool row the train rows of its class that it came from. Raises LeakError for a source that is no train row."""
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
    return _Sources(source, np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(pool)))]))


def accepted_rows(pool: Manifest, checked: Sequence[Path]) -> np.ndarray:
    """bool (m,): which rows of the pool were accepted, by the files images.parquet in `checked`.

    Raises DataError where the files lack a row of the pool.
    """
    import pyarrow.parquet as pq

    tables = [pq.read_table(file, columns=["sample_id", "accepted"]).to_pydict() for file in checked]
    accepted = {name: passed for t in tables for name, passed in zip(t["sample_id"], t["accepted"], strict=True)}
    try:
        return np.array([accepted[sample_id] for sample_id in pool.table["sample_id"].to_pylist()], bool)
    except KeyError as error:
        raise DataError(
            f"{checked[0].parent}: lacks {error}",
            expected="a row for each image of the pool",
            remedy="run the stage validate",
        ) from None
