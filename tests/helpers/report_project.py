"""A project as the stages before `report` leave it: scikit-learn's digits, made-up scores, images spoilt on purpose."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import config
from pipeline.core import images
from pipeline.core.manifest import Manifest
from pipeline.stages import report

REAL_ARMS = ["real", "oversample", "logit_adjustment", "augment", "augment+logit_adjustment", "mixup"]
SYNTHETIC_ARMS = ["replay", "synthetic", "synthetic_unfiltered", "synthetic_only"]
BEST = "augment+logit_adjustment"


def spread(estimate: float, half: float) -> dict[str, float]:
    return {"estimate": round(estimate, 4), "low": round(estimate - half, 4), "high": min(1.0, round(estimate + half, 4))}


def digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (1797, 1, 8, 8) and labels (1797,)."""
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    return (data.reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8), target


def manifest(ids: list[str], pictures: Iterable[np.ndarray], labels: list[str], generator: str | None) -> Manifest:
    n, pictures = len(ids), list(pictures)
    return Manifest.from_columns(
        sample_id=ids,
        image=[images.encode_png(p) for p in pictures],
        label=labels,
        split=["train"] * n,
        group=ids,
        origin=["real" if generator is None else "synthetic"] * n,
        generator=[generator] * n,
        seed=[None if generator is None else i for i in range(n)],
        sources=[[]] * n,
        pixel_hash=[images.pixel_hash(p) for p in pictures],
    )


@dataclass
class Project:
    """Where the pieces lie; `change` edits a JSON file, `render` runs the stage."""

    folder: Path
    families: list[str]
    classes: list[str]
    counts: list[int]
    pixels: dict[str, np.ndarray] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        return self.folder / name

    def change(self, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
        value = json.loads(self.path(name).read_text())
        edit(value)
        self.path(name).write_text(json.dumps(value))

    def render(self) -> str:
        report.run(
            config.Params.model_construct(),
            self.path("data/prepared"),
            self.path("data/drift.json"),
            self.path("data/pools"),
            self.path("data/checked"),
            self.path("data/measures"),
            self.path("data/evaluation"),
            self.path("metrics.json"),
            self.path("report"),
        )
        return self.path("report/index.html").read_text()


def build(
    folder: Path,
    classes: list[str] | None = None,
    families: tuple[str, ...] = ("flow_matching",),
    verdict: str = "gain",
    side: int = 8,
    per_class: int = 24,
    prefix: str = "",
) -> Project:
    """Write data/, metrics.json and gains.csv into `folder`. `side` above 8 enlarges the digits and adds grain."""
    classes = classes or [str(d) for d in range(10)]
    counts = [max(3, round(60 * 20 ** (-i / max(1, len(classes) - 1)))) for i in range(len(classes))]
    project = Project(folder, list(families), classes, counts)
    (folder / "data/prepared").mkdir(parents=True)
    write_prepared(project, side, prefix)
    for family in families:
        write_family(project, family, per_class, prefix)
    write_evaluation(project, verdict)
    return project


def write_prepared(project: Project, side: int, prefix: str) -> None:
    data, target = digits()
    rng = np.random.default_rng(0)
    ids, pictures, labels = [], [], []
    for i, (name, n) in enumerate(zip(project.classes, project.counts, strict=True)):
        for j, row in enumerate(np.flatnonzero(target == i % 10)[:n]):
            picture = data[row]
            if side > 8:
                picture = picture.repeat(side // 8, 1).repeat(side // 8, 2)
                picture = np.clip(picture + rng.normal(0, 20, (3, side, side)), 0, 255).astype(np.uint8)
            ids.append(f"{prefix}{i}-{j:04d}")
            pictures.append(picture)
            labels.append(name)
    project.pixels = dict(zip(ids, pictures, strict=True))
    pq.write_table(manifest(ids, pictures, labels, None).table, project.path("data/prepared/train.parquet"))
    train = dict(zip(project.classes, project.counts, strict=True))
    info = {
        "classes": project.classes,
        "image_size": side,
        "channels": 1 if side == 8 else 3,
        "counts": {"train": train, "val": {c: 15 for c in train}, "test": {c: 120 for c in train}},
        "source": "digits",
        "groups_known": False,
        "official_test": False,
        "set_aside": [{"path": f"{prefix}broken.png", "reason": "truncated"}],
        "n_set_aside": 3,
        "left_out": [{"sample_id": f"{prefix}9-0001", "reason": "scarcity"}],
        "n_left_out": 1,
        "near_duplicates": 7,
        "warnings": ["class 9 has 3 train images"],
        "fingerprint": "5f1c0ffee5f1c0ffee5f1c0f",
    }
    project.path("data/prepared/dataset.json").write_text(json.dumps(info))
    project.path("data/drift.json").write_text(json.dumps(drift(project.classes, project.counts)))


def drift(classes: list[str], counts: list[int], came: int = 0, **changed: Any) -> dict[str, Any]:
    """drift.json: by default of a first version; `came` images to each class otherwise."""
    tested = {"statistic": 0.41, "p": 0.12, "adjusted": 0.6} if came else dict.fromkeys(("statistic", "p", "adjusted"))
    return {
        "now": "5f1c0ffee5f1c0ffee5f1c0f",
        "classes": [
            {"name": c, "before": n, "after": n + came, "came": came, **tested} for c, n in zip(classes, counts, strict=True)
        ],
        "together": tested,
        "came": came * len(classes),
        "gone": 0,
        "new": [],
        "vanished": [],
        "mix": 0.7 if came else None,
        "relabellings": 2000,
        "settings": {
            "test": "mmd",
            "alpha": 0.01,
            "permutations": 2000,
            "least_change_of_counts": 0.25,
            "retrain": "when_drifted",
        },
        "reasons": [],
        "decision": "reuse" if came else "same",
    } | changed


def write_family(project: Project, family: str, per_class: int, prefix: str) -> None:
    """Real images turned by a little noise as the synthetic ones; some are blank, copied or of no shape."""
    rng = np.random.default_rng(1)
    pool, checks, each = [], [], []
    own: dict[str, list[str]] = {c: [] for c in project.classes}
    for sample_id, name in zip(project.pixels, np.repeat(project.classes, project.counts), strict=False):
        own[str(name)].append(sample_id)
    bands = {"form": (1.0, None), "blank": (2.0, None), "copy": (0.2, None), "label": (0.5, None), "outlier": (None, 6.2)}
    spoilt = {0: "blank", 1: "label", 2: "copy", 3: "outlier", 4: "label"}
    for i, name in enumerate(project.classes):
        for j in range(per_class if i else per_class // 2):
            sample_id = f"{prefix}{family}-{i}-{j:05d}"
            nearest = own[name][int(rng.integers(len(own[name])))] if own[name] else None
            real = project.pixels[nearest] if nearest else np.zeros((1, 8, 8), np.uint8)
            fails = spoilt.get(j % 12) if i % 3 else None
            picture = np.clip(real + rng.normal(0, 110 if fails == "label" else 24, real.shape), 0, 255).astype(np.uint8)
            picture = {"blank": np.full_like(real, 3), "copy": real}.get(fails or "", picture)
            distance = 0.1 if fails == "copy" else float(rng.uniform(0.3, 1))
            values = {"form": 1.0, "blank": 30.0, "copy": distance, "label": 0.9, "outlier": 4.5}
            values |= {"blank": {"blank": 0.4}, "label": {"label": 0.12}, "outlier": {"outlier": 8.4}}.get(fails or "", {})
            pool.append((sample_id, picture, name))
            each.append((sample_id, name, fails is None, fails, nearest, distance))
            checks += [(sample_id, c, values[c], low, high, c != fails) for c, (low, high) in bands.items()]
    ids, pictures, labels = (list(column) for column in zip(*pool, strict=True))
    project.path(f"data/pools/{family}").mkdir(parents=True)
    half = len(ids) // 2
    for shard, part in enumerate((slice(0, half), slice(half, None))):
        rows = manifest(ids[part], pictures[part], labels[part], family)
        pq.write_table(rows.table, project.path(f"data/pools/{family}/part-{shard:05d}.parquet"))
    write_checked(project, family, each, checks)
    measures = {
        "family": family,
        "likelihood": "exact" if family == "naive" else "bound",
        "cas": {"estimate": 0.871, "low": 0.85, "high": 0.89},
        "bayes": {"estimate": 0.765, "low": 0.72, "high": 0.81},
        "bits_per_dim": None if family == "external" else {"estimate": 4.32, "low": 4.3, "high": 4.4},
        "closeness": {"kid": {"estimate": 0.048, "low": 0.031, "high": 0.06}, "frechet": {"estimate": 7.11}},
        "accepted": 0.8,
        "parameters": 123456,
    }
    project.path(f"data/measures/{family}").mkdir(parents=True)
    project.path(f"data/measures/{family}/measures.json").write_text(json.dumps(measures))


def write_checked(project: Project, family: str, images: list[Any], checks: list[Any]) -> None:
    folder = project.path(f"data/checked/{family}")
    folder.mkdir(parents=True, exist_ok=True)
    text, real = pa.string(), pa.float64()
    of_images = pa.schema(
        {"sample_id": text, "label": text, "accepted": pa.bool_(), "reason": text, "nearest": text, "nearest_distance": real}
    )
    of_checks = pa.schema({"sample_id": text, "check": text, "value": real, "low": real, "high": real, "passed": pa.bool_()})
    for name, schema, rows in (("images", of_images, images), ("checks", of_checks, checks)):
        columns = [[row[k] for row in rows] for k in range(len(schema))]
        pq.write_table(pa.table(columns, schema=schema), folder / f"{name}.parquet")
    summary = {
        "family": family,
        "n": len(images),
        "accepted": {c: sum(r[1] == c and r[2] for r in images) for c in project.classes},
        "rejected": {},
        "thresholds": {},
        "fidelity": {
            "kid": {"estimate": 0.0213, "low": 0.011, "high": 0.034, "warning": None},
            "unfiltered_kid": {"estimate": 0.048, "low": 0.031, "high": 0.06, "warning": None},
            "near_copies": {"estimate": 0.04, "low": 0.01, "high": 0.07, "warning": None},
            "precision": {"estimate": 0.81, "low": 0.74, "high": 0.87, "warning": None},
            "recall": {"estimate": 0.62, "low": 0.5, "high": 0.71, "warning": None},
            "density": {"estimate": 0.93, "low": 0.8, "high": 1.06, "warning": None},
            "coverage": {"estimate": 0.77, "low": 0.7, "high": 0.84, "warning": None},
            "c2st": {
                "estimate": 0.71,
                "low": 0.6,
                "high": 0.8,
                "warning": "class 9 has 3 real images: the estimate says little",
            },
        },
        "expectations": {
            "success": True,
            "results": [
                expectation("table_columns_to_match_set", None),
                expectation("column_values_to_be_in_set", "label"),
                expectation("column_values_to_be_unique", "sample_id"),
                expectation("column_values_to_be_unique", "pixel_hash", failed=["3f9a", "77c2"]),
                expectation("sources_in_train", "sources"),
            ],
        },
        "unknown_sources": family == "external",
        "warnings": ["KID of class 9 rests on 3 real images"],
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def expectation(name: str, column: str | None, failed: list[str] | None = None) -> dict[str, Any]:
    found = {"expectation": name, "column": column, "success": not failed, "severity": "warning"}
    return {**found, "unexpected_count": len(failed or []), "examples": failed or []}


def write_evaluation(project: Project, verdict: str) -> None:
    classes = project.classes
    gain = {"gain": 0.0213, "no_gain": 0.004, "harm": -0.031}[verdict]
    shift = dict(zip(REAL_ARMS, [-0.061, -0.034, -0.018, -0.02, 0.0, -0.027], strict=True))
    shift |= {"replay": -0.006, "synthetic": gain, "synthetic_unfiltered": gain - 0.017, "synthetic_only": -0.238}
    arms, gains, names = {}, [], ("balanced_accuracy", "macro_f1", "tail_recall", "middle_recall", "head_recall")
    base = dict(zip(names, (0.842, 0.836, 0.688, 0.87, 0.957), strict=True))
    for k, (arm, by) in enumerate(shift.items()):
        factor = {"tail_recall": 2.1, "head_recall": 0.2}
        arms[arm] = {m: spread(base[m] + by * factor.get(m, 1.0), 0.014 + 0.001 * k) for m in names}
        arms[arm] |= {"auroc": spread(0.975 + by / 5, 0.006), "average_precision": spread(0.91 + by / 2, 0.012)}
        arms[arm]["calibration_error"] = spread(0.052 - by / 3, 0.009)
        if arm != BEST:
            gains += [(arm, m, *spread(by * factor.get(m, 1.0), 0.013 * factor.get(m, 1.0)).values()) for m in names[:3]]
    reference = {"logistic_regression": 0.79, "random_forest": 0.772, "gradient_boosting": 0.701}
    metrics = {
        "verdict": verdict,
        "gain": {"balanced_accuracy": spread(gain, 0.013), "tail_recall": spread(2.1 * gain, 0.027)},
        "baseline": BEST,
        "arms": arms,
        "generator": project.families[0] if project.families else None,
        "generators": {
            f: {
                "verdict": verdict,
                "gain": {"balanced_accuracy": spread(gain, 0.013)},
                "baseline": BEST,
                "pretrained": f == "external",
            }
            for f in project.families
        },
        "reference": {
            n: {"balanced_accuracy": spread(v, 0.015), "macro_f1": spread(v - 0.01, 0.015)} for n, v in reference.items()
        },
    }
    metrics["equivalent_real_images"] = {
        "curve": [[0, 0.842, 0.828, 0.856], [10, 0.85, 0.837, 0.862], [30, 0.87, 0.86, 0.88], [100, 0.9, 0.89, 0.91]],
        "added": [0, 100, 300, 900],
        "real_images_per_class": 23.3,
        "low": 4.26,
        "high": 100.0,
        "beyond": False,
        "low_beyond": False,
        "high_beyond": True,
        "real_images": 221.7,
    }
    metrics["decomposition"] = {
        "prior_shift": spread(0.02, 0.011) | {"arm": BEST, "over": "augment"},
        "regularisation": spread(-0.006, 0.013) | {"arm": "replay", "over": BEST},
        "new_content": spread(gain + 0.006, 0.014) | {"arm": "synthetic", "over": "replay"},
    }
    project.path("metrics.json").write_text(json.dumps(metrics))
    with open(project.path("gains.csv"), "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "metric", "estimate", "low", "high"])
        writer.writerows(gains)
    third = max(1, len(classes) // 3)
    rng = np.random.default_rng(2)

    def scores(level: float, half: float) -> dict[str, Any]:
        drop = np.linspace(0.12, -0.3, len(classes)) + rng.normal(0, 0.03, len(classes))
        return {c: spread(min(0.995, level + d), half) for c, d in zip(classes, drop, strict=True)}

    details = {
        "classes": classes,
        "train_counts": dict(zip(classes, project.counts, strict=True)),
        "test_counts": {c: 120 for c in classes},
        "strata": {"head": classes[:third], "middle": classes[third:-third], "tail": classes[-third:]},
        "recall": {BEST: scores(0.86, 0.04), "synthetic": scores(0.88, 0.04)},
        "auroc": {BEST: scores(0.97, 0.01), "synthetic": scores(0.975, 0.01)},
        "average_precision": {BEST: scores(0.9, 0.02), "synthetic": scores(0.91, 0.02)},
        "choice": {
            "baseline": BEST,
            "recipe": BEST,
            "validation": {arm: 0.82 + shift[arm] for arm in REAL_ARMS},
            "synthetic_fraction": 1.0,
            "labels": "soft",
            "grid": [
                {"synthetic_fraction": d, "labels": w, "score": 0.8 + d / 50 - len(w) / 700}
                for d in (0.0, 0.5, 1.0)
                for w in ("hard", "soft")
            ],
        },
        "seeds": 5,
        "confidence": 0.95,
        "warnings": [],
        "settings": {"seed": 0, "data": {"source": "digits"}},
    }
    project.path("data/evaluation").mkdir(parents=True)
    project.path("data/evaluation/details.json").write_text(json.dumps(details))
