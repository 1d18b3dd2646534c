"""docs/scale.md. The texts explain; every figure comes from the plans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from benchmarks.scale import arithmetic
from benchmarks.scale.assumed import FITS, GPUS, table
from benchmarks.scale.plan import ALL, CURRENT, HASHED_BY, SHARDS, Plan

# (smallest value, unit, name of the unit)
TIMES = ((172_800, 86_400, "d"), (7200, 3600, "h"), (120, 60, "min"), (1, 1, "s"), (1e-3, 1e-3, "ms"), (0, 1e-6, "µs"))
SIZES = ((1e12, 1e12, "TB"), (1e9, 1e9, "GB"), (1e6, 1e6, "MB"), (1e3, 1e3, "kB"), (0, 1, "B"))
LAYOUTS = (1, 10)  # shards with this many times the images that params.yaml sets
_, SOME, MOST = GPUS
CASES = [(1, CURRENT), *((n, SHARDS) for n in GPUS), *((n, ALL) for n in GPUS)]


def page(plans: Sequence[Plan]) -> str:
    """The text of docs/scale.md."""
    first, large = plans[0], plans[-1]
    slower = replace(large, cluster=replace(large.cluster, share_of_peak=large.cluster.share_of_peak / 2))
    facts = {
        "machine": first.costs.machine,
        "load": number(round(first.costs.load)),
        "made": f"{first.made:,}",
        "wanted": f"{first.task.wanted_images:,}",
        "most": MOST,
        "some": SOME,
        "restart": seconds(large.cluster.restart_seconds),
        "sampling": seconds(large.sampling_seconds(MOST)),
        "half": seconds(slower.wall_seconds(SOME, ALL)),
        "whole": seconds(large.wall_seconds(SOME, ALL)),
        "left": "; ".join(stage.name for stage in large.stages if stage.spread is None),
        "large": large.image.form,
        "on_gpu": large.on_gpu.name,
        "room": f"{int(large.on_gpu.memory_bytes / large.image.pixel_bytes):,}",
        "drawn": f"{large.task.classifier_steps * large.task.classifier_batch:,}",
        "looking": seconds(large.made * large.look_seconds),
    }
    times = [part for plan in plans for part in (f"### {plan.image.form}\n", _stages(plan))]
    parts = [
        HEAD, _answer(plans), HERE, _here(plans), ASSUMPTIONS, _assumptions(plans), TIME, *times, CHANGES, _changes(plans),
        LEFT, STORAGE, _storage(plans), NETWORK, _shards(plans), GRADIENTS, _gradients(plans), FAILURES, _failures(plans),
        CHECKPOINTS, _checkpoints(plans), MEMORY, _memory(plans), BREAKS,
    ]  # fmt: skip
    return "\n".join(part.format(**facts) for part in parts)


HEAD = """# A million images

Written by `make scale` from benchmarks/results/speed.csv, docs/bakeoff.csv and the assumptions below, by the formulas in
benchmarks/scale/arithmetic.py.

The cost of an image was **measured** on two cores ({machine}). **Nothing was measured on a GPU**, on several machines or on an
object store. Those times are arithmetic on counted FLOP, measured processor seconds and assumptions, and no better than these.

*As it is*: one GPU, which the program uses unless told otherwise. `engine.workers` can spread shards and classifiers, and
`fit.processes` can average gradients ([several processes](run.md#several-processes-several-machines)). *Shards*: `sample` runs
as one process per GPU, each with its own shards; nothing else changes. *All*: everything that [can spread](#what-to-change)
does, including what is still to be written.
"""

HERE = """## Cost per image, here

Processor seconds of one thread, and bytes, measured while about {load} processes competed for the cores: the figures are
rather too high than too low. Costs are taken as linear in the images; [speed](speed.md) describes the parts and how the cost
per row grows. A star marks arithmetic: counted FLOP at the FLOP/s that the narrower network reached on smaller images. 28 x 28
are grey digits, 256 x 256 colour photographs.
"""

ASSUMPTIONS = """## Assumptions
"""

TIME = """## Wall time

Stages follow each other. Work that does not spread counts in full on any number of GPUs, as one core does it; only PNGs are
encoded and decoded on all cores of a GPU's share. The slowest stage of each column is in bold. `prepare`, `drift` and `judges`
see real images alone and are left out. At half the assumed share of the peak, {some} GPUs would take {half} instead of {whole}
for {large}, *all*.
"""

CHANGES = """## What to change
"""

LEFT = """\
What remains on one machine: {left}.
DVC hashes an output in one process. The rows of all shards meet in the search for near-duplicates, which sorts them, and in
the tables of checks. Shards would hand over thumbnails and hashes, and the search would be the next to spread.
"""

STORAGE = """## Storage

{made} images are made for {wanted} accepted ones. A pool is a folder of Parquet shards, each an object of DVC's cache under
its md5, and a list of them. With a file per image, each image costs DVC a hash and a copy, and the object store a request.
Much larger shards are too few for {most} GPUs, and more must be made again when one is lost.
"""

NETWORK = """## Network

Shards while `sample` runs, if each is stored at once:
"""

GRADIENTS = """\
Gradients of a fit, averaged in a ring and not hidden behind the backward pass. With few images per GPU a step takes as long as
launching its operations, so a fit takes the number of GPUs on which it is shortest:
"""

FAILURES = """## Failures

A shard is the unit of work. Its images depend on their seeds and the weights alone, it appears whole or not at all, and a run
resumes at the first missing shard. In `sample` a failure costs the failed GPU half a shard and a restart, and the others
nothing. But a restart takes {restart}, and all of `sample` on {most} GPUs takes {sampling} for {large}: others must take over
the shards of a failed GPU. Expected failures are those of the whole run, *all*:
"""

CHECKPOINTS = """\
A fit stops as a whole and resumes from its last checkpoint. The best interval is √(2 · time to write · time between failures)
(Young, Daly). The program's own interval suits machines that are switched off at any time, and should follow this formula on
others:
"""

MEMORY = """## Memory: what breaks first

Memory of one process, for all the images that are made:
"""

BREAKS = """\
1. *{on_gpu}*: there is room for {room} of {large}. A run draws {drawn} images: it should
   read these from the shards and leave the others where they are.
2. Time: the gate looks at all images in one process, {looking} of {large}.
3. Sources: a row names all train images of its class, so the sources grow with the pool and with the train set. A row should
   name a list that is stored once.
"""


def number(value: float) -> str:
    """Three significant digits, or all digits before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def seconds(value: float) -> str:
    """A time in the largest unit that suits it."""
    return _scaled(value, TIMES)


def size(value: float) -> str:
    """A number of bytes with its unit."""
    return _scaled(value, SIZES)


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{number(100 * share)} %"


def _scaled(value: float, units: Sequence[tuple[float, float, str]]) -> str:
    unit, name = next((u, n) for least, u, n in units if value >= least)
    return f"{number(value / unit)} {name}"


def rows(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table, with an empty line after it."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in body)]
    return "\n".join(lines) + "\n"


def _forms(plans: Sequence[Plan]) -> list[str]:
    return [plan.image.form for plan in plans]


def _answer(plans: Sequence[Plan]) -> str:
    body = []
    for plan in plans:
        for name, state in (("as it is", CURRENT), ("shards", SHARDS), ("all", ALL)):
            wall, slowest = plan.wall_seconds(MOST, state), plan.bottleneck(MOST, state)
            times = [seconds(plan.wall_seconds(n, state)) for n in GPUS]
            gain = f"{number(plan.wall_seconds(1, CURRENT) / wall)} of {number(plan.most_speed_up(state))}"
            share = percent(slowest.seconds(MOST, state) / wall)
            body.append([f"{plan.image.form}, {name}", *times, gain, f"{slowest.name}, {share}"])
    head = [
        "a million accepted",
        *(f"{n} GPUs" for n in GPUS),
        f"speed-up on {MOST}, of the most (Amdahl)",
        f"slowest on {MOST}",
    ]
    broken = [
        f"A run with a million images of {plan.image.form} **fails** today: *{plan.worst.name}* take\n"
        f"{size(plan.worst.held_bytes)}, and only {size(plan.worst.memory_bytes)} are available. "
        "The times assume that [this](#memory-what-breaks-first) is fixed.\n"
        for plan in plans
        if plan.worst.share > 1
    ]
    return "\n".join([rows(head, body), *broken])


def _here(plans: Sequence[Plan]) -> str:
    costs, body = plans[0].costs, dict[str, list[str]]()
    for plan in plans:
        i, net, gigabytes = plan.image, plan.image.unet, plan.image.shard_bytes / 1e9
        # Networks were timed on the threads of the machine, all else on one.
        learned = costs.threads * net.training_flop / costs.training_flop_per_second
        sampled = costs.threads * costs.evaluations * net.evaluation_flop / costs.sampling_flop_per_second
        star = "" if plan is plans[0] else "*"
        parts = {
            "sample: network": sampled,
            "sample: encode PNG": i.encode_seconds,
            "sample: write shard, without encoding": i.write_seconds - i.encode_seconds,
            "validate: decode, embed, nearest train image": i.look_seconds,
            "validate: table, near-duplicates, checks, fidelity": i.rest_seconds,
            "DVC: hash and copy": plan.dvc_seconds(arithmetic.shards(plan.made, plan.shard_images)) / plan.made,
            f"{', '.join(HASHED_BY)}: hash": len(HASHED_BY) * gigabytes * costs.hash_gigabyte_seconds,
        }
        cells = {
            "fit, per image of a batch": seconds(learned) + star,
            **{name: seconds(value) + (star if name == "sample: network" else "") for name, value in parts.items()},
            "prepare: near-duplicate search, a real image": seconds(costs.duplicates_seconds),
            "PNG": size(i.png_bytes),
            "in a shard": size(i.shard_bytes),
            "**a million accepted on two cores, without the fit**": seconds(plan.made * sum(parts.values()) / 2) + star,
        }
        for name, cell in cells.items():
            body.setdefault(name, []).append(cell)
    return rows(["per image", *_forms(plans)], [[name, *cells] for name, cells in body.items()])


def _assumptions(plans: Sequence[Plan]) -> str:
    costs = plans[0].costs
    body = [[what, _valued(value, unit), source] for what, value, unit, source in table(plans[0].cluster, plans[0].task)]
    for form in _forms(plans):
        fit = FITS[form]
        body.append([f"fit of {form}: steps, images per step", f"{fit.steps:,}, {fit.batch_images}", fit.source])
    body.append(["accepted share of the images made", number(costs.accepted_share), "docs/bakeoff.csv, the worse data set"])
    body.append(["evaluations of the network per image", number(costs.evaluations), "docs/speed.md, Heun of 8 steps"])
    return rows(["what", "value", "source"], body)


def _valued(value: float, unit: str) -> str:
    if unit == "s":
        return seconds(value)
    if unit.startswith("bytes"):
        return size(value) + unit.removeprefix("bytes")
    return f"{value / 1e12:.4g} TFLOP/s" if unit == "FLOP/s" else f"{number(value)} {unit}".rstrip()


def _stages(plan: Plan) -> str:
    slowest = [plan.bottleneck(n, state).name for n, state in CASES]
    walls = [plan.wall_seconds(n, state) for n, state in CASES]
    body = []
    for stage in plan.stages:
        cells = [seconds(stage.seconds(n, state)) for n, state in CASES]
        body.append([stage.name, *(f"**{c}**" if stage.name == s else c for c, s in zip(cells, slowest, strict=True))])
    body.append(["all stages", *map(seconds, walls)])
    body.append(["speed-up", *(number(walls[0] / wall) for wall in walls)])
    body.append(["accepted images per second", *(number(plan.task.wanted_images / wall) for wall in walls)])
    return rows(["stage", "as it is", *(f"{name}, {n}" for name in ("shards", "all") for n in GPUS)], body)


def _changes(plans: Sequence[Plan]) -> str:
    n, large = SOME, plans[-1]
    saved = [{s.name: s.one_seconds - s.seconds(n, ALL) for s in plan.stages} for plan in plans]
    order = sorted((s for s in large.stages if s.change), key=lambda s: -saved[-1][s.name])
    body = [[s.name, s.change, *(seconds(of[s.name]) for of in saved)] for s in order]
    return rows(["stage", "change", *(f"saves on {n} GPUs, {form}" for form in _forms(plans))], body)


def _storage(plans: Sequence[Plan]) -> str:
    body = []
    for plan in plans:
        shards = [(f"shards of {k * plan.shard_images:,}", k * plan.shard_images, plan.image.shard_bytes) for k in LAYOUTS]
        for name, images, each in [("a file per image", 1, plan.image.png_bytes), *shards]:
            objects, c = arithmetic.shards(plan.made, images), plan.cluster
            stored = max(objects / c.puts_per_second, plan.made * each / c.storage_bytes_per_second)
            times = [seconds(plan.dvc_seconds(objects)), seconds(stored), seconds(images * plan.made_seconds)]
            body.append([plan.image.form, name, f"{objects:,}", size(images * each), size(plan.made * each), *times])
    head = [
        "form",
        "layout",
        "objects",
        "each",
        "together",
        "DVC: hash and copy",
        "stored by one machine",
        "made again by a GPU",
    ]
    return rows(head, body)


def _shards(plans: Sequence[Plan]) -> str:
    body = []
    for plan in plans:
        for n in GPUS:
            rate = n / plan.made_seconds
            machine = rate * plan.image.shard_bytes * plan.cluster.gpus_per_machine / n
            share = percent(machine / plan.cluster.storage_bytes_per_second)
            body.append(
                [plan.image.form, str(n), number(rate), f"{size(rate * plan.image.shard_bytes)}/s", f"{size(machine)}/s", share]
            )
    return rows(["form", "GPUs", "images/s", "to the store", "from a machine", "of what it can send"], body)


def _gradients(plans: Sequence[Plan]) -> str:
    body = []
    for plan in plans:
        for n in sorted({plan.fitting_gpus(n) for n in GPUS}):
            compute, reduce = plan.compute_seconds(n), plan.gradient_seconds(n)
            times = [seconds(reduce), seconds(compute), percent(reduce / (reduce + compute))]
            images = FITS[plan.image.form].batch_images // n
            body.append([plan.image.form, str(n), str(images), size(plan.gradient_bytes(n)), *times])
    return rows(["form", "GPUs", "images per GPU", "a GPU sends", "all-reduce", "compute", "all-reduce, of a step"], body)


def _failures(plans: Sequence[Plan]) -> str:
    body = []
    for plan in plans:
        for n in GPUS:
            c, wall = plan.cluster, plan.wall_seconds(n, ALL)
            expected = arithmetic.expected_failures(wall, n, c.gpu_mtbf_seconds)
            sampling = plan.sampling_seconds(n)
            stopped = arithmetic.expected_failures(sampling, n, c.gpu_mtbf_seconds)
            lost = arithmetic.retried_seconds(stopped, plan.shard_seconds, c.restart_seconds) / (sampling * n)
            chances = [number(expected), percent(arithmetic.probability_of_failure(expected))]
            times = [seconds(c.gpu_mtbf_seconds / n), seconds(wall)]
            body.append([plan.image.form, str(n), *times, *chances, seconds(plan.shard_seconds), percent(lost)])
    head = [
        "form",
        "GPUs",
        "time between failures",
        "wall",
        "failures expected",
        "at least one",
        "a shard takes",
        "lost of `sample`",
    ]
    return rows(head, body)


def _checkpoints(plans: Sequence[Plan]) -> str:
    from pipeline.runtime.training import CHECKPOINT_SECONDS  # torch, slow to import

    body = []
    for plan in plans:
        for n in sorted({plan.fitting_gpus(n) for n in GPUS}):
            c, write = plan.cluster, plan.checkpoint_seconds
            mtbf = c.gpu_mtbf_seconds / n
            best = arithmetic.best_interval_seconds(write, mtbf)
            lost = [percent(arithmetic.lost_share(write, t, c.restart_seconds, mtbf)) for t in (best, CHECKPOINT_SECONDS)]
            body.append([plan.image.form, str(n), size(plan.checkpoint_bytes), seconds(write), seconds(best), *lost])
    own = f"lost at the program's own {seconds(CHECKPOINT_SECONDS)}"
    return rows(["form", "GPUs", "checkpoint", "time to write", "best interval", "lost at the best", own], body)


def _memory(plans: Sequence[Plan]) -> str:
    held = [plan.memory for plan in plans]
    body = [
        [same[0].name, size(same[0].memory_bytes), *(f"{size(one.held_bytes)}, {percent(one.share)}" for one in same)]
        for same in zip(*held, strict=True)
    ]
    return rows(["what", "available", *_forms(plans)], body)
