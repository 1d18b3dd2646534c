"""`python -m benchmarks.gain [DATASET …] [--arms ARM …]`: every arm on real scarce data, five seeds each.

A data set is a project of its own in .tailforge/bench/<name>, laid by `tailforge init` and run by `tailforge run` with the
settings below: what is done is not done again, so a benchmark that was stopped goes on. The settings were chosen on
validation rows; the stage `evaluate` of this benchmark alone opens the test rows. Written, for the data sets that are done:

    benchmarks/results/gain.csv          dataset, arm, seed, metric, value
    benchmarks/results/gain_summary.csv  dataset, metric, baseline, estimate, low, high: `synthetic` minus that arm, and
                                         the equivalent real images a class, with the last point of the learning curve
    docs/benchmarks.md                   the tables

`digits@1` is digits once more with seed 1 for everything, scarcity and splits too where the data leave them open: a rerun, to
see whether its figures lie within the intervals of the first.

Rows of data sets that are not run this time stay as they are. All data but the digits come from the folder that
TAILFORGE_DATASETS names.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.command import errors_in_a_line
from pipeline.config import REAL_ARMS
from pipeline.core import work
from pipeline.errors import InputError
from pipeline.metrics.standard import BalancedAccuracy
from pipeline.report import numbers, words
from tailforge import project, settings

PLACE, RESULTS, PAGE = Path(".tailforge/bench"), Path("benchmarks/results"), Path("docs/benchmarks.md")
GAIN = ("dataset", "arm", "seed", "metric", "value")
SUMMARY = (
    "dataset", "metric", "baseline", "estimate", "low", "high", "verdict", "generator", "synthetic_fraction", "labels",
    "machine",
)  # fmt: skip
TAILFORGE = [sys.executable, "-c", "from tailforge.cli import main; main()"]
# Where the equivalent is the curve's end, it is more than that.
EQUIVALENT, CURVE_END = "equivalent_real_images_per_class", "equivalent_curve_end"
METRIC = BalancedAccuracy  # decides in all of these projects
TITLE = words.capital(METRIC.title)
COMMON = {"evaluate.metric": METRIC.name, "arms.seeds": 5, "arms.null_controls": True}


@dataclass(frozen=True)
class Dataset:
    """Where a data set lies below the folder of data sets, its list of scarce train ids, and settings of its own."""

    folder: str = ""  # "" for the digits that are embedded
    ids: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)


# What a flow of the budget's size and classifiers of small photographs have in common. The autoencoder goes between the codes
# of two train images of a class, as DeepSMOTE does (Dablain et al., 2021).
FLOW = {
    "generators": ["flow_matching", "vae"],
    "vae.mode": "interpolate",
    "flow_matching.width": 64,
    "flow_matching.steps": 2000,
    "flow_matching.batch_images": 128,
    "flow_matching.guidance": "none",
    "flow_matching.ema": 0.998,
    "sample.fill_to": 500,
    "sample.surplus": 1.0,
    "classifier.steps": 1000,
    "classifier.batch_images": 64,
}
CURVE = {"arms.curve": [10, 30, 100]}
# Networks from fresh weights that see 32 pixels, where `tailforge init` would take an encoder.
FRESH = {
    "encoder.name": "none",
    "judges.encoder": "small",
    "classifier.mode": "scratch",
    "classifier.image_size": 0,
    "data.image_size": 32,
    "fit.image_size": 0,
}
# What `tailforge init` proposes, with one generator that takes minutes.
ENCODER = {"generators": ["vae"], "vae.mode": "interpolate", "sample.fill_to": 300, "sample.surplus": 1.0}
# A run takes minutes on two cores: one recipe, three seeds, and no synthetic images beside the real ones.
FINETUNE = ENCODER | {
    "classifier.mode": "finetune",
    "arms.real": ["augment+logit_adjustment"],
    "arms.synthetic_fractions": [0.0],
    "arms.seeds": 3,
    "arms.null_controls": False,
    "measure.seeds": 1,
}
# Objects of rare classes on the faultless boards, which lie as they do whichever way they are turned.
COMPOSE = {
    "generators": ["compose"],
    "compose.symmetries": "both",
    "data.flips": "both",
    "split.on_identical": "drop",
    "classifier.augment": "flip_affine",
    "sample.fill_to": 200,
    "sample.surplus": 1.0,
}
DATASETS = {
    "digits": Dataset(
        changes={
            "generators": ["flow_matching", "diffusion", "vae"],
            "vae.mode": "interpolate",
            "arms.ensemble": True,
            "sample.fill_to": 400,
            "sample.surplus": 1.0,
            "classifier.steps": 1500,
        },
    ),
    "wbc_bccd": Dataset(
        "wbc_bccd", changes=FRESH | FLOW | {"flow_matching.batch_images": 64, "data.flips": "both", "classifier.steps": 500}
    ),
    "wbc_bccd+encoder": Dataset("wbc_bccd", changes=ENCODER | {"data.flips": "both"}),
    "wbc_bccd+finetune": Dataset("wbc_bccd", changes=FINETUNE | {"data.flips": "both", "finetune.size": 128}),
    "mnist": Dataset("mnist", "mnist_lt_ir100.json", FLOW | CURVE),
    "fashion_mnist": Dataset("fashion_mnist", "fashion_mnist_lt_ir100.json", FLOW | CURVE | {"classifier.steps": 1500}),
    "deeppcb64": Dataset(
        "deeppcb64",
        "deeppcb64_lt_ir50.json",
        FRESH | FLOW | {"data.flips": "both", "classifier.augment": "flip_affine", "arms.curve": [8, 30, 100]},
    ),
    "deeppcb64+encoder": Dataset(
        "deeppcb64",
        "deeppcb64_lt_ir50.json",
        ENCODER
        | {
            "data.flips": "both",
            "classifier.augment": "flip_affine",
            "classifier.modes": ["scratch", "frozen"],
            "classifier.image_size": 32,
            "classifier.steps": 1000,
            "classifier.batch_images": 64,
            "arms.real": ["augment+logit_adjustment", "augment+logit_adjustment_strong", "self_distillation"],
        },
    ),
    "deeppcb128+encoder": Dataset("deeppcb128", "deeppcb128_scarce.json", COMPOSE),
    "deeppcb128+finetune": Dataset(
        "deeppcb128",
        "deeppcb128_scarce.json",
        FINETUNE
        | COMPOSE
        | {"finetune.size": 128, "finetune.steps": 150, "arms.synthetic_fractions": [0.0, 0.5], "arms.labels": ["hard"]},
    ),
    # Cells with the surroundings of other photographs. Of basophils there are two, and a white cell of no kind may be of any.
    "bccd_voc+encoder": Dataset(
        "bccd_voc",
        changes=COMPOSE
        | {
            "generators": ["compose"],
            "compose.backgrounds": ["background"],
            "data.backgrounds": 2,
            "data.leave_out": ["BASOPHIL", "WBC_unknown"],
            "fit.image_size": 0,
        },
    ),
    "trashnet": Dataset("trashnet", changes=FRESH | FLOW),
    "trashnet+encoder": Dataset("trashnet", changes=ENCODER),
    "trashnet+finetune": Dataset("trashnet", changes=FINETUNE | {"finetune.size": 96}),
    "cifar10_lt": Dataset("cifar10_lt", changes=FLOW),
    "cifar10_lt+encoder": Dataset(
        "cifar10_lt",
        changes=ENCODER
        | {
            "encoder.name": "tf_efficientnet_lite0.in1k",
            "encoder.size": 96,
            "judges.encoder": "pretrained",
            "classifier.mode": "frozen",
            "frozen.views": 2,
        },
    ),
}


def lay(name: str, data: Path | None, arms: Sequence[str]) -> Path:
    """The project of a data set, made or with its settings brought up to date. Raises InputError where the data are missing."""
    first, _, seed = name.partition("@")
    dataset, place = DATASETS[first], PLACE / name
    changes = COMMON | {"arms.real": list(arms)} | dict(dataset.changes) | ({"seed": int(seed)} if seed else {})
    if not dataset.folder:
        if not place.exists():
            project.lay(place, {}, "the digits that come with scikit-learn")
    else:
        if data is None or not (data / dataset.folder).is_dir():
            raise InputError(
                f"{name}: TAILFORGE_DATASETS={data or ''} holds no folder {dataset.folder}",
                expected="the folder of data sets", remedy="set TAILFORGE_DATASETS",
            )  # fmt: skip
        source = data / dataset.folder
        if not place.exists():
            project.init(place, unpacked(source))
        if dataset.ids:
            shutil.copyfile(source / dataset.ids, place / "data/lists" / dataset.ids)
            changes |= {"scarcity.kind": "ids", "scarcity.ids": f"data/lists/{dataset.ids}"}
    work.write(place / "dvc.yaml", project.stages())
    # From the project as it was laid: a setting that is no longer below goes back to what it was.
    laid = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=place, capture_output=True, text=True, check=True).stdout
    work.write(place / "params.yaml", settings.apply(laid, changes))
    return place


def unpacked(source: Path) -> Path:
    """The folder of images of a data set: `source`, or its archive unpacked below PLACE with its groups file beside."""
    archive = next((file for file in source.iterdir() if ".tar" in file.name), None)
    if archive is None:
        return source
    folder = PLACE / "data" / source.name
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as packed:
            packed.extractall(partial, filter="data")
        if (source / "groups.json").exists():
            shutil.copyfile(source / "groups.json", partial / "groups.json")
        partial.rename(folder)
    return folder / source.name


def rows(name: str, place: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of gain.csv and of gain_summary.csv from a project that was run."""
    metrics = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
    details = json.loads((place / "data/evaluation/details.json").read_text(encoding="utf-8"))
    gains = [
        {"dataset": name, "arm": arm, "seed": seed, "metric": metric, "value": round(value, 6)}
        for arm, scores in details["per_seed"].items()
        for metric, values in scores.items()
        for seed, value in enumerate(values)
    ]
    choice = details["choice"]
    of_all = {
        "dataset": name, "baseline": metrics["baseline"], "verdict": metrics["verdict"],
        "generator": metrics["generator"], "synthetic_fraction": choice["synthetic_fraction"], "labels": choice["labels"],
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
    }  # fmt: skip
    summary = [of_all | {"metric": metric} | value for metric, value in metrics["gain"].items()]
    if found := metrics.get("equivalent_real_images"):
        ends = {"estimate": found["real_images_per_class"], "low": found["low"], "high": found["high"]}
        last = dict.fromkeys(ends, found["curve"][-1][0])
        summary += [of_all | {"metric": EQUIVALENT} | ends, of_all | {"metric": CURVE_END} | last]
    return gains, summary


def merged(file: Path, columns: Sequence[str], new: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """`new` and the rows of other data sets that were in `file`, written to it."""
    fresh = [{column: str(row[column]) for column in columns} for row in new]
    known = {row["dataset"] for row in fresh}
    if file.is_file():
        with open(file, encoding="utf-8", newline="") as stream:
            fresh += [row for row in csv.DictReader(stream) if row["dataset"] not in known]
    fresh.sort(key=lambda row: (list(DATASETS).index(row["dataset"].split("@")[0]), row["dataset"]))  # reruns last
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(fresh)
    work.write(file, text.getvalue())
    return fresh


HEAD = f"""# What synthetic images are worth

Written by `make bench-gain`; all figures are in benchmarks/results. {TITLE} on the real test rows, mean of five
seeds. The gain is `synthetic` minus the baseline, the real-only arm that is best on validation, with its 95 % interval over
seeds and groups. Equivalent real images are how many more real images of each class the best real-only arm needs to score as
`synthetic` does ([how](evaluation.md)). `cifar10_lt` runs at the small budget of two cores: 1,000 steps of 64 images per
classifier, at which transforms do not pay yet.

A name with `+encoder` is the same data through EfficientNet-Lite0 with weights of ImageNet ([encoder](encoder.md)).
Classifiers are small networks on its features, so all arms have this outside knowledge. The one generator is `vae` at 32
pixels. Without the encoder networks start from fresh weights and see 32 pixels. `deeppcb64+encoder` compares both modes, and
validation chooses. `+finetune` trains the encoder's own network on, by one recipe and three seeds. Of trashnet and wbc_bccd it
shows what real images reach, and no synthetic ones are added.

`deeppcb128` and `bccd_voc` are rare objects in surroundings, and the generator is [`compose`](generators/compose.md): faults of
circuits on faultless boards, by their masks; blood cells in the smears of other photographs, by their boxes.

| data | verdict | baseline | generator, fraction, labels | gain, points | tail recall, points | equivalent real images |
|---|---|---|---|---|---|---|"""


def page(gains: Sequence[Mapping[str, str]], summary: Sequence[Mapping[str, str]]) -> str:
    """docs/benchmarks.md."""
    lines = [HEAD]
    for name in dict.fromkeys(row["dataset"] for row in summary):
        mine = {row["metric"]: row for row in summary if row["dataset"] == name}
        first = mine[METRIC.name]
        chosen = f"{first['generator']}, {float(first['synthetic_fraction']):g}, {first['labels']}"
        cells = [name, f"**{first['verdict']}**", first["baseline"], chosen]
        cells += [_points(mine.get(metric)) for metric in (METRIC.name, "tail_recall")]
        cells.append(_images(mine.get(EQUIVALENT), mine.get(CURVE_END)))
        lines.append(f"| {' | '.join(cells)} |")
    lines += _reruns({row["dataset"]: row for row in summary if row["metric"] == METRIC.name})
    for name in dict.fromkeys(row["dataset"] for row in gains):
        lines += [f"\n## {name}\n", f"| arm | {METRIC.title} | each seed |", "|---|---|---|"]
        scores: dict[str, list[float]] = {}
        for row in gains:
            if row["dataset"] == name and row["metric"] == METRIC.name:
                scores.setdefault(row["arm"], []).append(float(row["value"]))
        for arm, values in sorted(scores.items(), key=lambda item: -sum(item[1])):
            lines.append(f"| {arm} | {sum(values) / len(values):.3f} | {' '.join(f'{value:.3f}' for value in values)} |")
    return "\n".join(lines) + "\n"


def _reruns(gains: Mapping[str, Mapping[str, str]]) -> list[str]:
    lines = []
    for name, again in gains.items():
        if first := gains.get(name.split("@")[0] if "@" in name else ""):
            inside = float(first["low"]) <= float(again["estimate"]) <= float(first["high"])
            said = f"{'within' if inside else 'outside'} the interval of the first run, {_points(first)}"
            lines.append(f"- `{name}`, the same with other seeds: {_points(again)}, {said}.")
    return ["", *lines] if lines else []


def _points(row: Mapping[str, str] | None) -> str:
    return numbers.in_points(row and {key: float(row[key]) for key in ("estimate", "low", "high")})


def _images(row: Mapping[str, str] | None, last: Mapping[str, str] | None) -> str:
    if row is None or last is None:
        return "–"
    end, values = float(last["estimate"]), (float(row[key]) for key in ("estimate", "low", "high"))
    about, low, high = (f"{'> ' if value >= end else ''}{numbers.images(value)}" for value in values)
    return f"{about} [{low}, {high}]"


def main() -> None:
    """Run the data sets that are named, or all."""
    parser = argparse.ArgumentParser(description="Every arm on real scarce data.")
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help=f"of {', '.join(DATASETS)}, or NAME@SEED; all, if none")
    parser.add_argument(
        "--arms",
        nargs="+",
        default=list(REAL_ARMS),
        metavar="ARM",
        help="real-only arms, where a data set has no choice of its own; all, if none",
    )
    given = parser.parse_args()
    folder = os.environ.get("TAILFORGE_DATASETS")
    with errors_in_a_line():
        for name in given.datasets or DATASETS:
            first, at, seed = name.partition("@")
            if first not in DATASETS or (at and not seed.isdecimal()):
                raise InputError(f"data set {name}", expected=f"one of {', '.join(DATASETS)}, or one of them @ a seed")
            place = lay(name, Path(folder) if folder else None, given.arms)
            print(f"{name}: {place}", file=sys.stderr, flush=True)
            environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
            if status := subprocess.run([*TAILFORGE, "run"], cwd=place, env=environment, check=False).returncode:
                sys.exit(status)
            gains, summary = rows(name, place)
            every = merged(RESULTS / "gain.csv", GAIN, gains), merged(RESULTS / "gain_summary.csv", SUMMARY, summary)
            work.write(PAGE, page(*every))


if __name__ == "__main__":
    main()
