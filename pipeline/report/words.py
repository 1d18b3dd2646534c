"""Sentences as a reader meets them: names of arms, metrics and checks, the verdict, what to do next. Nothing here is markup."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.config import ENSEMBLE, REAL_ARMS
from pipeline.metrics import registry
from pipeline.metrics.base import Metric
from pipeline.report.numbers import Interval, count, finite, images, number, percent, points

_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clip(text: object, limit: int = 120) -> str:
    """At most `limit` characters, on one line, of a text that nobody bounds: class names, paths, messages.

    Characters that turn the direction of what follows them, and other control characters, are shown as U+FFFD.
    """
    line = " ".join(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", str(text)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def listing(names: list[str], limit: int = 6) -> str:
    """a, b and 3 more"""
    shown, more = names[:limit], len(names) - limit
    return ", ".join(clip(n, 40) for n in shown) + (f" and {more:,} more" if more > 0 else "")


ARMS = {
    **REAL_ARMS,
    "replay": "control: source images again, in the same numbers",
    "shuffled": "control: the added images with shuffled labels",
    "aa_control": "control: the best real-only arm with other seeds",
    "synthetic": "best real-only arm plus accepted images",
    "synthetic_unfiltered": "the same, without the validation gate",
    "synthetic_only": "no real image at all (classification accuracy score)",
}


def arm(name: str) -> str:
    """What an arm is; one of several modes of the classifier is called `mode:arm`."""
    mode, _, own = name.rpartition(":")
    note = ARMS.get(own, "")
    return f"{mode}: {note}" if mode and note else note


OUTSIDE = "†"


def marked(name: str, metrics: Mapping[str, Any]) -> str:
    """An arm or a reference as tables show it: those with outside knowledge bear a mark."""
    return f"{name} {OUTSIDE}" if name in (metrics.get("outside_knowledge") or ()) else name


def outside(metrics: Mapping[str, Any]) -> str:
    """What the mark means; empty where nothing bears it."""
    return (
        f"{OUTSIDE} knows of images from outside the project, by pretrained weights" if metrics.get("outside_knowledge") else ""
    )


COLUMNS = {  # of the tables, beside the metrics that can decide
    "tail_recall": "tail recall",
    "middle_recall": "middle recall",
    "head_recall": "head recall",
    "calibration_error": "calibration error",
    "auroc": "AUROC",
}


def metric(name: str) -> str:
    """What a sentence calls a metric or a column: balanced accuracy."""
    return COLUMNS.get(name) or registry.title(name)


def capital(text: str) -> str:
    """With a capital letter, as the head of a column: Balanced accuracy."""
    return text[:1].upper() + text[1:]


FIDELITY = {
    "kid": ("KID", "kernel distance of the two sets; 0 is no difference"),
    "mmd": ("MMD", "the same with a Gaussian kernel"),
    "frechet": ("Fréchet distance", "of means and covariances; 0 is no difference"),
    "sliced_wasserstein": ("Sliced Wasserstein", "mean distance along random directions; 0 is no difference"),
    "precision": ("Precision", "share of synthetic images that lie among the real ones; high is good"),
    "recall": ("Recall", "share of real images that lie among the synthetic ones; low means variety is missing"),
    "density": ("Density", "how thick with real images the places are where synthetic ones lie; about 1 is real"),
    "coverage": ("Coverage", "share of real images with a synthetic one near by; high is good"),
    "near_copies": ("Near copies", "share of images nearer to a train image than nearly all new real images are; low is good"),
    "c2st": ("Two-sample test", "accuracy of a classifier that tells real from synthetic; 0.5 is indistinguishable"),
}


def model_measures(primary: Metric) -> dict[str, tuple[str, str]]:
    """What the stage `measure` found of a family by the primary metric, and by its density: (title, note) by name."""
    good = "high is good" if primary.higher_is_better else "low is good"
    return {
        "cas": ("Classification accuracy score", f"{primary.title} of a classifier that saw these images alone; {good}"),
        "bayes": ("Bayes' rule", f"{primary.title} of the model's own p(class | image); {good}"),
        "bits_per_dim": ("Bits per dimension", "of real images under the model; low is good; * from a bound"),
    }


SIZE = {
    "accepted": ("Accepted", "share of its images that passed all checks"),
    "parameters": ("Numbers stored", "in the model's file"),
}


CHECKS = {
    "form": "not an image of the declared form",
    "blank": "too little contrast; the value is the standard deviation of the pixels",
    "copy": "too near a real train image; the value is the distance to it",
    "moved_copy": "too near a real train image that was turned, cropped or moved; the value is the distance of their features",
    "duplicate": "too near another synthetic image; the value is the distance to it",
    "label": "the judges do not see its class; the value is their probability of it, relative to that of the likeliest class",
    "outlier": "too far from the real images of its class; the value is the distance to them",
    "statistics": "unlike real images of its class in light, colour, edges, blur or noise; the value is the distance to them",
}


def verdict(word: str, gain: Interval, title: str) -> tuple[str, str]:
    """(a label, the headline) of the verdict `gain`, `no_gain` or `harm`, which evaluate reached by the interval alone.

    `title` is the primary metric's.
    """
    size = f"{points(gain.estimate)} points of {title}" if gain.estimate is not None else "nothing to compare"
    return {
        "gain": ("Gain", f"Synthetic images help: {size}"),
        "harm": ("Harm", f"Synthetic images harm: {size}"),
        "no_gain": ("No gain shown", f"No gain shown: {size}"),
    }[word]


PARTS = {
    "prior_shift": ("Prior shift", "what a logit offset gives alone, to compare with: no part of the gain"),
    "regularisation": (
        "Regularisation",
        "what the synthetic fraction and the labels give with train images in the place of new ones",
    ),
    "new_content": ("New content", "what only the new images give"),
    "encoder": ("Encoder", "what a pretrained encoder gives with no synthetic image, to compare with: no part of the gain"),
}


def real_images(equivalent: Mapping[str, object]) -> str:
    """Of equivalent_real_images in metrics.json: worth about 34 real images a class [12, more than 300]."""
    about, low, high = (
        f"more than {images(finite(equivalent.get(name)))}" if equivalent.get(beyond) else images(finite(equivalent.get(name)))
        for name, beyond in (("real_images_per_class", "beyond"), ("low", "low_beyond"), ("high", "high_beyond"))
    )
    if about == "0":
        about = "no"
    elif not equivalent.get("beyond"):
        about = f"about {about}"
    return f"worth {about} real images a class [{low}, {high}]"


def drift(found: Mapping[str, Any]) -> str:
    """What drift.json decided: generators re-used: 12 train images came since they were fitted, and no drift was found"""
    came = f"{count(found['came'], 'train image')} came"
    if found["decision"] == "same":
        return "generators fitted on these train images"
    if found["decision"] == "reuse":
        return f"generators re-used: {came} since they were fitted, and no drift was found"
    reasons = drift_reasons(found)
    more = f"; and {count(len(reasons) - 2, 'more reason')}" if len(reasons) > 2 else ""
    return f"generators fitted anew, {came}: {'; '.join(reasons[:2])}{more}"


def drift_reasons(found: Mapping[str, Any]) -> list[str]:
    """Why generators were fitted anew, a clause each."""
    return [_drift_reason(reason) for reason in found["reasons"]]


def _drift_reason(reason: Mapping[str, Any]) -> str:
    name, value = clip(reason.get("class"), 40), finite(reason.get("value"))
    return {
        "always": "drift.retrain is always",
        "new": f"class {name} is new",
        "vanished": f"class {name} has vanished",
        "form": "images have another size or other channels",
        "gone": f"{count(int(value or 0), 'train image')} of those they were fitted on went, or changed name, label or side",
        "regions": f"{count(int(value or 0), 'train image')} of those they were fitted on got another region",
        "drift": f"images of class {name} changed (adjusted p {number(value)})",
        "together": f"images of all classes together changed (adjusted p {number(value)})",
        "counts": f"class {name} grew by {percent(value)} %",
    }[reason["why"]]


def advice(
    word: str,
    *,
    best: str,
    recipe: str,
    family: str | None,
    accepted: int,
    made: int,
    synthetic_fraction: float | None,
    labels: str | None,
) -> list[str]:
    """What to do next; text between backticks is code. `recipe` is what synthetic images were added to."""
    if word == "gain":
        exported = "FAMILY" if family == ENSEMBLE else family  # of the ensemble each family has its own
        how = (
            f" at a synthetic fraction of {synthetic_fraction:g} with {labels} labels, both chosen on validation"
            if synthetic_fraction is not None and labels is not None
            else ""
        )
        return [
            f"Train with the {count(accepted, 'accepted image')} added to the recipe `{recipe}`{how}.",
            f"Write the images out, a folder for each class: `tailforge export {exported} --out FOLDER`.",
            "Look at the pictures below before you rely on them: each synthetic image stands above its nearest real one.",
        ]
    better = [
        "Compare all families of generators: `tailforge bakeoff`. Those that learn by steps may need more (`steps`).",
        "See which checks rejected images below, and whether the accepted ones look like their class.",
    ]
    if word == "harm":
        return [
            f"Keep `{best}` and do not train with these images.",
            *better,
            "Where the accepted images look wrong, tighten the gate (`validate.agreement`, `validate.outlier_quantile`).",
        ]
    if not made:
        return [
            f"Keep `{best}`: no synthetic image was made. `sample.fill_to` says to how many images a class is filled.",
            *better,
        ]
    if not accepted:
        return [f"Keep `{best}`: validation accepted no synthetic image.", *better]
    if synthetic_fraction == 0.0:
        return [
            f"Keep `{best}`: validation preferred a synthetic fraction of 0, that is, to leave the synthetic images out.",
            *better,
        ]
    return [
        f"Keep `{best}`: the interval holds both gain and loss, so these images are not worth their cost as yet.",
        "A narrower interval takes more real test images, or more seeds (`arms.seeds`).",
        *better,
    ]
