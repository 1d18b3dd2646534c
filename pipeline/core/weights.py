"""Weights on disk: safetensors with their settings in the metadata. Never pickle: a weight file must not run code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from pipeline.core import work
from pipeline.errors import DataError


def save(file: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write tensors and `card` (any JSON value) to `file`, whole or not at all. Equal inputs give equal bytes."""
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    work.write(file, to_bytes(whole, metadata={"card": json.dumps(card, sort_keys=True)}))


def load(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, card) that `save` wrote. Raises DataError if the file is missing, torn or was not written by `save`."""
    try:
        with safe_open(file, framework="pt") as opened:
            card = json.loads((opened.metadata() or {})["card"])
            return {name: opened.get_tensor(name) for name in opened.keys()}, dict(card)  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"{file}: {error}", expected="weights written by tailforge", remedy="remove it and run again"
        ) from error
