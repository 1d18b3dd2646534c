"""`python -m benchmarks.students [DATASET …]`: what makes a student of synthetic images good, one change at a time.

On projects that benchmarks.gain has run: the best real-only recipe, the pools, eight seeds, scores on validation rows alone.
All plans have the same number of steps. d is the paired mean difference to the recipe itself, plus or minus its standard error
over seeds. A table goes into docs/experiments.md, between the marks of its data set. Runs that are there already are kept.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks import marks
from benchmarks.command import errors_in_a_line
from benchmarks.gain import PLACE
from pipeline import config
from pipeline.arms import Arm, TrainingData, TrainingPlan, accepted_rows, recipe_of, synthetic_arms
from pipeline.classifier import teaching
from pipeline.classifier.choice import RealChoice
from pipeline.classifier.packed import Campaign, Run, runs_of, scores_of, train_all
from pipeline.config import ENSEMBLE, SELF_DISTILLATION
from pipeline.core import work
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.errors import InputError

SEEDS = range(8)
PAGE = Path("docs/experiments.md")


@dataclass(frozen=True)
class AugmentingStudent(Arm):
    """A student that augments and mixes its rows as its teacher did."""

    def build(self, data: TrainingData, seed: int) -> TrainingPlan:
        """As Arm's."""
        recipe = self.recipe
        return replace(super().build(data, seed), transform=recipe.transform, mix=recipe.mix, mix_alpha=recipe.mix_alpha)


def table(name: str, place: Path) -> str:
    """Train what is missing of the project at `place` and compare. Raises DataError where its runs are missing."""
    params = config.read(place / "params.yaml")
    data, real = Prepared(place / "data/prepared"), place / "data/runs/real"
    # Runs of another state of the project are none of this one's.
    folder = PLACE / "students" / f"{name}-{work.key(place / 'dvc.lock')[:12]}"
    members = [family for family in params.pools if family != ENSEMBLE]
    pool = Manifest.read(*(place / "data/pools" / family for family in members))
    accepted = accepted_rows(pool, [place / "data/checked" / family / "images.parquet" for family in members])
    choice = RealChoice.read(real)
    name_of, alone = choice.teacher, Campaign.of(params, data, choice.mode, pool, accepted)
    own = name_of.removeprefix(alone.prefix)
    recipe, distilled = (recipe_of(alone.config, arm, own) for arm in (own, SELF_DISTILLATION))
    teacher = runs_of(Arm(name_of, recipe), range(params.arms.seeds), real / name_of)
    shared = teaching.taught(alone, teacher)
    plain = _unaugmented(shared, teacher)
    metric = shared.metric

    plans: dict[str, tuple[Campaign, Arm]] = {f"`{name_of}` itself, real images alone": (shared, teacher[0].arm)}
    hard, soft = (synthetic_arms(recipe, synthetic_fraction=0.5, labels=labels) for labels in ("hard", "soft"))
    plans["half train images, augmented and mixed, soft (`self_distillation`)"] = shared, Arm(SELF_DISTILLATION, distilled)
    plans["half train images as they are, soft"] = plain, Arm(SELF_DISTILLATION, distilled)
    plans["half synthetic, hard"] = shared, hard["synthetic"]
    plans["half synthetic, soft"] = shared, soft["synthetic"]
    plans["half synthetic, soft, rejected images too"] = shared, soft["synthetic_unfiltered"]
    values = {key: getattr(soft["synthetic"], key) for key in ("name", "recipe", "adds", "synthetic_fraction", "labels")}
    plans["half synthetic, soft, rows augmented and mixed"] = shared, AugmentingStudent(**values)
    for fraction in (0.25, 0.5):
        for labels in ("hard", "soft"):
            beside = synthetic_arms(distilled, synthetic_fraction=fraction, labels=labels)
            plans[f"`self_distillation` and {fraction} synthetic, {labels}"] = shared, beside["synthetic"]

    lines = [f"{name}: {shared.config.steps:,} steps, {int(accepted.sum()):,} accepted of {len(pool):,} images.", ""]
    lines += [f"| plan | {metric.title} | d, points |", "|---|---|---|"]
    base: np.ndarray | None = None
    for i, (words, (campaign, arm)) in enumerate(plans.items()):
        mine = runs_of(arm, SEEDS, folder / f"{i}-{arm.name}")
        train_all(campaign, mine)
        scores = np.array(scores_of(mine).scores)
        base = scores if base is None else base
        d = 100 * (scores - base)
        error = f"{d.mean():+.1f} ± {d.std(ddof=1) / np.sqrt(len(d)):.1f}" if i else ""
        lines.append(f"| {words} | {scores.mean():.3f} | {error} |")
    together = metric.score(teaching.soft_labels(teacher, shared.val_images), shared.val_targets)
    return "\n".join([*lines, f"| the teacher, {len(teacher)} runs together | {together:.3f} | |"])


def _unaugmented(shared: Campaign, teacher: list[Run]) -> Campaign:
    """`shared` with train images as they are in the place of augmented ones."""
    images, targets = shared.data.as_they_are().images, shared.data.targets
    own = teaching.soft_labels(teacher, images)
    data = replace(shared.data, augmented_images=images, augmented_targets=targets, augmented_soft_labels=own)
    return replace(shared, data=data)


def main() -> None:
    """Replace the text between the marks of each data set."""
    parser = argparse.ArgumentParser(description="What makes a student of synthetic images good.")
    parser.add_argument("datasets", nargs="*", default=["digits"], metavar="DATASET", help="with marks on the page")
    with errors_in_a_line():
        for name in parser.parse_args().datasets:
            if not (PLACE / name / "metrics.json").is_file():
                raise InputError(f"{PLACE / name} was not run", remedy=f"make bench-gain DATASETS={name}")
            marks.replace(PAGE, f"students {name}", table(name, PLACE / name))


if __name__ == "__main__":
    main()
