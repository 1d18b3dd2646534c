"""Which runs are trained, and what validation chooses among them.

Real-only: every arm of params.arms.real with every seed. The recipe of the highest mean balanced accuracy on validation rows is
the teacher: its runs say what soft labels are. `self_distillation` comes after it, since it is that teacher's student. The best
of all these arms is the best real-only arm. With a pool: `synthetic` in every fraction and kind of labels with the first seeds,
each added to the best real-only arm and compared with it under the same seeds; the highest mean wins, and of equal ones the
smaller fraction, then the first kind of labels in params.arms. Fraction 0 is that arm's own runs. Then every arm of the pool is
trained with all seeds, and the null controls where they are wanted; runs that the choice already trained are kept.

The learning curve, with params.arms.curve: the best real-only arm once more, on the train rows and m rows a class of those that
scarcity left out, for each m, with all seeds and equally many steps; its teacher too learns from the enlarged rows. The rows of
a smaller m are among those of a larger one, and an m that adds no row to the one before is passed over. Nothing is chosen by
these runs.

Validation rows are scored and nothing else: no weight, threshold or epoch comes from them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.arms import Arm, Labels, Recipe, TrainingData, null_arms, recipes, synthetic_arms
from pipeline.classifier import mixing, transforms
from pipeline.classifier import train as classifier
from pipeline.classifier.packed import Campaign, Run, train_all
from pipeline.config import SELF_DISTILLATION, Params
from pipeline.core import work
from pipeline.core.images import to_uint8
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.core.seeds import derive, numpy_rng, rng
from pipeline.errors import DataError, LeakError
from pipeline.runtime import training

MOVED_AT_ONCE = 10_000  # images


def campaign(params: Params, prepared: Prepared, pool: Manifest | None = None, accepted: np.ndarray | None = None) -> Campaign:
    """What all runs share. Raises LeakError where a row must not be trained on."""
    val, classes = prepared.val(), prepared.classes
    return Campaign(
        data=TrainingData.of(prepared.train(), classes, pool, accepted),
        config=params.classifier,
        flips=params.data.flips,
        seed=params.seed,
        val_images=val.images().numpy(),
        val_targets=val.targets(classes).numpy(),
        engine=params.engine,
    )


def with_reserve(params: Params, prepared: Prepared, shared: Campaign) -> Campaign:
    """`shared` with the rows in reserve that the learning curve may use.

    Raises LeakError where one of them is of a group that stands in the validation rows too.
    """
    reserve = prepared.reserve()
    if common := set(reserve.column("group")) & set(prepared.val().column("group")):
        raise LeakError(
            f"rows in reserve share group {min(common)} with validation rows", expected="groups on one side",
            remedy="run the stage prepare",
        )  # fmt: skip
    most = max(params.arms.curve)
    return replace(shared, data=shared.data.with_reserve(reserve, prepared.classes, most=most, seed=params.seed))


def accepted_rows(pool: Manifest, checked: Sequence[Path]) -> np.ndarray:
    """bool (m,): which rows of the pool the gate let through. Raises DataError where the files lack a row."""
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


def real_only(params: Params, shared: Campaign, folder: Path) -> None:
    """Train the real-only arms into `folder`, and the learning curve of the best one, and write choice.json."""
    known, seeds = recipes(params.classifier), range(params.arms.seeds)
    plain = [name for name in dict.fromkeys(params.arms.real) if name in known]
    runs = {name: _runs(Arm(name, known[name]), seeds, folder / name) for name in plain}
    train_all(shared, [run for arm in runs.values() for run in arm])
    teacher = _best(runs)
    if SELF_DISTILLATION in params.arms.real:
        student = Arm(SELF_DISTILLATION, recipe_of(params, SELF_DISTILLATION, teacher))
        runs[SELF_DISTILLATION] = _runs(student, seeds, folder / SELF_DISTILLATION)
        train_all(taught(params, shared, teacher, folder / teacher), runs[SELF_DISTILLATION])
    best = _best(runs)
    choice = {"best_real_arm": best, "teacher": teacher, "validation": {name: _scores(arm) for name, arm in runs.items()}}
    if params.arms.curve:
        choice["curve"] = _curve(params, shared, best, teacher, folder / "curve")
    work.write_json(folder / "choice.json", choice)


def recipe_of(params: Params, arm: str, teacher: str) -> Recipe:
    """The recipe of a real-only arm, `self_distillation` being the student of the arm `teacher`."""
    known = recipes(params.classifier)
    if arm == SELF_DISTILLATION:
        return replace(known[teacher].student(), distilled=params.classifier.distillation_share)
    return known[arm]


def _curve(params: Params, shared: Campaign, best: str, teacher: str, folder: Path) -> list[dict[str, Any]]:
    """Train the learning curve into `folder`/<m>: for each m the rows that were added, of each class, and the scores."""
    points: list[dict[str, Any]] = []
    before = 0
    for m in params.arms.curve:
        added = shared.data.reserve_counts(m)
        if added.sum() > before:
            here, seeds = replace(shared, data=shared.data.enlarged(m)), range(params.arms.seeds)
            runs = _runs(Arm(f"curve/{m}", recipe_of(params, best, teacher)), seeds, folder / str(m))
            if best == SELF_DISTILLATION:
                own = folder / str(m) / "teacher"
                train_all(here, _runs(Arm(f"curve/{m}/teacher", recipe_of(params, teacher, teacher)), seeds, own))
                here = taught(params, here, teacher, own)
            train_all(here, runs)
            points.append({"extra": m, "added": added.tolist(), "validation": _scores(runs)})
        before = added.sum()
    return points


def with_pool(params: Params, shared: Campaign, folder: Path, real: Path) -> None:
    """Choose fraction and labels, train the arms of a pool into `folder` and write choice.json."""
    choice, seeds = read_choice(real), range(params.arms.seeds)
    best, teacher = str(choice["best_real_arm"]), str(choice["teacher"])
    recipe, alone = recipe_of(params, best, teacher), recipe_of(params, teacher, teacher)
    chosen_by = seeds[: params.arms.selection_seeds]
    some = bool(shared.data.accepted.any())
    if recipe.distilled or (some and "soft" in params.arms.labels):
        shared = taught(params, shared, teacher, real / teacher)

    pairs: list[tuple[float, Labels]] = [
        (d, labels)
        for d in sorted(set(params.arms.synthetic_fractions))
        if d > 0
        for labels in dict.fromkeys(params.arms.labels)
        if some
    ]
    if 0.0 in params.arms.synthetic_fractions or not pairs:
        pairs = [(0.0, "hard"), *pairs]
    trials = {
        (fraction, labels): _runs(
            synthetic_arms(recipe, synthetic_fraction=fraction, labels=labels)["synthetic"],
            chosen_by,
            folder / ".choice" / f"{fraction}-{labels}",
        )
        if fraction
        else [Run(Arm(best, recipe), i, real / best / f"{i}.safetensors") for i in chosen_by]
        for fraction, labels in pairs
    }
    train_all(shared, [run for runs in trials.values() for run in runs])
    grid = [
        {"synthetic_fraction": fraction, "labels": labels, "score": _scores(runs)["mean"]}
        for (fraction, labels), runs in trials.items()
    ]
    # The grid stands in order of fraction and labels, and max keeps the first of equals.
    fraction, labels = max(trials, key=lambda pair: _scores(trials[pair])["mean"])

    arms = synthetic_arms(recipe, synthetic_fraction=fraction, labels=labels, alone=alone)
    final = {name: _runs(arm, seeds, folder / name) for name, arm in arms.items() if some or name != "synthetic_only"}
    for name, runs in final.items():
        if fraction == 0 and name != "synthetic_only":
            _copy([real / best / run.file.name for run in runs], folder / name)
        elif name == "synthetic":
            _copy([run.file for run in trials[fraction, labels]], folder / name)
    if params.arms.null_controls:
        null = null_arms(recipe, synthetic_fraction=fraction)
        final["aa_control"] = [
            Run(null["aa_control"], len(seeds) + i, folder / "aa_control" / f"{i}.safetensors") for i in seeds
        ]
        if some:
            final["shuffled"] = _runs(null["shuffled"], seeds, folder / "shuffled")
    train_all(shared, [run for runs in final.values() for run in runs])
    work.write_json(
        folder / "choice.json",
        {
            "best_real_arm": best,
            "synthetic_fraction": fraction,
            "labels": labels,
            "grid": grid,
            "validation": {name: _scores(runs) for name, runs in final.items()},
            "missing": _missing(shared.data, params.sample.fill_to),
        },
    )


def taught(params: Params, shared: Campaign, teacher: str, runs: Path) -> Campaign:
    """`shared` with what the runs of the arm `teacher` in the folder `runs` say together of its pool and of moved rows."""
    data, files = shared.data, [runs / f"{i}.safetensors" for i in range(params.arms.seeds)]
    images, targets = _augmented(shared, recipe_of(params, teacher, teacher))
    pool, own = (soft_labels(files, x) if len(x) else None for x in (data.pool_images, images))
    whole = replace(data, pool_soft_labels=pool, augmented_images=images, augmented_targets=targets, augmented_soft_labels=own)
    return replace(shared, data=whole)


def soft_labels(teacher: Sequence[Path], images: np.ndarray) -> np.ndarray:
    """p(y | x) float64 (n, k) of uint8 (n, c, h, w): the mean of the networks in these files."""
    networks = [classifier.load(file) for file in teacher]
    with training.threads(1):  # the same bits for any number of cores
        return np.asarray(np.mean([classifier.predict(network, torch.from_numpy(images)) for network in networks], 0))


def _augmented(shared: Campaign, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (d, c, h, w) and the targets (d,): equally many train images of each class, moved and mixed as `recipe` does."""
    data, n, seed = shared.data, shared.config.distillation_images, derive(shared.seed, "moved")
    own = [np.flatnonzero(data.targets == c) for c in np.unique(data.targets)]
    rows = np.concatenate([np.resize(numpy_rng(seed, "rows", i).permutation(o), n) for i, o in enumerate(own)])
    # Mixing pairs rows from both ends, and these stand class by class.
    shuffled = numpy_rng(seed, "pairs").permutation(len(rows))
    out = np.empty((len(rows), *data.images.shape[1:]), np.uint8)
    for k, part in enumerate(np.array_split(shuffled, math.ceil(len(rows) / MOVED_AT_ONCE))):
        images = torch.from_numpy(data.images[rows[part]])
        x = transforms.apply(recipe.transform, images, shared.flips, rng(seed, "transform", k))
        if recipe.mix != "none":
            certain = torch.zeros(len(x), data.n_classes)
            x = mixing.MIXES[recipe.mix](x, certain, recipe.mix_alpha, numpy_rng(seed, recipe.mix, k)).images
        out[part] = to_uint8(x).numpy()
    return out, data.targets[rows]


def read_choice(folder: Path) -> dict[str, Any]:
    """choice.json of `folder`. Raises DataError where it is missing or torn."""
    try:
        return dict(json.loads((folder / "choice.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}/choice.json: {error}", remedy="run the stage train") from error


def _runs(arm: Arm, seeds: range, folder: Path) -> list[Run]:
    return [Run(arm, i, folder / f"{i}.safetensors") for i in seeds]


def _best(arms: Mapping[str, list[Run]]) -> str:
    """The arm of the highest mean score; the first of equals."""
    return max(arms, key=lambda name: _scores(arms[name])["mean"])


def _scores(runs: list[Run]) -> dict[str, Any]:
    scores = [run.score for run in runs]
    return {"scores": scores, "mean": float(np.mean(scores))}


def _copy(files: list[Path], folder: Path) -> None:
    for file in files:
        target = folder / file.name
        if not target.exists():
            work.write(target, file.read_bytes())


def _missing(data: TrainingData, fill_to: int) -> dict[str, list[int]]:
    """Classes (indices) that the pool cannot fill, and those of which it has no accepted image at all."""
    real = np.bincount(data.targets, minlength=data.n_classes)
    accepted = np.bincount(data.pool_targets[data.accepted], minlength=data.n_classes)
    return {
        "short": np.flatnonzero(accepted < np.maximum(0, fill_to - real)).tolist(),
        "none": np.flatnonzero(accepted == 0).tolist(),
    }
