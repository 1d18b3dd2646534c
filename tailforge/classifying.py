"""`tailforge classify --with GENERATOR`: p(y | x) by Bayes' rule, beside the discriminative classifier p(y | x).

Without images both are scored on the validation rows of the project; with images each gets its class and its probability.
The classifier is the first seed of the best real-only arm.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pipeline import config
from pipeline.classifier import train
from pipeline.classifier.choice import RealChoice
from pipeline.classifier.inputs import Inputs
from pipeline.core.prepared import Prepared
from pipeline.datasets import decode
from pipeline.errors import ConfigError, InputError
from pipeline.generators import bayes, registry
from pipeline.metrics.registry import named
from pipeline.registry import GENERATORS

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}


def run(folder: Path, family: str, images: Sequence[Path], *, as_json: bool) -> None:
    """Print what the two models say. Raises TailforgeError."""
    params, data = config.read(folder / "params.yaml"), Prepared(folder / "data/prepared")
    kind = registry.family(family)
    place = folder / "data/models" / family
    if not place.is_dir():
        raise ConfigError(
            f"--with {family}: no model in {place}", expected="a generator of this project that has been fitted",
            remedy=f"put {family} among `generators` and run `tailforge run`",
        )  # fmt: skip
    model = kind.load(place)
    if not bayes.has_posterior(model):
        able = [f for f in GENERATORS.names if registry.family(f).traits.likelihood != "none"]
        raise ConfigError(f"--with {family}: no likelihood", expected=f"one of {', '.join([*able, 'energy_based'])}")
    classes, real = data.classes, folder / "data/runs/real"
    choice = RealChoice.read(real)
    best, inputs = choice.best_real_arm, Inputs.of(params, data.shape, choice.mode)
    classifier = train.load(real / best / "0.safetensors")
    if images:
        files = _files(images)
        pixels = torch.from_numpy(np.stack([_decoded(file, data.shape, params.data.resize) for file in files]))
    else:
        rows = data.val()
        pixels, targets = rows.images(), rows.targets(classes).numpy()
    predictions = {
        family: bayes.posterior(model, pixels, len(classes), seed=params.seed).numpy(),
        best: train.predict(classifier, torch.from_numpy(inputs.of_images(pixels.numpy()))),
    }
    found: Any
    if images:
        found = [
            {"path": str(file)}
            | {
                name: {"label": classes[int(p[i].argmax())], "probability": float(p[i].max())}
                for name, p in predictions.items()
            }
            for i, file in enumerate(files)
        ]
        lines = [
            "  ".join(
                [row["path"], *(f"{name}: {row[name]['label']} ({row[name]['probability']:.3f})" for name in predictions)]
            )
            for row in found
        ]
    else:
        metric = named(params.evaluate.metric)
        found = {name: metric.score(p, targets) for name, p in predictions.items()}
        both = float((predictions[family].argmax(1) == predictions[best].argmax(1)).mean())
        lines = [f"{metric.title} on {len(targets)} validation images"]
        lines += [f"{name:30} {value:.3f}" for name, value in found.items()]
        lines.append(f"they agree on {both:.0%} of the images")
        found |= {"agreement": both, "n": len(targets)}
    print(json.dumps(found, indent=1) if as_json else "\n".join(lines))


def _files(images: Sequence[Path]) -> list[Path]:
    """The files named, and the images in the folders named. Raises InputError where there are none."""
    found = [
        file
        for path in images
        for file in (sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES) if path.is_dir() else [path])
    ]
    if not found:
        raise InputError(f"no image in {', '.join(map(str, images))}", expected="PNG, JPEG, TIFF, BMP or WebP files")
    return found


def _decoded(file: Path, shape: tuple[int, int, int], resize: Literal["pad", "crop", "stretch"]) -> np.ndarray:
    """uint8 (c, s, s). Raises InputError where the file is no image that can be read."""
    try:
        with decode.strict_pillow(), decode.opened(file) as picture:
            return decode.bring_to_form(picture, shape[1], shape[0], resize)
    except decode.Unreadable as error:
        raise InputError(f"{file}: {error}", expected="an image that can be read") from None
