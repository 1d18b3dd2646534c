"""What changed between two releases: images in and out of each class, and the metrics side by side.

An image is the same where its class and its pixels are: `kept` are the images in both releases, whatever they are called,
`out` those of the first alone, `in` those of the second alone. Of the kept ones some may be `renamed` (another sample_id);
of those in and out some may be `redrawn` (the sample_id of both, with other pixels).

Both releases are read from git and from DVC's cache or remote; the working tree stays as it is.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.datasets import export
from pipeline.metrics.registry import primary
from pipeline.report import numbers, words
from tailforge import project, releases, tables
from tailforge.releases import Release

Rows = dict[str, dict[str, str]]  # {class: {sample_id: pixel_hash}}


def difference(folder: Path, first: str, second: str) -> dict[str, Any]:
    """The two releases (`from`, `to`), `classes` with the numbers of images, and `metrics` of each arm. Raises InputError."""
    project.opened(folder)
    old, new = releases.find(folder, first), releases.find(folder, second)
    before, after = _rows(folder, old), _rows(folder, new)
    labels = sorted({*old.images, *new.images})
    classes = {label: compared(before.get(label, {}), after.get(label, {})) for label in labels}
    both = [releases.metrics(folder, release) for release in (old, new)]
    arms = {arm: None for metrics in both for arm in metrics.get("arms", {})}
    values = {arm: [metrics.get("arms", {}).get(arm, {}) for metrics in both] for arm in arms}
    metrics = {
        arm: {name: {"from": a.get(name), "to": b.get(name)} for name in sorted({*a, *b})} for arm, (a, b) in values.items()
    }
    outside = sorted({name for one in both for name in one.get("outside_knowledge", ())})
    found = {"from": old.json(), "to": new.json(), "classes": classes, "metrics": metrics}
    return found | ({"outside_knowledge": outside} if outside else {})


def compared(before: dict[str, str], after: dict[str, str]) -> dict[str, int]:
    """Numbers of images of one class; the arguments are {sample_id: pixel_hash}."""
    kept = Counter(before.values()) & Counter(after.values())
    same = sum(after.get(name) == pixels for name, pixels in before.items())
    redrawn = sum(name in after and after[name] != pixels for name, pixels in before.items())
    n = kept.total()
    return {
        "from": len(before), "to": len(after), "kept": n, "out": len(before) - n, "in": len(after) - n,
        "renamed": n - same, "redrawn": redrawn,
    }  # fmt: skip


def text(found: dict[str, Any]) -> str:
    """`difference` as tables."""
    names = [found[end]["name"] for end in ("from", "to")]
    total: Counter[str] = Counter()
    for counts in found["classes"].values():
        total.update(counts)
    rows = [("class", *names, "kept", "out", "in", "renamed", "redrawn")]
    for label, counts in [*found["classes"].items(), ("all", total)]:
        own = {key: str(counts[key]) for key in ("from", "to", "kept", "out", "in", "renamed", "redrawn")}
        rows.append((releases.plain(label), own["from"], own["to"], own["kept"], *_signed(own), own["renamed"], own["redrawn"]))
    lines = [tables.table(rows), ""]
    for metric in tables.shown(found["from"], found["to"]):
        arms = [(arm, values[metric]) for arm, values in found["metrics"].items() if metric in values]
        head = (releases.plain(words.metric(metric)), *names)
        lines += [
            tables.table([head, *((words.marked(arm, found), *map(numbers.score, both.values())) for arm, both in arms)]),
            "",
        ]
    if note := words.outside(found):
        lines += [note, ""]
    for end in ("from", "to"):
        one = found[end]
        gain = numbers.difference(one["gain"].get(primary(one)))
        lines.append(f"{one['name']}: {one['verdict']}, {one['generator']} over {one['baseline']} by {gain}")
    return "\n".join(lines)


def _signed(own: dict[str, str]) -> tuple[str, str]:
    return f"-{own['out']}" if own["out"] != "0" else "0", f"+{own['in']}" if own["in"] != "0" else "0"


def _rows(folder: Path, release: Release) -> Rows:
    """The accepted images of a release."""
    shards, checked = releases.files(folder, release, release.generators)
    accepted, found = export.accepted_ids(checked), Rows()
    for row in export.rows(shards, ["sample_id", "label", "pixel_hash"]):
        if row["sample_id"] in accepted:
            found.setdefault(row["label"], {})[row["sample_id"]] = row["pixel_hash"]
    return found
