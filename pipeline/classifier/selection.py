"""Which runs are trained, and what validation chooses among them.

Real-only: every arm of params.arms.real with every seed; the arm of the highest mean balanced accuracy on validation rows is
the best real-only recipe, and its runs are the teacher of soft labels. With a pool: `synthetic` in every dose and kind of
labels with the first seeds, each compared with the recipe under the same seeds; the highest mean wins, and of equal ones the
smaller dose, then the first kind of labels in params.arms. Dose 0 is the recipe's own runs. Then every arm of the pool is
trained with all seeds, and the null controls where they are wanted; runs that
the choice already trained are kept.

Validation rows are scored and nothing else: no weight, threshold or epoch comes from them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import training, work
from pipeline.arms import Arm, Labels, Material, null_arms, recipes, synthetic_arms
from pipeline.classifier import train as classifier
from pipeline.classifier.packed import Campaign, Run, train_all
from pipeline.config import Params
from pipeline.errors import DataError
from pipeline.manifest import Manifest
from pipeline.prepared import Prepared


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
    """Train the real-only arms into `folder` and write choice.json."""
    known = recipes(params.classifier)
    runs = {
        name: _runs(Arm(name, known[name]), range(params.arms.seeds), folder / name) for name in dict.fromkeys(params.arms.real)
    }
    train_all(shared, [run for arm in runs.values() for run in arm])
    validation = {name: _scores(arm) for name, arm in runs.items()}
    best = max(validation, key=lambda name: validation[name]["mean"])
    work.write_json(folder / "choice.json", {"best_real_arm": best, "validation": validation})


def with_pool(params: Params, shared: Campaign, folder: Path, real: Path) -> None:
    """Choose dose and labels, train the arms of a pool into `folder` and write choice.json."""
    choice = read_choice(real)
    best = str(choice["best_real_arm"])
    recipe, seeds = recipes(params.classifier)[best], range(params.arms.seeds)
    chosen_by = seeds[: params.arms.selection_seeds]
    some = bool(shared.material.accepted.any())
    if "soft" in params.arms.labels:
        shared = replace(shared, material=_judged(shared.material, [real / best / f"{i}.safetensors" for i in seeds]))

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


def _judged(material: Material, teacher: list[Path]) -> Material:
    """`material` with the opinions of `teacher`, the mean of the networks in these files, on its train and pool rows."""
    networks = [classifier.load(file) for file in teacher]

    def opinions(images: np.ndarray) -> np.ndarray:
        return np.asarray(np.mean([classifier.predict(network, torch.from_numpy(images)) for network in networks], 0))

    with training.threads(1):  # the same bits for any number of cores
        return replace(material, opinions=opinions(material.images), pool_opinions=opinions(material.pool_images))


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
