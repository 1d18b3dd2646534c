"""Near-duplicates across splits by features: test images that look like a train or validation image through the encoder.

`prepare` keeps on one side what has nearly the same thumbnail. An image that was cropped, turned or lit in another way has
another thumbnail and nearly the same features: e the encoder's, of images as they are,

    |e(test) - e(other)| / sqrt(d)  <  moved_slack q,   q the quantile copy_quantile of train images' distances to other groups

with both numbers from the section `validate`. It is told here and not by `prepare`, since test rows are looked at by `evaluate`
alone. Nothing is moved or left out: the user looks at the pairs, and gives one group to what shows one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from pipeline.config import Params
from pipeline.core.manifest import Manifest
from pipeline.core.seeds import numpy_rng
from pipeline.encoders import store
from pipeline.encoders.base import Fixed
from pipeline.encoders.distances import nearest

SHOWN = 3  # pairs in a warning
QUERIES = 4000  # train rows whose distances set the limit, at most


class Pair(NamedTuple):
    """A test image, and the image of another split that it looks like, by their sample_id."""

    test: str
    other: str
    split: str
    distance: float


def pairs(params: Params, encoder: Fixed, train: Manifest, val: Manifest, test: Manifest) -> list[Pair]:
    """The nearest ones first."""
    still = {store.STILL: torch.clone}
    sides = [store.embed(rows, encoder, still)[:, 0].astype(np.float32) for rows in (train, val, test)]
    group = np.unique(train.column("group"), return_inverse=True)[1]
    some = np.sort(numpy_rng(params.seed, "near").permutation(len(train))[:QUERIES])
    real = nearest(sides[0][some], sides[0], (group[some], group)).distance
    real = real[np.isfinite(real)]
    if not len(real):
        return []
    limit = params.validate_.moved_slack * float(np.quantile(real, params.validate_.copy_quantile))
    others = [(name, "train") for name in train.column("sample_id")] + [(name, "val") for name in val.column("sample_id")]
    found = nearest(sides[2], np.concatenate(sides[:2]))
    names = test.column("sample_id")
    close = [i for i in np.argsort(found.distance, kind="stable") if found.distance[i] < limit]
    return [
        Pair(str(names[i]), str(name), split, float(found.distance[i])) for i in close for name, split in [others[found.row[i]]]
    ]


def warning(found: Sequence[Pair], file: str) -> list[str]:
    """What a reader must know of them; [] where there are none."""
    if not found:
        return []
    some = ", ".join(f"{pair.test} ~ {pair.other} ({pair.split})" for pair in found[:SHOWN])
    return [f"{len(found)} test images look like one of another split through the encoder: {some}; see {file}"]
