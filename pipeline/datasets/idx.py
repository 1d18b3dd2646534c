"""The MNIST family: images and labels in IDX files, compressed or not, read as a stream.

    offset 0   0 0 type rank        type 8: unsigned bytes
    offset 4   rank sizes           32 bits, most significant byte first
    then       the values           images (n, h, w), labels (n)

The official parts are train and t10k (or test). The name of a row is its 0-based index in its part, so lists of train indices
apply. http://yann.lecun.com/exdb/mnist
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from pipeline.config import Data
from pipeline.datasets.decode import MAX_PIXELS
from pipeline.datasets.rows import Row, existing_folder
from pipeline.errors import DataError

PARTS = {"train": "train", "test": "t10k|test"}


def rows(data: Data) -> Iterator[Row]:
    """The rows of train, then those of test if there are any. Raises DataError if files are missing, torn or inconsistent."""
    root = existing_folder(Path(data.path), "data.path")
    for split, words in PARTS.items():
        images, labels = _find(root, words, "images-?.?idx3"), _find(root, words, "labels-?.?idx1")
        if images is not None and labels is not None:
            yield from _part(split, images, labels)
        elif split == "train" or images is not None or labels is not None:
            raise DataError(
                f"data.path={data.path!r} lacks {split} images or labels",
                expected="train-images-idx3-ubyte and train-labels-idx1-ubyte, with or without .gz",
                remedy="put them there, or set data.path",
            )


def _part(split: str, images: Path, labels: Path) -> Iterator[Row]:
    try:
        for i, (pixels, label) in enumerate(zip(_values(images, 3), _values(labels, 1), strict=True)):
            yield Row(f"{split}-{i:05d}", str(i), str(int(label)), partial(Image.fromarray, pixels), split)
    except ValueError:  # zip's
        raise DataError(f"{images} and {labels} differ in length", expected="a label for each image") from None


def _find(root: Path, words: str, kind: str) -> Path | None:
    pattern = re.compile(rf"(.*-)?({words})-{kind}-ubyte(\.gz)?", re.IGNORECASE)
    found = {
        file.name.removesuffix(".gz"): file for file in sorted(root.iterdir(), reverse=True) if pattern.fullmatch(file.name)
    }
    if len(found) > 1:
        raise DataError(
            f"data.path={str(root)!r} holds {', '.join(sorted(found))}",
            expected="one set",
            remedy="put each set into a folder of its own",
        )
    return next(iter(found.values()), None)


def _values(file: Path, rank: int) -> Iterator[np.ndarray]:
    """Items along the first axis, one at a time. Raises DataError if the file is torn."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            zero, kind, own_rank = struct.unpack(">HBB", _exactly(stream, 4))
            if (zero, kind, own_rank) != (0, 8, rank):
                raise ValueError(f"its header says type {kind}, rank {own_rank}")
            n, *shape = struct.unpack(f">{rank}I", _exactly(stream, 4 * rank))
            if prod(shape) > MAX_PIXELS or 0 in shape:
                raise ValueError(f"its header says images of {' x '.join(map(str, shape))}")
            for _ in range(n):
                yield np.frombuffer(_exactly(stream, prod(shape)), dtype=np.uint8).reshape(shape)
            if stream.read(1):
                raise ValueError(f"it is longer than the {n} items of its header")
    except (ValueError, EOFError, struct.error, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{file}: {error}", expected=f"an IDX file of unsigned bytes with rank {rank}", remedy="fetch it again"
        ) from None


def _exactly(stream: BinaryIO | gzip.GzipFile, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError("it ends early")
    return data
