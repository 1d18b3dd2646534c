"""Which runs are trained, and what validation chooses among them: choose, plan, run, record.

Real-only. Every arm of params.arms.real is trained with every seed, in every mode of the classifier. Runs are compared by the
mean of evaluate.metric on validation rows. The best recipe of a mode is its teacher, whose runs give the soft labels.
`self_distillation` comes after it, being that teacher's student. The best of all these arms is the best real-only arm. What
comes after it stays in its mode. curve.py has the learning curve.

With a pool. `synthetic` is tried with every fraction and kind of labels, by the first seeds, added to the best real-only arm.
Fraction 0 is that arm's own runs. The best mean score wins; of equal ones the smaller fraction, then the first kind of
labels in params.arms. Then every arm of the pool is trained with all seeds, and the null controls where they are wanted. Runs
that a trial has made already are kept.

Validation rows are scored and nothing else: no weight, threshold or epoch comes from them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from pipeline.arms import Arm, Labels, Recipe, TrainingData, null_arms, recipe_of, synthetic_arms
from pipeline.classifier import curve, headroom
from pipeline.classifier.choice import Missing, PoolChoice, RealChoice, Trial
from pipeline.classifier.packed import Campaign, Run, runs_of, scores_of, train_all
from pipeline.classifier.teaching import taught
from pipeline.config import SELF_DISTILLATION, Arms
from pipeline.core import work
from pipeline.metrics.base import Metric

K = TypeVar("K", bound=Hashable)


def real_only(modes: Sequence[Campaign], arms: Arms, folder: Path) -> None:
    """Train the real-only arms into `folder`, and the learning curve of the best one, and record the choice there.

    `modes` has a campaign for each mode of the classifier.
    """
    trained = [_real_arms(shared, arms, folder) for shared in modes]
    runs = {name: own for of_mode, _ in trained for name, own in of_mode.items()}
    best = _best(runs, modes[0].metric)
    shared, teacher = next((shared, t) for shared, (own, t) in zip(modes, trained, strict=True) if best in own)
    points = curve.points(shared, arms.curve, runs[best], runs[teacher], folder / "curve")
    RealChoice(
        mode=shared.mode,
        best_real_arm=best,
        teacher=teacher,
        validation={name: scores_of(of) for name, of in runs.items()},
        curve=points if arms.curve else None,
        headroom=headroom.measured(shared, runs[best], points),
    ).write(folder)


def _real_arms(shared: Campaign, arms: Arms, folder: Path) -> tuple[dict[str, list[Run]], str]:
    """The finished runs of the real-only arms of one mode, by arm, and the arm that is the teacher."""

    def planned(arm: str, teacher: str = "") -> list[Run]:
        return _planned_real(shared, arm, teacher, arms, folder)

    runs = {shared.prefix + arm: planned(arm) for arm in arms.real if arm != SELF_DISTILLATION}
    train_all(shared, _all(runs))
    teacher = _best(runs, shared.metric)
    if SELF_DISTILLATION in arms.real:
        student = planned(SELF_DISTILLATION, teacher)
        train_all(taught(shared, runs[teacher]), student)
        runs[shared.prefix + SELF_DISTILLATION] = student
    return runs, teacher


def _planned_real(shared: Campaign, arm: str, teacher: str, arms: Arms, folder: Path) -> list[Run]:
    """The runs of a real-only arm, called as in config.REAL_ARMS. `teacher` has its prefix, as what was chosen has."""
    name = shared.prefix + arm
    recipe = recipe_of(shared.config, arm, teacher.removeprefix(shared.prefix))
    return runs_of(Arm(name, recipe), range(arms.seeds), folder / name)


def with_pool(shared: Campaign, arms: Arms, real: Path, folder: Path, *, fill_to: int) -> None:
    """Train the arms of a pool into `folder`, with what validation chooses, and record the choice there.

    `real` is the folder of the real-only runs; a class is short with fewer than `fill_to` real and accepted images together.
    Raises DataError where the choice in `real` is missing.
    """
    basis = _Basis.read(shared, arms, real)
    some = bool(shared.data.accepted.any())
    if basis.recipe.distilled or (some and "soft" in arms.labels):
        shared = taught(shared, basis.teacher)

    # Choose: synthetic fraction and labels.
    trials = _trials(basis, arms, folder / ".choice", some=some)
    train_all(shared, _all(trials))
    chosen = _best(trials, shared.metric)

    # Plan every arm that has them, with all seeds.
    runs = _planned(basis, chosen, arms, folder, some=some)

    # Run those that are not trained yet.
    _keep(basis, chosen, trials[chosen], runs)
    train_all(shared, _all(runs))

    # Record.
    PoolChoice(
        best_real_arm=basis.name,
        synthetic_fraction=chosen.synthetic_fraction,
        labels=chosen.labels,
        grid=tuple(Trial(**setting._asdict(), score=scores_of(of).mean) for setting, of in trials.items()),
        validation={name: scores_of(of) for name, of in runs.items()},
        missing=_missing(shared.data, fill_to),
    ).write(folder)


class _Setting(NamedTuple):
    """What validation chooses of a pool."""

    synthetic_fraction: float
    labels: Labels


class _Basis(NamedTuple):
    """What synthetic images are added to: the finished runs of the best real-only arm, and of its teacher."""

    best: list[Run]
    teacher: list[Run]

    @classmethod
    def read(cls, shared: Campaign, arms: Arms, real: Path) -> _Basis:
        """From the choice in the folder `real`."""
        choice = RealChoice.read(real)

        def finished(name: str) -> list[Run]:
            return _planned_real(shared, name.removeprefix(shared.prefix), choice.teacher, arms, real)

        return cls(finished(choice.best_real_arm), finished(choice.teacher))

    @property
    def name(self) -> str:
        """Of the best real-only arm."""
        return self.best[0].arm.name

    @property
    def recipe(self) -> Recipe:
        """Of the best real-only arm."""
        return self.best[0].arm.recipe


def _trials(basis: _Basis, arms: Arms, folder: Path, *, some: bool) -> dict[_Setting, list[Run]]:
    """The runs to choose by, in the order in which the first of equals wins. Without `some` accepted row fraction 0 alone."""
    fractions = [fraction for fraction in sorted(set(arms.synthetic_fractions)) if fraction and some]
    settings = [_Setting(fraction, labels) for fraction in fractions for labels in dict.fromkeys(arms.labels)]
    found: dict[_Setting, list[Run]] = {}
    if 0.0 in arms.synthetic_fractions or not settings:
        found[_Setting(0.0, "hard")] = basis.best[: arms.selection_seeds]
    for setting in settings:
        arm = synthetic_arms(basis.recipe, **setting._asdict())["synthetic"]
        found[setting] = runs_of(arm, range(arms.seeds)[: arms.selection_seeds], folder / "-".join(map(str, setting)))
    return found


def _planned(basis: _Basis, chosen: _Setting, arms: Arms, folder: Path, *, some: bool) -> dict[str, list[Run]]:
    """All runs with the pool, by arm. Without `some` accepted row no arm that cannot be without one."""
    seeds = range(arms.seeds)
    wanted = dict(synthetic_arms(basis.recipe, **chosen._asdict(), alone=basis.teacher[0].arm.recipe))
    if arms.null_controls:
        wanted |= null_arms(basis.recipe, synthetic_fraction=chosen.synthetic_fraction)
    need_images = () if some else ("synthetic_only", "shuffled")
    return {
        name: runs_of(arm, seeds, folder / name, first=len(seeds) if name == "aa_control" else 0)
        for name, arm in wanted.items()
        if name not in need_images
    }


def _keep(basis: _Basis, chosen: _Setting, trial: Sequence[Run], runs: Mapping[str, list[Run]]) -> None:
    """Copy what is trained already: the trial is `synthetic`, and with fraction 0 the arms are the best real-only one."""
    kept = {"synthetic": trial}
    if chosen.synthetic_fraction == 0:
        kept = dict.fromkeys(("synthetic", "synthetic_unfiltered", "replay"), basis.best)
    for name, finished in kept.items():
        for run, other in zip(runs[name], finished, strict=False):  # a trial has the first seeds alone
            if not run.file.exists():
                work.write(run.file, other.file.read_bytes())


def _missing(data: TrainingData, fill_to: int) -> Missing:
    real = np.bincount(data.targets, minlength=data.n_classes)
    accepted = np.bincount(data.pool_targets[data.accepted], minlength=data.n_classes)
    return Missing(
        short=tuple(np.flatnonzero(accepted < np.maximum(0, fill_to - real)).tolist()),
        none=tuple(np.flatnonzero(accepted == 0).tolist()),
    )


def _best(runs: Mapping[K, Sequence[Run]], metric: Metric) -> K:
    """The key of the best mean score; the first of equals."""
    return max(runs, key=lambda key: metric.merit(scores_of(runs[key]).mean))


def _all(runs: Mapping[K, Iterable[Run]]) -> list[Run]:
    return list(chain.from_iterable(runs.values()))
