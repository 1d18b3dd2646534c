"""`python -m benchmarks.modes [DATASET …] [--only WORD]`: what the settings of the classifier's modes are worth.

Defaults are chosen by it: on validation rows alone, of several data sets, by the arm `augment+logit_adjustment` under equal
seeds. Each data set is prepared as `tailforge init` proposes, at SIDE pixels. A run that is there already is kept. The table
goes into docs/encoder.md, between the marks, with the seconds of a run where one runs on each core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import marks
from benchmarks.command import errors_in_a_line
from benchmarks.prepared import prepared
from pipeline.arms import Arm, recipe_of
from pipeline.classifier.inputs import Inputs
from pipeline.classifier.packed import Campaign, runs_of, scores_of, train_all
from pipeline.core import work

PAGE, MARK = Path("docs/encoder.md"), "modes"
SIDE, SEEDS, ARM = 224, range(2), "augment+logit_adjustment"
NAMES = ("trashnet", "wbc_bccd", "deeppcb64")

# What is changed in the settings that `tailforge init` proposes, by what the table calls it.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "scratch, 32 pixels": {"classifier.mode": "scratch", "classifier.steps": 300, "classifier.image_size": 32},
    "frozen": {},
    "frozen, no hidden layer": {"frozen.width": 0},
    "frozen, 512 units": {"frozen.width": 512},
    "frozen, no views": {"frozen.views": 0},
    "finetune, 96 pixels": {"classifier.mode": "finetune", "finetune.size": 96},
}  # fmt: skip


def measured(name: str, changes: Mapping[str, Any]) -> tuple[list[float], float]:
    """Scores on validation rows by seed, and seconds a run."""
    with prepared(name, {"data.image_size": SIDE, **changes}) as (params, data):
        mode = params.modes[0]
        shared, encoder = Campaign.of(params, data, mode), Inputs.of(params, data.shape, mode).encoder
        folder = Path("runs") / work.key(shared.config.model_dump(), encoder and encoder.key, params.frozen.views)
        runs = runs_of(Arm(ARM, recipe_of(shared.config, ARM, "")), SEEDS, folder)
        folder.mkdir(parents=True, exist_ok=True)
        took = folder / "seconds.json"
        if not took.exists():
            began = time.perf_counter()
            train_all(shared, runs)
            work.write_json(took, (time.perf_counter() - began) / len(runs))
        return list(scores_of(runs).scores), float(json.loads(took.read_text()))


def table(found: Mapping[str, Mapping[str, tuple[list[float], float]]]) -> str:
    """The lines between the marks."""
    names = list(dict.fromkeys(name for of in found.values() for name in of))
    lines = [f"| settings | {' | '.join(names)} | seconds a run |", f"|---|{'---|' * len(names)}---|"]
    for what, of in found.items():
        cells = [
            f"{np.mean(of[n][0]):.3f} ± {np.std(of[n][0], ddof=1) / len(SEEDS) ** 0.5:.3f}" if n in of else "–" for n in names
        ]
        lines.append(f"| {what} | {' | '.join(cells)} | {np.mean([seconds for _, seconds in of.values()]):.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure on the data sets that are named, or on all."""
    parser = argparse.ArgumentParser(description="Settings of the classifier's modes, on validation rows.")
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help=f"of {', '.join(NAMES)}; all, if none")
    parser.add_argument("--only", default="", metavar="WORD", help="of the settings those whose name has this word")
    given = parser.parse_args()
    found = dict[str, dict[str, tuple[list[float], float]]]()
    with errors_in_a_line():
        for what, changes in VARIANTS.items():
            for name in given.datasets or NAMES:
                if given.only in what:
                    found.setdefault(what, {})[name] = scores, seconds = measured(name, changes)
                    print(f"{name}: {what}: {np.mean(scores):.3f}, {seconds:.1f} s a run", file=sys.stderr, flush=True)
        if not given.only and not given.datasets:
            marks.replace(PAGE, MARK, table(found))


if __name__ == "__main__":
    main()
