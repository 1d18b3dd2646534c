"""The learning curve: how the best real-only arm does with m more real images of each class.

It is trained once more for each m of params.arms.curve, on the train rows and m rows a class of those that scarcity left out,
with all seeds and equally many steps. Where it is a student, its teacher learns from the enlarged rows too. The rows of a
smaller m are among those of a larger one. An m that adds no row to the one before is passed over. Nothing is chosen by these
runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.arms import Arm
from pipeline.arms.data import Look
from pipeline.classifier.choice import CurvePoint
from pipeline.classifier.packed import Campaign, Run, runs_of, scores_of, train_all
from pipeline.classifier.teaching import taught
from pipeline.core.prepared import Prepared
from pipeline.errors import LeakError


def with_reserve(shared: Campaign, prepared: Prepared, most: int, look: Look) -> Campaign:
    """`shared` with at most `most` rows in reserve of each class, as `look` has them.

    Raises LeakError where one of them is of a group that stands in the validation rows too.
    """
    reserve = prepared.reserve()
    if common := set(reserve.column("group")) & set(prepared.val().column("group")):
        raise LeakError(
            f"rows in reserve share group {min(common)} with validation rows", expected="groups on one side",
            remedy="run the stage prepare",
        )  # fmt: skip
    data = shared.data.with_reserve(reserve, prepared.classes, most=most, seed=shared.seed, look=look)
    return replace(shared, data=data)


def points(
    shared: Campaign, extra: Sequence[int], best: Sequence[Run], teacher: Sequence[Run], folder: Path
) -> tuple[CurvePoint, ...]:
    """Train the points for each m of `extra`, ascending, into `folder`/<m>: the recipe of `best` with all its seeds.

    `teacher` are the runs whose student `best` may be.
    """
    recipe, seeds, before = best[0].arm.recipe, range(len(best)), 0
    found = list[CurvePoint]()
    for m in extra:
        added = shared.data.reserve_counts(m)
        if added.sum() > before:
            here, place = replace(shared, data=shared.data.enlarged(m)), folder / str(m)
            if recipe.distilled:
                own = runs_of(Arm(f"curve/{m}/teacher", teacher[0].arm.recipe), seeds, place / "teacher")
                train_all(here, own)
                here = taught(here, own)
            runs = runs_of(Arm(f"curve/{m}", recipe), seeds, place)
            train_all(here, runs)
            found.append(CurvePoint(extra=m, added=tuple(added.tolist()), validation=scores_of(runs)))
        before = added.sum()
    return tuple(found)
