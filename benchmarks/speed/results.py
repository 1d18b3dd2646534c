"""Results of the parts: benchmarks/results/speed.csv, docs/speed.md and the last lines of output, all from the same rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from pipeline.core import work


@dataclass(frozen=True)
class Row:
    """A figure. `part` and `name` say what it is. If it belongs in a table, bars separate the words of `name`."""

    part: str
    name: str
    value: float
    unit: str
    machine: str


COLUMNS = tuple(field.name for field in fields(Row))
PARTS = ("generator", "scaling", "pool", "compose", "packing", "overhead")
LAST = {  # last lines of the command, and the row of each
    "training_ratio": ("generator", "training_ratio"),
    "sampling_ratio": ("generator", "sampling_ratio"),
    "training_peak_share": ("generator", "training_peak_share"),
    "sampling_peak_share": ("generator", "sampling_peak_share"),
    "overhead_seconds": ("overhead", "overhead_seconds"),
}
TARGETS = {
    "training_ratio": "at least 4", "sampling_ratio": "at least 10", "training_peak_share": "at least 0.35",
    "sampling_peak_share": "at least 0.60", "overhead_seconds": "below 20",
}  # fmt: skip


def merged(file: Path, new: Iterable[Row]) -> list[Row]:
    """`new`, plus rows from `file` of parts that were not run this time. Writes the result to `file`."""
    rows = list(new)
    fresh = {row.part for row in rows}
    if file.is_file():
        with open(file, encoding="utf-8", newline="") as stream:
            known = [Row(r["part"], r["name"], float(r["value"]), r["unit"], r["machine"]) for r in csv.DictReader(stream)]
        rows += [row for row in known if row.part not in fresh]
    rows.sort(key=lambda row: PARTS.index(row.part))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((*astuple(row)[:2], f"{row.value:.6g}", *astuple(row)[3:]) for row in rows)
    work.write(file, text.getvalue())
    return rows


def last_lines(rows: Sequence[Row]) -> list[str]:
    """Lines such as `training_ratio X`, for figures that were measured."""
    found = {(row.part, row.name): row.value for row in rows}
    return [f"{name} {found[key]:.3g}" for name, key in LAST.items() if key in found]


HEAD = """# How fast

Written by `make bench-speed`; every figure is in benchmarks/results/speed.csv. `python -m benchmarks.speed PART …` runs some
parts: generator, scaling, pool, compose, packing, overhead.
"""

TEXTS = {
    "generator": """## Generator: ours and the plain recipe

28 x 28 grey images of a long tail. **Plain** is the usual recipe with diffusers: UNet2DModel with classes, in fp32, with about
as many parameters as ours; DDPMScheduler; a data set of PIL images behind a DataLoader with ToTensor; AdamW; sampling by
DDIMScheduler. **Ours** is `flow_matching` as its `fit` trains and its `sample` samples, including batching, augmentation,
moving average and decoding. Both have the same threads, rows, class shares in a batch, batch size and number of images sampled
at once, in one run on one machine. Only ours has space-to-depth: that is part of the answer.

Quality is the project's KID: embeddings of judges that were fitted on the scarce train rows, against as many real rows of each
class that nothing was fitted on. A setting has *no loss* if its KID lies within or below the 95 % interval of the best setting
of the same model.

The plain recipe trains for longer than ours. If `plain_reached_our_quality` is 0, that was not enough: its own images are not
of equal quality, and the number of steps they need means nothing. So equal quality is constructed. The time of an evaluation
does not depend on the weights, so the plain recipe is *lent* weights as good as ours: a U-Net of the project's family
`diffusion` after as many steps as ours, sampled by DDIM. The KID of `lent` settings is that of these images. Their speed is
that of the plain network with as many evaluations. `sampling_ratio` compares our fastest setting without loss with the fastest
lent one; quality is equal if `ours_at_least_as_good` is 1. `sampling_ratio_at_their_quality` takes our fastest setting that is
as good as the best lent one, and is 0 if there is none. Each setting's time is the least of three.

FLOP are counted by torch.utils.flop_counter (forward and backward, matrix multiplications and convolutions only). The peak is
the fastest of several bf16 products of square matrices of 1,024 to 4,096, on the same threads, before and after. Shares of
other widths are of steps on random images.
""",
    "scaling": """## Cost per row

Each figure is from a process of its own: the function that a stage calls, on n rows of 8 x 8 images, without the preparation.
`write` and `read` are of a manifest, `validation` the expectations on its table, `gate` the whole stage `validate` with its
checks on pixels, `duplicates` the search for near-duplicates of `prepare`, `sampling` a pool of the family `naive`. Growth is
the time per row divided by that at a tenth of the rows; the target is below 1.25. Memory is the process's peak.
""",
    "pool": """## Cost per image of a pool

The cost of an image apart from the network that makes it, in processor seconds of one thread. On a shared machine processor
seconds say more than wall time, though other work slows them too. Costs that do not grow with the pool are left out.
`write shards` is the whole stage `sample` without the network, including `encode PNG`. `look` is everything that the gate does
shard by shard, including decoding, with and without its judges. `rest of the gate` is what it does with the rows of all shards
together. A file and a gigabyte are what `dvc add` takes for one more of each. 28 x 28 are enlarged digits; 256 x 256 are cut
from the two photographs that come with scikit-learn. Work and operations are counted, not timed. What follows for a million
images: [scale](scale.md).
""",
    "compose": """## Composites

What `compose` makes with its defaults, on all processors: boards of grain, 20 with a fault and 200 that lend surroundings. Time
goes to the transforms that compare every place.
""",
    "packing": """## Classifiers: packed, and one after the other

Ten arms with five seeds, in two ways: packed, one single-threaded worker per core; and one after the other on all threads.
Fewer than fifty runs are made (`runs`), and their seconds are scaled to fifty, including the start of the workers. Digits are
trained as params.yaml says, 28 x 28 images with the steps that `tailforge init` writes.
""",
    "overhead": """## Overhead

A project of digits with tiny settings has the stages of the demo. `wall` is `tailforge run` from start to exit in the fresh
project. `work` is the time of the same stages when they are called again, in one process that has imported everything and has
run them once. The difference is Prefect, DVC, start-up and imports, whatever the size of the work; docs/decisions/0007-warm.md
breaks it down. `up_to_date` is a second `tailforge run`, which finds nothing to do: nothing is computed twice.
""",
}


def page(rows: Sequence[Row]) -> str:
    """docs/speed.md."""
    found = {(row.part, row.name): row.value for row in rows}
    lines = [HEAD, "| what | measured | target |", "|---|---|---|"]
    lines += [f"| {name} | {found[key]:.3g} | {TARGETS[name]} |" for name, key in LAST.items() if key in found]
    for part in PARTS:
        own = [row for row in rows if row.part == part]
        if own:
            machines = "; ".join(dict.fromkeys(row.machine for row in own))
            lines += ["", TEXTS[part] + f"\nOn {machines}.", "", *_tables(own)]
    return "\n".join(lines) + "\n"


def _tables(rows: Sequence[Row]) -> list[str]:
    """A table for each `kind` in names `kind | what | column`, then one of the names without bars."""
    lines: list[str] = []
    split = [(row.name.split("|"), row) for row in rows]
    for kind in dict.fromkeys(words[0] for words, _ in split if len(words) == 3):
        own = [(words, row) for words, row in split if len(words) == 3 and words[0] == kind]
        columns = {words[2]: row.unit for words, row in own}
        heads = [f"{name}, {unit}" if unit else name for name, unit in columns.items()]
        lines += [f"| {' | '.join([kind, *heads])} |", "|---" * (len(columns) + 1) + "|"]
        cells = {(words[1], words[2]): f"{row.value:.4g}" for words, row in own}
        for what in dict.fromkeys(words[1] for words, _ in own):
            lines.append(f"| {' | '.join([what, *(cells.get((what, column), '–') for column in columns)])} |")
        lines.append("")
    plain = [row for words, row in split if len(words) == 1]
    if plain:
        lines += [
            "| figure | value |",
            "|---|---|",
            *(f"| {r.name} | {r.value:.4g} {r.unit}".rstrip() + " |" for r in plain),
            "",
        ]
    return lines[:-1]
