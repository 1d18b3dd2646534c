"""How long the stages of a project's first run take: from its settings and the number of its images.

The rates below were measured on two cores of a server processor that multiplies bf16. Another machine is faster or slower by a
factor of two or three, so minutes are what is told. Stages of generators other than flow_matching are left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pipeline.config import Mode, Params

CORES = 2  # of the machine that was measured
START = 4.0  # seconds of a stage that imports torch
READ = 200.0  # images a second that `prepare` reads
LOOKED_AT = 110.0  # images a second through the encoder at 224 pixels
FROZEN_STEP = 0.003  # seconds of an optimiser step on features, on one core
SCRATCH_STEP = 0.12  # the same at 32 x 32 pixels, 32 images
FINETUNE_STEP = 0.65  # the same at 128 x 128 pixels, 32 images
GENERATOR_STEP = 0.5  # seconds of a step of flow_matching at 32 x 32 pixels, on all cores
SAMPLED = 50.0  # images a second that it makes
SOME_ARMS = 4  # that are trained with a pool, besides the trials of the choice


def seconds(params: Params, images: Mapping[str, int], classes: int) -> dict[str, float]:
    """By stage; `images` are those of train, val and test."""
    faster, size, arms = len(os.sched_getaffinity(0)) / CORES, params.data.image_size, params.arms
    train, val, test = (images[split] for split in ("train", "val", "test"))
    side = params.encoder.size or 224
    encoded, looked_at = params.encoder.name != "none", LOOKED_AT * (224 / side) ** 2 * faster
    frozen = "frozen" in params.modes
    views, lower = 1 + params.frozen.views, 1 + (params.generator_size < size)
    pool = round(params.sample.fill_to * params.sample.surplus) * classes
    trials = len([f for f in arms.synthetic_fractions if f]) * len(arms.labels) * arms.selection_seeds

    def trained(mode: Mode, runs: int) -> float:
        config = params.in_mode(mode)
        pixels = (min(config.image_size or size, size) / 32) ** 2
        step = {
            "scratch": SCRATCH_STEP * pixels * config.batch_images / 32,
            "frozen": FROZEN_STEP * config.batch_images / 64,
            "finetune": FINETUNE_STEP * ((config.encoder.size or 224) / 128) ** 2 * config.batch_images / 32,
        }[mode]
        return runs * config.steps * step / CORES / faster

    look = views / looked_at if frozen else 0.0
    made = {"prepare": (train + val + test) / READ, "judges": 10.0 + (train / looked_at if encoded else 0.0)}
    if "flow_matching" in params.generators:
        steps, pixels = params.families.get("flow_matching", {}).get("steps", 2000), (params.generator_size / 32) ** 2
        made |= {"fit": steps * GENERATOR_STEP * max(0.2, pixels) / faster, "sample": pool / SAMPLED * pixels / faster}
    # The first stage that wants an image looks at it, and the others find its features.
    made["train_real"] = (train + val) * look + sum(trained(mode, arms.seeds * len(arms.real)) for mode in params.modes)
    made["measure"] = (train * (lower - 1) + pool) * look
    made["train_synthetic"] = trained(params.modes[-1], SOME_ARMS * arms.seeds + trials)
    made["evaluate"] = test * look + 20.0 + (40.0 if encoded else 0.0)
    return {stage: START + took for stage, took in made.items()}


def told(params: Params, images: Mapping[str, int], classes: int) -> str:
    """A line for a user."""
    found = seconds(params, images, classes)
    slow = ", ".join(f"{stage} {_minutes(took)}" for stage, took in found.items() if took >= 30)
    return f"A first run takes about {_minutes(sum(found.values()))} here ({slow or 'no stage a minute'})"


def _minutes(took: float) -> str:
    return f"{took / 60:.0f} min" if took >= 90 else f"{max(0.5, round(took / 30) / 2):g} min"
