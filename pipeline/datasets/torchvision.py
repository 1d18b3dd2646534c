"""A classification set of torchvision.datasets by its name (data.name), downloaded once if there is a network.

The set keeps its own train and test parts. torchvision reads it, and checks the published checksums before it opens a
download.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Image

from pipeline.config import Data
from pipeline.datasets.rows import Row
from pipeline.errors import DataError


def rows(data: Data) -> Iterator[Row]:
    """The rows of train, val and test, if the set has them. Raises DataError for an unknown set or without a network."""
    import torchvision

    known = {n for n in torchvision.datasets.__all__ if _takes(getattr(torchvision.datasets, n), "root")}
    if data.name not in known:
        from difflib import get_close_matches

        close = get_close_matches(data.name, sorted(known), n=1)
        raise DataError(
            f"data.name={data.name!r}",
            expected="a set of torchvision.datasets, such as CIFAR10",
            remedy=f"did you mean {close[0]}?" if close else "set data.name in params.yaml",
        )
    kind = getattr(torchvision.datasets, data.name)
    for split, arguments in _parts(kind):
        part = _open(kind, data, arguments)
        names = [" ".join(n) if isinstance(n, tuple | list) else str(n) for n in getattr(part, "classes", ())]
        for i in range(len(part)):
            picture, target = _item(part, i, data.name)
            label = names[target] if names else str(target)
            yield Row(f"{split or data.name}-{i:05d}", str(i), label, partial(_same, picture), split)


def _takes(kind: object, name: str) -> bool:
    return inspect.isclass(kind) and name in inspect.signature(kind).parameters


def _parts(kind: type) -> list[tuple[str | None, dict[str, Any]]]:
    if _takes(kind, "train"):
        return [("train", {"train": True}), ("test", {"train": False})]
    if not _takes(kind, "split"):
        return [(None, {})]
    own = "trainval" if inspect.signature(kind).parameters["split"].default == "trainval" else "train"
    return [("train", {"split": own}), ("test", {"split": "test"})]


def _open(kind: type, data: Data, arguments: dict[str, Any]) -> Any:
    Path(data.path).mkdir(parents=True, exist_ok=True)
    try:
        try:
            return kind(data.path, **arguments)
        except RuntimeError:  # raised by torchvision if the files do not exist yet
            if not _takes(kind, "download"):
                raise
            return kind(data.path, download=True, **arguments)
    except (OSError, RuntimeError, TypeError, ValueError, ImportError) as error:
        raise DataError(
            f"torchvision's {data.name} is not available: {error}",
            expected=f"its files in {data.path}, or a network to download them",
            remedy="connect, or put the files there as torchvision's documentation says",
        ) from None


def _item(part: Any, i: int, name: str) -> tuple[Image, int]:
    try:
        picture, target = part[i]
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{name}[{i}]: {error}", expected="an image and its class") from None
    if not isinstance(picture, Image) or not isinstance(target, int):
        raise DataError(f"{name} yields {type(picture).__name__}, {type(target).__name__}", expected="an image and its class")
    return picture, target


def _same(picture: Image) -> Image:
    return picture
