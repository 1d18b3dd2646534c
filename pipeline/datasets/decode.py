"""From a file of any kind to one declared form: uint8 (c, s, s), c = 1 grey or 3 RGB.

    16-bit grey     v / 257, so that 65,535 becomes 255: scaled, never clipped, and alike for all images
    float           0 ... 1 becomes 0 ... 255; other ranges are refused, since no scale would suit all images
    palette, alpha  looked up; transparent parts show white
    CMYK and others Pillow's conversion to RGB; colour profiles are not applied
    EXIF rotation   carried out; all metadata are then dropped
    several frames  the first

Images are resized by a bicubic filter whose support grows with the reduction (antialiasing). `pad` repeats the edge
pixels, so that no frame of one colour tells an image's shape. An image of the declared size keeps its pixels.
"""

from __future__ import annotations

import errno
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.datasets.rows import FORMATS

ALLOWED = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
MAX_PIXELS = 1 << 26  # 8,192 x 8,192; below Pillow's own limit

# What Pillow's decoders raise on damaged files; its tracker shows each of them.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    KeyError,
    IndexError,
    TypeError,
    ZeroDivisionError,
    OverflowError,
    MemoryError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class Unreadable(Exception):
    """An image that is set aside; the message is the reason."""


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Within: Pillow's warning of a decompression bomb is an error, and its remarks on odd files are silent."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def open_image(file: Path | BinaryIO) -> Image.Image:
    """The image in a file, of an allowed format and size, pixels not yet decoded. Raises Unreadable."""
    try:
        picture = Image.open(file, formats=ALLOWED)
    except UnidentifiedImageError:
        raise Unreadable(f"not a {FORMATS} image") from None
    except DAMAGED as error:
        raise _unreadable(error) from None
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise Unreadable(f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS:,}")
    return picture


def opener(file: Path) -> partial[Image.Image]:
    """`open_image(file)`, later."""
    return partial(open_image, file)


def bring_to_form(picture: Image.Image, size: int, channels: int, resize: Literal["pad", "crop", "stretch"]) -> np.ndarray:
    """An opened image -> uint8 (channels, size, size). Closes the image. Raises Unreadable."""
    try:
        with picture:
            if max(picture.size) > 4 * size:
                picture.draft(None, (2 * size, 2 * size))  # JPEG: decode at a smaller scale that is still ample
            whole = _to_mode(ImageOps.exif_transpose(picture), "L" if channels == 1 else "RGB")
            array = np.asarray(_to_square(whole, size, resize))
    except DAMAGED as error:
        raise _unreadable(error) from None
    if resize == "pad" and array.shape[:2] != (size, size):
        missing = [size - side for side in array.shape[:2]]
        array = np.pad(array, [(m // 2, m - m // 2) for m in missing] + [(0, 0)] * (array.ndim - 2), mode="edge")
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _to_mode(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = Image.fromarray(_to_8_bit(np.asarray(picture), picture.mode))
    if picture.has_transparency_data:
        shown = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    return picture.convert(mode) if picture.mode != mode else picture


def _to_8_bit(values: np.ndarray, mode: str) -> np.ndarray:
    top = 1.0 if mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not 0.0 <= low <= high <= top:
        raise Unreadable(f"values from {low:g} to {high:g} in mode {mode}, outside 0 ... {top:g}")
    return np.rint(values.astype(np.float64) * (255.0 / top)).astype(np.uint8)


def _to_square(picture: Image.Image, size: int, resize: str) -> Image.Image:
    if picture.size == (size, size):
        return picture
    if resize == "crop":
        return ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    width, height = picture.size
    scale = size / max(width, height)
    target = (max(1, round(width * scale)), max(1, round(height * scale))) if resize == "pad" else (size, size)
    return picture.resize(target, Image.Resampling.BICUBIC)


def _unreadable(error: BaseException) -> Exception:
    """Why an image is set aside; a disk or a mount that fails is no fault of the image, and stops the run."""
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE):
        return error
    return Unreadable(_reason(error))


def _reason(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:200] if words else type(error).__name__
