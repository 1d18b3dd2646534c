"""The gate: every image of a pool through every check, and what came of it.

    checks.parquet   sample_id check value low high passed: one row per image and check
    images.parquet     sample_id label accepted reason nearest nearest_distance: one row per image
    summary.json       counts per class, thresholds, fidelity, expectations, warnings

An image is accepted if it passes all checks; its reason is the first, in the order of CHECKS, that it fails. The pool is read
shard by shard: images are never in memory together, what is kept per image is about a kilobyte of numbers and names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline import config
from pipeline.core import images, work
from pipeline.core.manifest import SCHEMA, Manifest
from pipeline.core.seeds import numpy_rng
from pipeline.encoders.base import LEVELS
from pipeline.encoders.judges import Judges
from pipeline.encoders.pixels import Pixels
from pipeline.validation import fidelity, table
from pipeline.validation.checks import CHECKS, Checks, Measured, Posterior

WEAK = 0.8  # share of wrong labels that judges must recognise for their agreement to be worth something
_TEXT, _NUMBER, _FLAG = pa.string(), pa.float64(), pa.bool_()
CHECKED = pa.schema(
    {"sample_id": _TEXT, "check": _TEXT, "value": _NUMBER, "low": _NUMBER, "high": _NUMBER, "passed": _FLAG}
)  # fmt: skip
IMAGES = pa.schema(
    {"sample_id": _TEXT, "label": _TEXT, "accepted": _FLAG, "reason": _TEXT, "nearest": _TEXT, "nearest_distance": _NUMBER}
)


@dataclass(frozen=True)
class Outcome:
    """Lines for a user: `failures` make the pool unusable, `warnings` do not."""

    failures: list[str]
    warnings: list[str]


def check_pool(
    pool: Path,
    train: Manifest,
    val: Manifest,
    judges: Judges,
    classes: Sequence[str],
    *,
    family: str,
    params: config.Params,
    out: Path,
    docs: Path,
    posterior: Posterior | None = None,
) -> Outcome:
    """Check the shards in folder `pool` and write the three files into `out` and Data Docs into `docs`.

    `train` are the real train rows that the judges were fitted on, `val` the real validation rows against which fidelity is
    measured; `posterior` is p(y | x) of the family's own model, one more term of label agreement. Where a critical expectation
    fails, or the pool is empty, no image is checked: the tables are empty.
    Raises LeakError where `train` holds a row that is not train.
    """
    settings, rows = params.validate_, Manifest.read(pool, columns=[n for n in SCHEMA.names if n != "image"])
    fill = params.sample.fill_to if family != "external" else 0
    needed = {c: max(0, fill - int(n)) for c, n in zip(classes, train.counts(classes), strict=True)}
    results = table.validate(
        rows, train, classes, family=family, needed=needed, largest_share=settings.largest_share, docs=docs
    )  # fmt: skip
    failures = [r.line() for r in results if not r.success and r.severity == "critical"]
    warnings = [r.line() for r in results if not r.success and r.severity != "critical"]
    if settings.bayes and posterior is None:
        warnings.append(f"{family} has no p(y | x) of its own: label agreement is that of the judges alone")
    unknown = rows.table["sources"].null_count > 0
    if unknown:
        warnings.append("sources unknown: whether these images were made from train rows alone cannot be told")
    summary: dict[str, Any] = {
        "family": family,
        "n": len(rows),
        "expectations": {"success": all(r.success for r in results), "results": [r.as_dict() for r in results]},
        "unknown_sources": unknown,
        "warnings": warnings,
        "accepted": dict.fromkeys(classes, 0),
        "rejected": {c: {} for c in classes},
        "thresholds": {},
        "fidelity": {},
    }
    checked, accepted = CHECKED.empty_table(), IMAGES.empty_table()
    if len(rows) and not failures:
        checks = Checks(
            train, judges, Pixels(judges.shape, LEVELS), classes, settings=settings, seed=params.seed,
            posterior=posterior,
        )  # fmt: skip
        warnings += [
            f"class {c}: no judge has an image of it held out, so its distances are held against those of all classes"
            for i, c in enumerate(classes)
            if (judges.folds[checks.targets == i] < 0).all()
        ]
        if checks.label_power < WEAK:
            warnings.append(
                f"judges are weak: they refuse {checks.label_power:.0%} of wrong labels of real images, expected {WEAK:.0%}; "
                "raise judges.steps in params.yaml, or these classes cannot be told apart from so few images"
            )
        targets = rows.targets(classes).numpy()
        seen, form = _measure(pool, checks, classes, train)
        seen.values["duplicate"] = checks.duplicates(seen.directions, rows.column("pixel_hash"))
        values: dict[str, np.ndarray] = {n: np.where(form, value, np.nan) for n, value in seen.values.items()}
        values["form"] = form.astype(np.float64)
        passed = np.stack([checks.bands[name].passes(values[name], targets) for name in CHECKS], axis=1)
        checked = _checked(rows, checks, values, passed, targets)
        accepted = _images(rows, train, passed, seen, form)
        summary["thresholds"] = checks.thresholds()
        summary["accepted"], summary["rejected"] = _counts(accepted, classes)
        summary["fidelity"] = _fidelity(
            checks, seen, {"": np.asarray(passed.all(1)), "unfiltered_": form}, targets, val, params
        )
    pq.write_table(checked, out / "checks.parquet")
    pq.write_table(accepted, out / "images.parquet")
    work.write_json(out / "summary.json", summary)
    return Outcome(failures, warnings)


def decode(data: Sequence[bytes], shape: tuple[int, ...]) -> tuple[Tensor, np.ndarray]:
    """PNGs -> (uint8 images (n, c, h, w), bool (n,)): whether each is of the declared form; black where it is not."""
    try:
        pixels = images.decode_all(data)
        if pixels.shape[1:] == shape and pixels.dtype == torch.uint8:
            return pixels, np.ones(len(data), dtype=bool)
    except (ValueError, OSError, SyntaxError):  # sizes differ, or bytes are torn: find out which
        pass
    pixels, good = torch.zeros(len(data), *shape, dtype=torch.uint8), np.zeros(len(data), dtype=bool)
    for i, one in enumerate(data):
        try:
            image = images.decode_png(one)
        except (ValueError, OSError, SyntaxError):
            continue
        if image.shape == shape and image.dtype == np.uint8:
            pixels[i], good[i] = torch.from_numpy(image.copy()), True
    return pixels, good


def _measure(pool: Path, checks: Checks, classes: Sequence[str], train: Manifest) -> tuple[Measured, np.ndarray]:
    """Everything measured of the rows of all shards, and whether each row is of the declared form, bool (n,)."""
    parts: list[Measured] = []
    form: list[np.ndarray] = []
    for file in sorted(pool.glob("*.parquet")):
        shard = Manifest.read(file)
        if len(shard):
            pixels, good = decode(shard.table["image"].to_pylist(), checks.shape)
            parts.append(checks.measure(pixels, shard.targets(classes).numpy(), _lent(shard, train)))
            form.append(good)
    values = {name: np.concatenate([p.values[name] for p in parts]) for name in parts[0].values}
    rest = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Measured) if f.name != "values"}
    return Measured(values, **rest), np.concatenate(form)


def _lent(rows: Manifest, train: Manifest) -> np.ndarray:
    """Of each row a source of another class, as the number of the train row; -1 where there is none. int64 (n,)."""
    column, out = rows.table["sources"].combine_chunks(), np.full(len(rows), -1, np.int64)
    row = pc.list_parent_indices(column).to_numpy()
    source = pc.index_in(pc.list_flatten(column), value_set=train.table["sample_id"].combine_chunks())
    source = source.to_numpy(zero_copy_only=False).astype(np.int64)  # the table's checks have seen that all are train rows
    foreign = train.column("label")[source] != rows.column("label")[row]
    out[row[foreign]] = source[foreign]
    return out


def _checked(
    rows: Manifest, checks: Checks, values: dict[str, np.ndarray], passed: np.ndarray, targets: np.ndarray
) -> pa.Table:
    def finite(columns: list[np.ndarray]) -> pa.Array:
        flat = np.stack(columns, axis=1).ravel()
        return pa.array(flat, mask=~np.isfinite(flat))

    columns = {
        "sample_id": pa.array(np.repeat(rows.column("sample_id"), len(CHECKS)), pa.string()),
        "check": pa.array(list(CHECKS) * len(rows), pa.string()),
        "value": finite([values[name] for name in CHECKS]),
        "low": finite([checks.bands[name].low[targets] for name in CHECKS]),
        "high": finite([checks.bands[name].high[targets] for name in CHECKS]),
        "passed": pa.array(passed.ravel()),
    }
    return pa.table(columns, schema=CHECKED)


def _images(rows: Manifest, train: Manifest, passed: np.ndarray, seen: Measured, form: np.ndarray) -> pa.Table:
    reason = np.array(CHECKS)[passed.argmin(1)].astype(object)
    accepted = passed.all(1)
    columns = {
        "sample_id": rows.table["sample_id"].combine_chunks(),
        "label": rows.table["label"].combine_chunks(),
        "accepted": pa.array(accepted),
        "reason": pa.array(reason, pa.string(), mask=accepted),
        "nearest": pa.array(train.column("sample_id")[seen.nearest], pa.string(), mask=~form),
        "nearest_distance": pa.array(seen.values["copy"], mask=~form),
    }
    return pa.table(columns, schema=IMAGES)


def _counts(rows: pa.Table, classes: Sequence[str]) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    seen = Counter(zip(rows["label"].to_pylist(), rows["reason"].to_pylist(), strict=True))
    accepted = {c: seen[c, None] for c in classes}
    return accepted, {c: {check: seen[c, check] for check in CHECKS if seen[c, check]} for c in classes}


def _fidelity(
    checks: Checks, seen: Measured, chosen: dict[str, np.ndarray], targets: np.ndarray, val: Manifest, params: config.Params
) -> dict[str, dict[str, Any]]:
    """Fidelity of the rows `chosen`, {prefix: bool (n,)}, against validation rows."""
    embeddings = checks.judges.look(val.images()).flat
    near = (seen.values["copy"] < checks.typical_near[targets]).astype(np.float64)
    found: dict[str, dict[str, Any]] = {}
    for prefix, rows in chosen.items():
        metrics = fidelity.measure(
            embeddings, val.targets(checks.classes).numpy(), seen.embeddings[rows], targets[rows],
            neighbours=params.validate_.neighbours, bootstrap=params.validate_.bootstrap, seed=params.seed,
        )  # fmt: skip
        chance = numpy_rng(params.seed, "near copies", prefix)
        metrics["near_copies"] = fidelity.share(near[rows], params.validate_.bootstrap, chance)
        found |= {f"{prefix}{name}": estimate.as_dict() for name, estimate in metrics.items()}
    return found
