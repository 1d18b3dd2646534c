"""Headroom: what is left for synthetic images to add, asked on validation rows before any generator is.

    errors    validation images that the best real-only arm gets wrong, mean over its runs
    weakest   its recall of each class, mean over its runs, the lowest first: the classes to generate for
    curve     what the most real images of the learning curve add to its score, where a curve is wanted

Nothing is left where the errors are fewer than FEW of the images, or where so many real images add less than LEAST: synthetic
images do not add more than real ones. The second may be the fault of a classifier that cannot use them, and is said so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.classifier import train
from pipeline.classifier.choice import ClassRecall, CurvePoint, Headroom, RealChoice
from pipeline.classifier.packed import Campaign, Run, scores_of
from pipeline.metrics.base import Metric

FEW = 0.02  # of the validation images
LEAST = 0.005  # of the score
SHOWN = 3  # classes


def measured(shared: Campaign, best: Sequence[Run], points: Sequence[CurvePoint]) -> Headroom:
    """Of the finished runs of the best real-only arm."""
    images, y = torch.from_numpy(shared.val_images), shared.val_targets
    right = np.mean([train.predict(train.load(run.file), images).argmax(1) == y for run in best], 0)
    recalls = [ClassRecall(index=int(c), recall=float(right[y == c].mean()), images=int((y == c).sum())) for c in np.unique(y)]
    score, metric = scores_of(best).mean, shared.metric
    last = points[-1] if points else None
    return Headroom(
        score=score,
        errors=float((1 - right).sum()),
        images=len(y),
        weakest=tuple(sorted(recalls, key=lambda row: row.recall)),
        curve=None if last is None else metric.merit(last.validation.mean) - metric.merit(score),
        curve_extra=None if last is None else last.extra,
    )


def nothing_left(found: Headroom) -> bool:
    """Whether synthetic images can add nothing that these validation rows would show."""
    return found.errors < FEW * found.images or (found.curve is not None and found.curve < LEAST)


def said(choice: RealChoice, metric: Metric, classes: Sequence[str]) -> str:
    """For a user, in a line or two. Empty where an older version made the choice."""
    found = choice.headroom
    if found is None:
        return ""
    arm, score = choice.best_real_arm, f"{found.score:.3f}"
    lines = [
        f"real images alone: {arm} has {score} {metric.title} on {found.images} validation images, {found.errors:.1f} wrong"
    ]
    if best := choice.best_of_modes(metric):
        lines.append(f"By mode: {', '.join(f'{mode} {choice.validation[own].mean:.3f}' for mode, own in best.items())}")
    if found.curve is not None:
        lines.append(f"{found.curve_extra} more real images a class add {100 * found.curve:+.1f} points")
    if found.errors < FEW * found.images:
        return ". ".join([*lines, "Synthetic images have nothing left to add: label images, or stop"])
    if nothing_left(found):
        return ". ".join([*lines, "Synthetic ones will not add more: look through an encoder, train longer, or stop"])
    weak = [row for row in found.weakest[:SHOWN] if row.recall < 1]
    names = ", ".join(f"{classes[row.index]} {row.recall:.2f} ({row.images} images)" for row in weak)
    return ". ".join([*lines, f"Weakest classes, to generate for: {names}"])
