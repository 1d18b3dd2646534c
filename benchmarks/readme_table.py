"""`python -m benchmarks.readme_table`: write the arms of metrics.json into README.md, between its two marks.

The table in the README is this command's; it is not edited by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import marks
from pipeline.metrics.registry import primary
from pipeline.report import numbers, words

MARK = "results: written by `make readme`"


def table(metrics: dict[str, Any]) -> str:
    """The verdict and the arms as Markdown."""
    decides = primary(metrics)
    shown = list(dict.fromkeys([decides, "tail_recall", "macro_f1"]))
    lines = [f"| arm | {' | '.join(map(words.metric, shown))} |", "|---" * (1 + len(shown)) + "|"]
    rows = [(name, values) for name, values in metrics["arms"].items()]
    rows += [(f"{name} (scikit-learn)", values) for name, values in metrics.get("reference", {}).items()]
    for name, values in rows:
        cells = " | ".join(numbers.score(values.get(m)) for m in shown)
        mark = " ← best real-only on validation" if name == metrics["baseline"] else ""
        lines.append(f"| {words.marked(name, metrics)}{mark} | {cells} |")
    gain = metrics["gain"]
    points = {m: numbers.in_points(gain.get(m)) for m in dict.fromkeys([decides, "tail_recall"])}
    verdict = f"Verdict **{metrics['verdict']}**: `synthetic` minus `{metrics['baseline']}`, in points: " + ", ".join(
        f"{words.metric(m)} {text}" for m, text in points.items()
    )
    return "\n".join([*lines, "", verdict + "."])


def main() -> None:
    """Replace what stands between the marks."""
    metrics = json.loads(Path("metrics.json").read_text(encoding="utf-8"))
    marks.replace(Path("README.md"), MARK, table(metrics))


if __name__ == "__main__":
    main()
