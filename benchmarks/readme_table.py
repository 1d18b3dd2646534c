"""`python -m benchmarks.readme_table`: write the arms of metrics.json into README.md, between its two marks.

The table in the README is this command's; it is not edited by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import marks

MARK = "results: written by `make readme`"


def interval(value: dict[str, float] | None, scale: float = 1.0, form: str = ".3f") -> str:
    """`estimate [low, high]`, or a dash where the metric is not defined."""
    return (
        "–" if value is None else "{} [{}, {}]".format(*(format(value[k] * scale, form) for k in ("estimate", "low", "high")))
    )


def table(metrics: dict[str, Any]) -> str:
    """The verdict and the arms as Markdown."""
    lines = ["| arm | balanced accuracy | tail recall | macro F1 |", "|---|---|---|---|"]
    rows = [(name, values) for name, values in metrics["arms"].items()]
    rows += [(f"{name} (scikit-learn)", values) for name, values in metrics.get("reference", {}).items()]
    for name, values in rows:
        cells = " | ".join(interval(values.get(m)) for m in ("balanced_accuracy", "tail_recall", "macro_f1"))
        mark = " ← best real-only on validation" if name == metrics["baseline"] else ""
        lines.append(f"| {name}{mark} | {cells} |")
    gain = metrics["gain"]
    points = {m: interval(gain.get(m), 100, "+.1f") for m in ("balanced_accuracy", "tail_recall")}
    verdict = f"Verdict **{metrics['verdict']}**: `synthetic` minus `{metrics['baseline']}`, in points: " + ", ".join(
        f"{m.replace('_', ' ')} {text}" for m, text in points.items()
    )
    return "\n".join([*lines, "", verdict + "."])


def main() -> None:
    """Replace what stands between the marks."""
    metrics = json.loads(Path("metrics.json").read_text(encoding="utf-8"))
    marks.replace(Path("README.md"), MARK, table(metrics))


if __name__ == "__main__":
    main()
