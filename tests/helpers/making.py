"""Small images on disk, and settings for them."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from pipeline.config import Params, resolved

ROOT = Path(__file__).parents[2]


@cache
def shipped() -> dict[str, Any]:
    """The values of params.yaml, which take longer to read than most of what tests do with them. Not to be changed."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    return values


def params(**changes: Any) -> Params:
    """params.yaml with sections changed: params(data={"source": "folder"}, seed=1). Unsplit data are kept as they are."""
    values = copy.deepcopy(shipped())
    values["scarcity"]["kind"] = "as_is"
    for name, change in changes.items():
        values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
    return resolved(values)


def picture(seed: int, size: int = 16, channels: int = 1) -> Image.Image:
    """A picture of its own: smooth patches of random brightness with a little grain."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(20, 235, (4, 4, channels)).astype(np.uint8)
    smooth = Image.fromarray(patches[..., 0] if channels == 1 else patches).resize((size, size), Image.Resampling.BICUBIC)
    grain = rng.integers(-6, 7, (size, size) if channels == 1 else (size, size, channels))
    return Image.fromarray(np.clip(np.asarray(smooth).astype(int) + grain, 0, 255).astype(np.uint8))


def folders(root: Path, counts: dict[str, int], *, first: int = 0, suffix: str = ".png") -> Path:
    """`counts` images in each class folder (names may hold a split: "train/a"), all of them different."""
    for place, count in counts.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            picture(first).save(root / place / f"{first:04d}{suffix}")
            first += 1
    return root
