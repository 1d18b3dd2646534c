"""Rows of the report's tables and figures, from metrics.json, gains.csv and details.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.metrics.base import Metric
from pipeline.registry import METRICS
from pipeline.report import figures, numbers, words
from pipeline.report.figures import Scale
from pipeline.report.numbers import Interval, percent, percent_range, points, points_range
from pipeline.report.words import clip

CLASS_ROWS = 200  # classes in one table
OPEN_ROWS = 20  # of them before a fold


@dataclass(frozen=True)
class Row:
    """A labelled line of a figure: its number, its interval, its drawing."""

    name: str
    note: str
    figure: Markup
    value: str
    spread: str
    synthetic: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines that share one scale."""

    title: str
    rows: list[Row]
    axis: Markup


@dataclass(frozen=True)
class ClassRow:
    """Recall of one class under the best real-only arm and the synthetic one."""

    name: str
    stratum: str
    n_train: int | None
    n_test: int | None
    figure: Markup
    real: str
    synthetic: str
    change: str


@dataclass(frozen=True)
class ArmRow:
    """One arm's line in the table of arms: (number, interval) per metric."""

    name: str
    note: str
    tag: str
    cells: list[tuple[str, str]]


@dataclass(frozen=True)
class Ranking:
    """AUROC and average precision of one class, best real-only arm and synthetic."""

    name: str
    cells: list[tuple[str, str]]


def is_synthetic(arm: str) -> bool:
    """Whether an arm trains on synthetic images."""
    return arm.startswith("synthetic")


def in_order(arms: Iterable[str]) -> list[str]:
    """Arms in the order in which they are explained; unknown ones after."""
    order = {name: i for i, name in enumerate(words.ARMS)}
    return sorted(arms, key=lambda a: (order.get(a.rpartition(":")[2], len(order)), a))


def headline_figure(gain: Interval, said: str) -> tuple[Markup, Markup]:
    """(drawing, axis) of the gain of the synthetic arm alone."""
    scale = Scale.spanning([-0.01, 0.01, *gain.known])
    return figures.interval(scale, gain, synthetic=True, said=said, height=34), figures.axis(scale, points)


def forest(gains: Mapping[tuple[str, str], Interval], metric: str, best: str) -> Panel | None:
    """Each arm minus the best real-only arm in one metric; None where there is no such metric."""
    rows = {arm: gains[arm, metric] for arm in in_order(a for a, m in gains if m == metric and a != best)}
    if not any(row.known for row in rows.values()):
        return None
    scale = Scale.differences(rows.values())
    return Panel(
        f"{words.capital(words.metric(metric))}, points against {best}",
        [
            Row(
                name=arm,
                note=words.arm(arm),
                figure=figures.interval(scale, row, synthetic=is_synthetic(arm), said=f"{arm}: {points(row.estimate)} points"),
                value=points(row.estimate),
                spread=points_range(row),
                synthetic=arm == "synthetic",
            )
            for arm, row in rows.items()
        ],
        figures.axis(scale, points),
    )


def learning_curve(
    equivalent: Mapping[str, Any], arms: Mapping[str, Mapping[str, object]], metric: str
) -> dict[str, Any] | None:
    """How many real images do as much as the synthetic ones: sentence, drawing, axis; None where no curve was measured."""
    if not equivalent.get("curve"):
        return None
    points = [(float(m), Interval(*scores)) for m, *scores in equivalent["curve"]]
    score = Interval.of(arms.get("synthetic", {}).get(metric)).estimate
    across = Scale.spanning([m for m, _ in points])
    levels = [v for _, i in points for v in i.known] + ([] if score is None else [score])
    up = Scale.spanning(levels, within=(0.0, 1.0))
    said = words.real_images(equivalent)
    ends = (("real_images_per_class", "beyond"), ("low", "low_beyond"), ("high", "high_beyond"))
    reached = Interval(*(math.inf if equivalent.get(beyond) else equivalent.get(end) for end, beyond in ends))
    return {
        "said": said,
        "total": f"{'more than ' if equivalent.get('beyond') else ''}{numbers.images(equivalent.get('real_images'))}",
        "figure": figures.curve(across, up, points, score, reached, said=f"learning curve: synthetic images are {said}"),
        "axis": figures.axis(across, numbers.images),
    }


def parts(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str, Interval]]:
    """(name, what it says, the two arms, points) of each part of the gain that was measured."""
    return [
        (name, note, f"{found[part].get('arm')} − {found[part].get('over')}", Interval.of(found[part]))
        for part, (name, note) in words.PARTS.items()
        if part in found
    ]


def metric_names(arms: Mapping[str, Mapping[str, object]], primary: str) -> list[str]:
    """Metrics that any of these has, the primary one and the known ones first."""
    present = {m for values in arms.values() for m in values}
    known = dict.fromkeys([primary, *METRICS.names, *words.COLUMNS])
    return [m for m in known if m in present] + sorted(present - set(known))


def arm_rows(arms: Mapping[str, Mapping[str, object]], names: Sequence[str], best: str) -> list[ArmRow]:
    """The table of arms."""
    tags = {best: "best real-only", "synthetic": "under test"}
    return [ArmRow(arm, words.arm(arm), tags.get(arm, ""), _cells(arms[arm], names)) for arm in in_order(arms)]


def _cells(values: Mapping[str, object], names: Sequence[str]) -> list[tuple[str, str]]:
    found = [Interval.of(values.get(name)) for name in names]
    return [(percent(i.estimate), percent_range(i)) for i in found]


def rarest_first(details: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(class, train images), rare classes first, ties in the order of the classes."""
    counts = details.get("train_counts", {})
    return sorted(((c, int(counts.get(c, 0))) for c in details["classes"]), key=lambda item: item[1])


def strata(details: Mapping[str, Any]) -> dict[str, str]:
    """head, middle or tail of each class; nothing where evaluate could not tell them apart and counts a class to several."""
    found = [(c, name) for name, classes in details.get("strata", {}).items() for c in classes]
    return dict(found) if len(dict(found)) == len(found) else {}


def recall(details: Mapping[str, Any], best: str) -> tuple[list[ClassRow], Markup]:
    """(a row per class of at most CLASS_ROWS, the axis)."""
    scores, tests = details.get("recall", {}), details.get("test_counts", {})
    places = strata(details)
    shown = rarest_first(details)[:CLASS_ROWS]
    real = {c: Interval.of(scores.get(best, {}).get(c)) for c, _ in shown}
    synthetic = {c: Interval.of(scores.get("synthetic", {}).get(c)) for c, _ in shown}
    scale = Scale.spanning([v for i in (*real.values(), *synthetic.values()) for v in i.known], within=(0.0, 1.0))
    rows = []
    for name, n in shown:
        before, after = real[name], synthetic[name]
        said = f"recall of {clip(name, 40)}: {percent(before.estimate)} with {best}, {percent(after.estimate)} with synthetic"
        rows.append(
            ClassRow(
                name=name,
                stratum=places.get(name, ""),
                n_train=n,
                n_test=tests.get(name),
                figure=figures.pair(scale, before, after, said=said),
                real=percent(before.estimate),
                synthetic=percent(after.estimate),
                change=points(after.minus(before)),
            )
        )
    return rows, figures.axis(scale, percent)


@dataclass(frozen=True)
class Measure:
    """A line of the table of families: a (number, interval) per family."""

    title: str
    note: str
    cells: list[tuple[str, str]]


def beside_each_other(measures: Sequence[Mapping[str, Any]], primary: Metric) -> list[Measure]:
    """What the stage `measure` found of each family, a row per measure; empty without families."""
    if not measures:
        return []

    def row(name: str, known: Mapping[str, tuple[str, str]], values: Sequence[object]) -> Measure:
        title, note = known.get(name, (name.replace("_", " "), ""))
        found = [Interval.of(value) for value in values]
        return Measure(title, note, [(numbers.measure(i.estimate), numbers.measure_range(i)) for i in found])

    near = [m["closeness"] for m in measures]
    closest = [name for name in words.FIDELITY if any(name in c for c in near)]
    own = words.model_measures(primary)
    rows = [row(name, own, [m.get(name) for m in measures]) for name in own]
    bits = rows[-1].cells
    for i, m in enumerate(measures):
        if m["likelihood"] == "bound" and bits[i][0] != numbers.NONE:
            bits[i] = (f"{bits[i][0]} *", bits[i][1])
    rows += [row(name, words.FIDELITY, [c.get(name) for c in near]) for name in closest]
    return rows + [row(name, words.SIZE, [m.get(name) for m in measures]) for name in words.SIZE]


def rankings(details: Mapping[str, Any], best: str) -> list[Ranking]:
    """AUROC and average precision per class: neither moves when only the prior of a class shifts."""
    tables = [details.get(metric, {}).get(arm, {}) for metric in ("auroc", "average_precision") for arm in (best, "synthetic")]
    found = []
    for name, _ in rarest_first(details)[:CLASS_ROWS]:
        values = [Interval.of(table.get(name)) for table in tables]
        found.append(Ranking(name, [(percent(v.estimate), percent_range(v)) for v in values]))
    return found if any(table for table in tables) else []
