"""The report's page: everything that was measured, put before a reader in the order in which it is asked for.

    does it help -> by how much -> for which classes -> how do the images look -> which were refused, and why
    -> what was checked -> where are the images -> how was it made

The page is one file without scripts; whatever comes from the data passes through Jinja's escaping. It is a function of
its inputs and the installed versions alone: it bears no date. Its size has a bound whatever the data.
"""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.config import ENSEMBLE
from pipeline.core import work
from pipeline.core.prepared import Prepared
from pipeline.errors import DataError
from pipeline.metrics.registry import named, primary
from pipeline.report import album, gallery, numbers, tables, words
from pipeline.report.gallery import Family
from pipeline.report.numbers import Interval

LISTED = 50  # entries of any list of files, warnings or expectations
SETTINGS_CHARACTERS = 40_000
PACKAGES = (
    "tailforge",
    "torch",
    "torchvision",
    "diffusers",
    "zuko",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "pyarrow",
    "great-expectations",
    "dvc",
    "prefect",
)


@dataclass(frozen=True)
class Sources:
    """The paths that the stage was given. gains.csv stands beside `metrics`: evaluate writes both."""

    prepared: Path
    drift: Path
    pools: Path
    checked: Path
    measures: Path
    evaluation: Path
    metrics: Path


def render(sources: Sources, out: Path) -> str:
    """The whole page; links in it are relative to the folder `out`. Raises DataError where a file is missing or torn."""
    metrics, details = _json(sources.metrics, "evaluate"), _json(sources.evaluation / "details.json", "evaluate")
    info = Prepared(sources.prepared).info
    rare = tables.rarest_first(details)
    families = _families(sources, [name for name, _ in rare[: gallery.CLASSES]], metrics)
    train = sources.prepared / "train.parquet"
    shown = gallery.strips(rare, train, families)
    budget = album.Budget(gallery.REJECTED_BYTES)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "prose": prose,
        "clip": words.clip,
        "marked": lambda name: words.marked(name, metrics),
        "band": lambda limit: numbers.band(limit.low, limit.high),
        "count": numbers.count,
        "measure": numbers.measure,
        "number": numbers.number,
        "percent": numbers.percent,
        "points": numbers.points,
        "points_range": numbers.points_range,
    }
    return environment.get_template("template.html.j2").render(
        **_verdict(metrics, details, families),
        **_evidence(sources, metrics, details),
        n_classes=len(rare),
        strips=shown,
        open_strips=gallery.OPEN,
        measured=tables.beside_each_other(
            [_json(sources.measures / f.name / "measures.json", "measure") for f in families], named(primary(metrics))
        ),
        discriminative=numbers.percent(details.get("choice", {}).get("validation", {}).get(metrics.get("baseline"))),
        families=[_family(f, gallery.rejections(f, train, budget), sources, out) for f in families],
        drift=_drift(_json(sources.drift, "drift")),
        classes=_classes(info, rare, _behind(metrics, families)),
        warnings=_warnings(info, details, families),
        headroom=details.get("headroom"),
        outside=words.outside(metrics),
        duplicates=info.get("near_duplicates") or 0,
        set_aside=_listed(info, "set_aside", "path"),
        left_out=_listed(info, "left_out", "sample_id"),
        choice=details.get("choice", {}),
        info=info,
        check_names=words.CHECKS,
        settings=_settings(details.get("settings", {})),
        versions=[("python", platform.python_version()), *((name, _version(name)) for name in PACKAGES)],
        hashes=[
            (f"{sources.prepared}", info.get("fingerprint") or numbers.NONE),
            *_pool_hashes(families),
            *_encoder_hash(details),
        ],
        paths={"details": str(sources.evaluation / "details.json"), "metrics": str(sources.metrics)},
    )


def prose(text: object) -> Markup:
    """Escaped text in which `backticks` become code."""
    pieces = str(text).split("`")
    if len(pieces) % 2 == 0:
        return escape(text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(pieces))


def _json(path: Path, stage: str) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: {error}", expected=f"JSON written by the stage {stage}", remedy="run `dvc repro`") from error


def _families(sources: Sources, classes: list[str], metrics: Mapping[str, Any]) -> list[Family]:
    """The families that were evaluated, the one that validation chose first. What an earlier run left behind is passed over."""
    chosen, evaluated = metrics.get("generator"), metrics.get("generators") or {}
    names = [p.parent.name for p in sources.checked.glob("*/summary.json")]
    names = sorted((n for n in names if n in evaluated or not evaluated), key=lambda n: (n != chosen, n))
    found = []
    for name in names:
        folder = sources.checked / name
        scan = album.scan(folder / "images.parquet", classes)
        found.append(Family(name, _json(folder / "summary.json", "validate"), scan, folder, sources.pools / name))
    return found


def _behind(metrics: Mapping[str, Any], families: list[Family]) -> list[Family]:
    """The families whose images the verdict is about: the chosen one, or all that the ensemble pools."""
    return families if metrics.get("generator") == ENSEMBLE else families[:1]


def _verdict(metrics: Mapping[str, Any], details: Mapping[str, Any], families: list[Family]) -> dict[str, Any]:
    """What is read first: the verdict in words, its figure, the scores behind it, what to do next."""
    word, best, choice = metrics.get("verdict"), str(metrics.get("baseline")), details.get("choice", {})
    if word not in ("gain", "no_gain", "harm"):
        raise DataError(f"verdict {word!r} in metrics.json", expected="gain, no_gain or harm", remedy="run the stage evaluate")
    gains = metrics.get("gain") or {}
    metric = named(primary(metrics))
    gain, tail = Interval.of(gains.get(metric.name)), Interval.of(gains.get("tail_recall"))
    label, title = words.verdict(word, gain, metric.title)
    figure, axis = tables.headline_figure(gain, f"{title}, interval {numbers.points_range(gain)}")
    ends = ("← harm", "gain →") if metric.higher_is_better else ("← gain", "harm →")
    arms = metrics.get("arms", {})

    def step(name: str, metric: str) -> dict[str, str]:
        before, after = (Interval.of(arms.get(a, {}).get(metric)).estimate for a in (best, "synthetic"))
        return {"name": name, "before": numbers.percent(before), "after": numbers.percent(after)}

    facts = [
        step("Mean AUROC" if m == "auroc" else words.capital(words.metric(m)), m)
        for m in dict.fromkeys([metric.name, "tail_recall", "macro_f1", "auroc"])
    ]
    shown = _behind(metrics, families)
    accepted, made = sum(f.accepted for f in shown), sum(f.made for f in shown)
    chosen = metrics.get("generator") or (families[0].name if families else None)
    return {
        "word": word,
        "label": label,
        "title": title,
        "best": best,
        "gain": gain,
        "gain_range": numbers.points_range(gain),
        "metric": metric.title,
        "ends": ends,
        "tail": tail,
        "tail_range": numbers.points_range(tail),
        "tail_classes": words.listing([c for c, name in tables.strata(details).items() if name == "tail"]),
        "confidence": f"{100 * float(details.get('confidence', 0.95)):g} %",
        "seeds": details.get("seeds"),
        "n_test": sum(int(n) for n in details.get("test_counts", {}).values()),
        "headline_figure": figure,
        "headline_axis": axis,
        "facts": [f for f in facts if f["before"] != numbers.NONE or f["after"] != numbers.NONE],
        "accepted": accepted,
        "made": made,
        "chosen": chosen,
        "advice": words.advice(
            word,
            best=best,
            recipe=choice.get("recipe") or best,
            family=chosen,
            accepted=accepted,
            made=made,
            synthetic_fraction=choice.get("synthetic_fraction"),
            labels=choice.get("labels"),
        ),
    }


def _evidence(sources: Sources, metrics: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, Any]:
    """Gains, scores and recall, with the reference rows and the families."""
    best, arms, reference = str(metrics.get("baseline")), metrics.get("arms", {}), metrics.get("reference") or {}
    gains = _gains(sources.metrics.with_name("gains.csv"))
    metric = primary(metrics)
    names, plain = tables.metric_names(arms, metric), tables.metric_names(reference, metric)
    rows, axis = tables.recall(details, best)
    families_compared = metrics.get("generators") or {}
    return {
        "curve": tables.learning_curve(metrics.get("equivalent_real_images") or {}, arms, metric),
        "parts": tables.parts(metrics.get("decomposition") or {}),
        "panels": [p for m in dict.fromkeys([metric, "tail_recall"]) if (p := tables.forest(gains, m, best))],
        "arm_metrics": [words.capital(words.metric(n)) for n in names],
        "arm_rows": tables.arm_rows(arms, names, best),
        "reference_metrics": [words.capital(words.metric(n)) for n in plain],
        "reference_rows": tables.arm_rows(reference, plain, best),
        "recall_rows": rows,
        "recall_axis": axis,
        "open_rows": tables.OPEN_ROWS,
        "rankings": tables.rankings(details, best),
        "families_compared": [
            (
                name,
                str(found.get("verdict")).replace("_", " "),
                Interval.of((found.get("gain") or {}).get(metric)),
                found,
            )
            for name, found in sorted(
                families_compared.items(), key=lambda item: (item[0] != metrics.get("generator"), item[0])
            )
        ],
    }


def _gains(path: Path) -> dict[tuple[str, str], Interval]:
    """gains.csv as (arm, metric) -> interval."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {
                (row["arm"], row["metric"]): Interval.of(
                    {k: float(row[k]) if row[k] else None for k in ("estimate", "low", "high")}
                )
                for row in csv.DictReader(file)
            }
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: {error}", expected="a table written by the stage evaluate", remedy="run `dvc repro`"
        ) from error


def _family(family: Family, checks: list[gallery.Check], sources: Sources, out: Path) -> dict[str, Any]:
    summary = family.summary
    fidelity = summary.get("fidelity") or {}
    expectations = summary.get("expectations") or {}
    docs = Path(os.path.relpath(sources.checked.parent / "docs" / family.name, out)).as_posix()
    return {
        "name": family.name,
        "accepted": family.accepted,
        "rejected": family.rejected,
        "made": family.made,
        "checks": checks,
        "unknown_sources": bool(summary.get("unknown_sources")),
        "fidelity": _fidelity(fidelity),
        "success": expectations.get("success"),
        "results": (expectations.get("results") or [])[:LISTED],
        "n_results": len(expectations.get("results") or []),
        "n_met": sum(bool(r.get("success")) for r in expectations.get("results") or []),
        "docs": docs,
        "href": quote(docs) + "/index.html",
        "pool": str(family.pool),
        "checked": str(family.checked / "images.parquet"),
    }


def _fidelity(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per measure: of the accepted images, and of all that were made where it was measured too (`unfiltered_…`)."""
    names = {name.removeprefix("unfiltered_") for name in found}
    order = [m for m in words.FIDELITY if m in names] + sorted(names - set(words.FIDELITY))
    rows = []
    for name in order[:LISTED]:
        title, note = words.FIDELITY.get(name, (name.replace("_", " "), ""))
        pair = [Interval.of(found.get(prefix + name)) for prefix in ("", "unfiltered_")]
        cells = [(numbers.measure(i.estimate), numbers.measure_range(i)) for i in pair]
        rows.append({"title": title, "note": note, "cells": cells, "warning": (found.get(name) or {}).get("warning") or ""})
    return rows


def _drift(found: Mapping[str, Any]) -> dict[str, Any]:
    """What changed in train since the generators were fitted: in words, and a row a class, those that changed most first."""
    rows = sorted(found.get("classes") or [], key=lambda row: (row["adjusted"] is None, row["adjusted"], -row["came"]))
    said = words.drift(found)
    return {
        "said": f"{said[0].upper()}{said[1:]}.",
        "reasons": words.drift_reasons(found),
        "classes": rows[: tables.CLASS_ROWS] if found.get("decision") != "same" else [],
        "n_classes": len(rows),
        "together": (found.get("together") or {}).get("adjusted"),
        "mix": found.get("mix"),
        "settings": found.get("settings") or {},
    }


def _classes(info: Mapping[str, Any], rare: list[tuple[str, int]], families: list[Family]) -> list[dict[str, Any]]:
    """Images per class: real ones by split, accepted and rejected ones of the families behind the verdict."""
    counts, rejected = info.get("counts", {}), dict[str, int]()
    for family in families:
        for (_, name), n in family.found.rejected.items():
            rejected[name] = rejected.get(name, 0) + n
    return [
        {
            "name": name,
            "real": [counts.get(split, {}).get(name) for split in ("train", "val", "test")],
            "accepted": sum(f.found.accepted[name] for f in families),
            "rejected": rejected.get(name, 0),
        }
        for name, _ in rare[: tables.CLASS_ROWS]
    ]


def _warnings(info: Mapping[str, Any], details: Mapping[str, Any], families: list[Family]) -> list[tuple[str, str]]:
    """(stage, warning) of all stages."""
    found = [("prepare", text) for text in info.get("warnings") or []]
    for family in families:
        found += [(f"validate, {family.name}", text) for text in family.summary.get("warnings") or []]
    return found + [("evaluate", text) for text in details.get("warnings") or []]


def _listed(info: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    """A capped list of dataset.json with its true length."""
    entries = info.get(key) or []
    return {"n": info.get(f"n_{key}", len(entries)), "entries": [(e.get(name), e.get("reason")) for e in entries[:LISTED]]}


def _settings(values: object) -> str:
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text if len(text) <= SETTINGS_CHARACTERS else text[:SETTINGS_CHARACTERS] + "… (the rest is in params.yaml)\n"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _encoder_hash(details: dict[str, Any]) -> list[tuple[str, str]]:
    """The encoder with what it was trained on and its licence, and the hash of its weights; [] where none is named."""
    if not (found := details.get("encoder")):
        return []
    name = details.get("settings", {}).get("encoder", {}).get("name")
    return [(f"{name}, trained on {found['trained_on']}, licence {found['licence']}", str(found["weights"]))]


def _pool_hashes(families: list[Family]) -> list[tuple[str, str]]:
    return [(str(f.pool), work.key(f.pool)) for f in families if f.pool.is_dir()]
