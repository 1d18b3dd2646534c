"""Which runs are trained, and what validation chooses among them.

Real-only: every arm of params.arms.real with every seed; the arm of the highest mean balanced accuracy on validation rows is
the best real-only recipe, and its runs are the teacher of soft labels. With a pool: `synthetic` in every dose and kind of
labels with the first seeds, each compared with the recipe under the same seeds; the highest mean wins, and of equal ones the
smaller dose, then the first kind of labels in params.arms. Dose 0 is the recipe's own runs. Then every arm of the pool is
trained with all seeds, and the null controls where they are wanted; runs that
the choice already trained are kept.

The learning curve, with params.arms.curve: the best real-only recipe once more, on the train rows and m rows a class of those
that scarcity left out, for each m, with all seeds and equally many steps. The rows of a smaller m are among those of a larger
one, and an m that adds no row to the one before is passed over. Nothing is chosen by these runs.

Validation rows are scored and nothing else: no weight, threshold or epoch comes from them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import training, work
from pipeline.arms import Arm, Labels, Material, Recipe, null_arms, recipes, replays, synthetic_arms
from pipeline.classifier import mixing, transforms
from pipeline.classifier import train as classifier
from pipeline.classifier.packed import Campaign, Run, train_all
from pipeline.config import Params
from pipeline.errors import DataError, LeakError
from pipeline.images import to_uint8
from pipeline.manifest import Manifest
from pipeline.prepared import Prepared
from pipeline.seeds import derive, numpy_rng, rng

MOVED_AT_ONCE = 10_000  # images


def campaign(params: Params, prepared: Prepared, pool: Manifest | None = None, accepted: np.ndarray | None = None) -> Campaign:
    """What all runs share. Raises LeakError where a row must not be trained on."""
    val, classes = prepared.val(), prepared.classes
    return Campaign(
        material=Material.of(prepared.train(), classes, pool, accepted),
        config=params.classifier,
        flips=params.data.flips,
        seed=params.seed,
        val_images=val.images().numpy(),
        val_targets=val.targets(classes).numpy(),
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
    return replace(shared, material=shared.material.with_reserve(reserve, prepared.classes, most=most, seed=params.seed))


def accepted_rows(pool: Manifest, verdicts: Sequence[Path]) -> np.ndarray:
    """bool (m,): which rows of the pool the gate let through. Raises DataError where a row has no verdict in the files."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(file, columns=["sample_id", "accepted"]).to_pydict() for file in verdicts]
    verdict = {name: accepted for t in tables for name, accepted in zip(t["sample_id"], t["accepted"], strict=True)}
    try:
        return np.array([verdict[sample_id] for sample_id in pool.table["sample_id"].to_pylist()], bool)
    except KeyError as error:
        raise DataError(
            f"{verdicts[0].parent}: no verdict on {error}",
            expected="one for each image of the pool",
            remedy="run the stage validate",
        ) from None


def real_only(params: Params, shared: Campaign, folder: Path) -> None:
    """Train the real-only arms into `folder`, and the learning curve of the best one, and write choice.json."""
    known = recipes(params.classifier)
    runs = {
        name: _runs(Arm(name, known[name]), range(params.arms.seeds), folder / name) for name in dict.fromkeys(params.arms.real)
    }
    train_all(shared, [run for arm in runs.values() for run in arm])
    validation = {name: _scores(arm) for name, arm in runs.items()}
    best = max(validation, key=lambda name: validation[name]["mean"])
    choice = {"best_real_arm": best, "validation": validation}
    if params.arms.curve:
        choice["curve"] = _curve(params, shared, known[best], folder / "curve")
    work.write_json(folder / "choice.json", choice)


def _curve(params: Params, shared: Campaign, recipe: Recipe, folder: Path) -> list[dict[str, Any]]:
    """Train the learning curve into `folder`/<m>: for each m the rows that were added, of each class, and the scores."""
    points: dict[int, list[Run]] = {}
    before = 0
    for m in params.arms.curve:
        total = int(shared.material.reserve_counts(m).sum())
        if total > before:
            points[m] = _runs(Arm(f"curve/{m}", recipe, extra=m), range(params.arms.seeds), folder / str(m))
        before = total
    train_all(shared, [run for runs in points.values() for run in runs])
    return [
        {"extra": m, "added": shared.material.reserve_counts(m).tolist(), "validation": _scores(runs)}
        for m, runs in points.items()
    ]


def with_pool(params: Params, shared: Campaign, folder: Path, real: Path) -> None:
    """Choose dose and labels, train the arms of a pool into `folder` and write choice.json."""
    choice = read_choice(real)
    best = str(choice["best_real_arm"])
    recipe, seeds = recipes(params.classifier)[best], range(params.arms.seeds)
    chosen_by = seeds[: params.arms.selection_seeds]
    some = bool(shared.material.accepted.any())
    if some and "soft" in params.arms.labels:
        teacher = [real / best / f"{i}.safetensors" for i in seeds]
        shared = judged(shared, recipe, teacher)

    pairs: list[tuple[float, Labels]] = [
        (d, labels) for d in sorted(set(params.arms.doses)) if d > 0 for labels in dict.fromkeys(params.arms.labels) if some
    ]
    if 0.0 in params.arms.doses or not pairs:
        pairs = [(0.0, "hard"), *pairs]
    trials = {
        (dose, labels): _runs(
            synthetic_arms(recipe, dose=dose, labels=labels)["synthetic"], chosen_by, folder / ".choice" / f"{dose}-{labels}"
        )
        if dose
        else [Run(Arm(best, recipe), i, real / best / f"{i}.safetensors") for i in chosen_by]
        for dose, labels in pairs
    }
    train_all(shared, [run for runs in trials.values() for run in runs])
    grid = [{"dose": dose, "labels": labels, "score": _scores(runs)["mean"]} for (dose, labels), runs in trials.items()]
    # The grid stands in order of dose and labels, and max keeps the first of equals.
    dose, labels = max(trials, key=lambda pair: _scores(trials[pair])["mean"])

    arms = synthetic_arms(recipe, dose=dose, labels=labels)
    final = {name: _runs(arm, seeds, folder / name) for name, arm in arms.items() if some or name != "synthetic_only"}
    for name, runs in final.items():
        if dose == 0 and name != "synthetic_only":
            _copy([real / best / run.file.name for run in runs], folder / name)
        elif name == "synthetic":
            _copy([run.file for run in trials[dose, labels]], folder / name)
    if params.arms.null_controls:
        null = null_arms(recipe, dose=dose)
        final["again"] = [Run(null["again"], len(seeds) + i, folder / "again" / f"{i}.safetensors") for i in seeds]
        if some:
            final["shuffled"] = _runs(null["shuffled"], seeds, folder / "shuffled")
    train_all(shared, [run for runs in final.values() for run in runs])
    work.write_json(
        folder / "choice.json",
        {
            "best_real_arm": best,
            "dose": dose,
            "labels": labels,
            "grid": grid,
            "validation": {name: _scores(runs) for name, runs in final.items()},
            "missing": _missing(shared.material, params.sample.fill_to),
        },
    )


def judged(shared: Campaign, recipe: Recipe, teacher: Sequence[Path]) -> Campaign:
    """`shared` with the opinions of `teacher`, the mean of the networks in these files, which `recipe` trained."""
    moved = _moved(shared, recipe)
    pool, own = opinions(teacher, shared.material.pool_images), opinions(teacher, moved)
    return replace(shared, material=replace(shared.material, pool_opinions=pool, moved=moved, moved_opinions=own))


def opinions(teacher: Sequence[Path], images: np.ndarray) -> np.ndarray:
    """p(y | x) float64 (n, k) of uint8 (n, c, h, w): the mean of the networks in these files."""
    networks = [classifier.load(file) for file in teacher]
    with training.threads(1):  # the same bits for any number of cores
        return np.asarray(np.mean([classifier.predict(network, torch.from_numpy(images)) for network in networks], 0))


def _moved(shared: Campaign, recipe: Recipe) -> np.ndarray:
    """uint8 (m, c, h, w): for each row of the pool a train image of its class, moved and mixed as `recipe` does."""
    material, seed = shared.material, derive(shared.seed, "moved")
    rows = replays(material, np.arange(len(material.pool_targets)), seed)
    # Mixing pairs rows from both ends, and a pool stands class by class.
    shuffled = numpy_rng(seed, "pairs").permutation(len(rows))
    out = np.empty_like(material.pool_images)
    for k, part in enumerate(np.array_split(shuffled, max(1, math.ceil(len(rows) / MOVED_AT_ONCE)))):
        images = torch.from_numpy(material.images[rows[part]])
        x = transforms.apply(recipe.transform, images, shared.flips, rng(seed, "transform", k))
        if recipe.mix != "none":
            certain = torch.zeros(len(x), material.n_classes)
            x = mixing.MIXES[recipe.mix](x, certain, recipe.mix_alpha, numpy_rng(seed, recipe.mix, k)).images
        out[part] = to_uint8(x).numpy()
    return out


def read_choice(folder: Path) -> dict[str, Any]:
    """choice.json of `folder`. Raises DataError where it is missing or torn."""
    try:
        return dict(json.loads((folder / "choice.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}/choice.json: {error}", remedy="run the stage train") from error


def _runs(arm: Arm, seeds: range, folder: Path) -> list[Run]:
    return [Run(arm, i, folder / f"{i}.safetensors") for i in seeds]


def _scores(runs: list[Run]) -> dict[str, Any]:
    scores = [run.score for run in runs]
    return {"scores": scores, "mean": float(np.mean(scores))}


def _copy(files: list[Path], folder: Path) -> None:
    for file in files:
        target = folder / file.name
        if not target.exists():
            work.write(target, file.read_bytes())


def _missing(material: Material, fill_to: int) -> dict[str, list[int]]:
    """Classes (indices) that the pool cannot fill, and those of which it has no accepted image at all."""
    real = np.bincount(material.targets, minlength=material.n_classes)
    accepted = np.bincount(material.pool_targets[material.accepted], minlength=material.n_classes)
    return {
        "short": np.flatnonzero(accepted < np.maximum(0, fill_to - real)).tolist(),
        "none": np.flatnonzero(accepted == 0).tolist(),
    }
