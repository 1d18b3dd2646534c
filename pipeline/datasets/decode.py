"""From a file of any kind to one declared form: uint8 (c, s, s), c = 1 grey or 3 RGB.

    16-bit grey     v / 257, so that 65,535 becomes 255: scaled, never clipped, and the same for all images
    float           0 ... 1 becomes 0 ... 255; other ranges are refused, since no scale would suit all images
    palette, alpha  looked up; transparent parts become white
    CMYK and others Pillow's conversion to RGB; colour profiles are not applied
    EXIF rotation   applied; then all metadata are dropped
    several frames  the first

Parts of a photograph are cut from what it was converted to, once for all of them.

Memory is bounded whatever a file holds. The size of a file and its declared pixels are checked before a pixel is decoded (a
frame or a tile of a TIFF may be larger than the image). Pillow bounds texts and profiles; tags and other chunks are no larger
than the file. All threads together decode at most MAX_PIXELS at a time, at less than 24 bytes each, and have at most MAX_BYTES
of files open, all of which may be in memory: 2 GiB together.

Images are resized by a bicubic filter whose support grows with the reduction (antialiasing). `pad` repeats the edge pixels,
so no frame of one colour reveals an image's shape. An image of the declared size keeps its pixels.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, NoReturn

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pipeline.datasets.rows import FORMATS, Box, Part, inside

ALLOWED = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
MAX_PIXELS = 1 << 26  # 8,192 x 8,192; below Pillow's own limit
MAX_BYTES = 1 << 29  # of a file: eight per pixel; Pillow holds the non-pixel data of a PNG up to three times
TILE = (322, 323)  # TIFF tags: width and height of a tile, which is decoded whole
ORIENTATION = ExifTags.Base.Orientation
# What undoes an EXIF rotation that exchanges width and height.
UNDONE = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

# Pillow's decoders raise these on damaged files; its issue tracker shows each of them.
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


class Region(NamedTuple):
    """Where the object of an image lies."""

    mask: np.ndarray  # uint8 (1, size, size), 0 or 255
    origin: str  # as in a manifest


class Unreadable(Exception):
    """An image that is set aside. The message is the reason."""


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Within, Pillow's warning about a decompression bomb is an error, and its warnings about odd files are silent."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


class Room:
    """Room for a number of pixels, shared by threads."""

    def __init__(self, pixels: int) -> None:
        self.pixels = self.free = pixels
        self.changed = threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Wait for that much room and take it; all of it if `pixels` is more."""
        pixels = min(pixels, self.pixels)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= pixels)
            self.free -= pixels
        try:
            yield
        finally:
            with self.changed:
                self.free += pixels
                self.changed.notify_all()


ROOM = Room(MAX_PIXELS)  # for decoding
OPEN = Room(MAX_BYTES)  # for open files; taken before ROOM, never while ROOM is held


@contextmanager
def opened(file: Path | BinaryIO) -> Iterator[Image.Image]:
    """Within, the image of a file, of an allowed format and size, with pixels not yet decoded. Raises Unreadable."""
    n = _bytes(file)
    if n > MAX_BYTES:
        raise Unreadable(f"a file of {n:,} bytes, more than {MAX_BYTES:,}")
    with OPEN.of(n):
        with ROOM.of(_as_pixels(n)):  # data before the pixels are read here
            picture, sizes = _opened(file)
        with picture:
            for what, (width, height) in sizes.items():
                if width * height > MAX_PIXELS:
                    raise Unreadable(f"{width} x {height} pixels{what}, more than {MAX_PIXELS:,}")
            yield picture


def reader(file: Path, root: Path) -> Callable[[], AbstractContextManager[Image.Image]]:
    """What opens a file of the folder `root`, as `opened` does. A link out of the folder is Unreadable."""
    return partial(opened, file) if not file.is_symlink() or inside(file, root) else _refuse


def _refuse() -> NoReturn:
    raise Unreadable("a link out of the folder")


def _opened(file: Path | BinaryIO) -> tuple[Image.Image, dict[str, tuple[int, int]]]:
    """The image of a file and its `_sizes`. Raises Unreadable outside of `except`: a kept exception would keep alive what was
    read."""
    reason: Exception
    try:
        picture = Image.open(file, formats=ALLOWED)
        return picture, _sizes(picture)
    except UnidentifiedImageError:
        reason = Unreadable(f"not a {FORMATS} image")
    except DAMAGED as error:
        reason = _unreadable(error)
    raise reason


def _sizes(picture: Image.Image) -> dict[str, tuple[int, int]]:
    """Width and height of the parts that are decoded in one piece."""
    tags = getattr(picture, "tag_v2", {})
    return {"": picture.size, " in a tile": (int(tags.get(TILE[0], 0)), int(tags.get(TILE[1], 0)))}


def _bytes(file: Path | BinaryIO) -> int:
    """Size of a file; 0 if it cannot be determined. Opening the file then gives a better error."""
    if isinstance(file, Path):
        try:
            return file.stat().st_size
        except (OSError, ValueError):
            return 0
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(place)
    return size


def _as_pixels(n: int) -> int:
    """The number of pixels that take as much memory as n bytes of other data in a file."""
    return n // (MAX_BYTES // MAX_PIXELS)


def upright(read: Callable[[], AbstractContextManager[Image.Image]]) -> tuple[int, int]:
    """Width and height of an image after its EXIF rotation. Raises Unreadable."""
    with read() as picture, _room(picture), picture:  # a PNG is decoded to find its rotation
        try:
            turned = picture.getexif().get(ORIENTATION) in UNDONE and picture.format != "TIFF"  # whose size Pillow has turned
            return picture.size[::-1] if turned else picture.size
        except DAMAGED as error:
            reason = _unreadable(error)
    raise reason


def bring_to_form(picture: Image.Image, size: int, channels: int, resize: Literal["pad", "crop", "stretch"]) -> np.ndarray:
    """An opened image -> uint8 (channels, size, size). Closes the image. Raises Unreadable."""
    reduced = max(picture.size) > 4 * size
    with _room(picture, (2 * size, 2 * size) if reduced else None), picture:  # closed within, since decoders keep memory
        return _form(_shown(picture, "L" if channels == 1 else "RGB", None), None, size, resize)


def bring_parts_to_form(
    picture: Image.Image, parts: Sequence[Part], size: int, channels: int, resize: Literal["pad", "crop", "stretch"]
) -> Iterator[tuple[np.ndarray, Region | str | None] | str]:
    """Each of the parts of an opened photograph -> uint8 (channels, size, size) and its object's region, or why there is none:
    no image, or no region. Closes the photograph.

    The photograph was annotated once, so that all parts have the same `size`. Raises Unreadable.
    """
    with _room(picture), picture:
        shown = _shown(picture, "L" if channels == 1 else "RGB", parts[0].size)
        for part in parts:
            box = part.box(*shown.size)
            if isinstance(box, str):
                yield box
            else:
                yield _form(shown, box, size, resize), _region(part, box, shown.size, size, resize)


def _room(picture: Image.Image, least: tuple[int, int] | None = None) -> AbstractContextManager[None]:
    """Room to decode an opened image. A JPEG may be decoded at a smaller scale, still larger than `least`."""
    pixels = max(width * height for width, height in _sizes(picture).values())
    if least and picture.draft(None, least):
        pixels //= 3  # a progressive one is held at full scale
    file = getattr(picture, "fp", None)
    behind = _as_pixels(_bytes(file)) if file else 0  # data after the pixels are read here
    return ROOM.of(max(pixels, behind))


def _shown(picture: Image.Image, mode: str, size: tuple[int, int] | None) -> Image.Image:
    """The image in this mode: upright, or as it is stored if it was annotated so, at `size`. Raises Unreadable, as `_opened`
    does."""
    try:
        return _to_mode(_turned(picture, size), mode)
    except DAMAGED as error:
        reason = _unreadable(error)
    raise reason


def _turned(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    orientation = picture.getexif().get(ORIENTATION)
    ImageOps.exif_transpose(picture, in_place=True)
    width, height = picture.size
    if size is None or size == (width, height):
        return picture
    if size == (height, width) and orientation in UNDONE:
        return picture.transpose(UNDONE[orientation])
    raise Unreadable(f"{width} x {height} pixels, but {size[0]} x {size[1]} in its annotation")


def mask_to_form(picture: Image.Image, shown: tuple[int, int], size: int, resize: str) -> np.ndarray:
    """An opened mask of an image of the size `shown` -> uint8 (1, size, size), 255 where the object is. Closes the mask.

    A pixel belongs to the object where it covers half of it, or as much as it covers of any pixel: a hair does not vanish.
    Raises Unreadable for a mask of another size, and for one that is empty, as it stands or after `resize`.
    """
    if picture.size != shown:
        raise Unreadable(f"{picture.size[0]} x {picture.size[1]} pixels, its image has {shown[0]} x {shown[1]}")
    least = 128 if picture.format == "JPEG" else 1
    with _room(picture), picture:
        try:
            levels = np.asarray(picture)
        except DAMAGED as error:
            reason = _unreadable(error)
        else:
            if levels.ndim == 3:
                levels = levels[..., :-1].max(2) if picture.mode in ("LA", "RGBA") else levels.max(2)
            return _mask((levels >= least) * np.uint8(255), size, resize)
    raise reason


def _region(part: Part, box: Box, shown: tuple[int, int], size: int, resize: str) -> Region | str | None:
    """Where the object of a part lies, by the best of what is known that leaves a pixel in the image; or why nothing does."""
    reason = None
    for origin, shares in part.object(box, *shown) if part.object else ():
        try:
            return Region(_mask(shares, size, resize), origin)
        except Unreadable as unreadable:
            reason = str(unreadable)
    return reason


def _mask(inside: np.ndarray, size: int, resize: str) -> np.ndarray:
    """Shares of pixels, uint8 (h, w) -> uint8 (1, size, size), 0 or 255. Raises Unreadable where nothing is inside."""
    array = np.asarray(_to_square(Image.fromarray(inside), size, resize, Image.Resampling.BOX))
    missing = [size - side for side in array.shape]
    array = np.pad(array, [(m // 2, m - m // 2) for m in missing])
    if not array.any():
        raise Unreadable("empty: no pixel belongs to the object")
    return np.where(array >= min(128, int(array.max())), np.uint8(255), np.uint8(0))[None]


def _form(shown: Image.Image, box: Box | None, size: int, resize: str) -> np.ndarray:
    """The image, or what is in the box, as uint8 (channels, size, size). Raises Unreadable, as `_opened` does."""
    try:
        array = np.asarray(_to_square(shown.crop(box) if box else shown, size, resize))
    except DAMAGED as error:
        reason = _unreadable(error)
    else:
        if resize == "pad" and array.shape[:2] != (size, size):
            missing = [size - side for side in array.shape[:2]]
            array = np.pad(array, [(m // 2, m - m // 2) for m in missing] + [(0, 0)] * (array.ndim - 2), mode="edge")
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
    raise reason


def _to_mode(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = Image.fromarray(_to_8_bit(np.asarray(picture), picture.mode))
    if picture.has_transparency_data:
        shown = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    return picture.convert(mode) if picture.mode != mode else picture


def _to_8_bit(values: np.ndarray, mode: str) -> np.ndarray:
    top = 1.0 if mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not 0.0 <= low <= high <= top:
        raise Unreadable(f"values from {low:g} to {high:g} in mode {mode}, outside 0 ... {top:g}")
    scaled = values.astype(np.float64)
    scaled *= 255.0 / top
    return np.rint(scaled, out=scaled).astype(np.uint8)


def _to_square(
    picture: Image.Image, size: int, resize: str, filter: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    if picture.size == (size, size):
        return picture
    if resize == "crop":
        return ImageOps.fit(picture, (size, size), filter)
    width, height = picture.size
    scale = size / max(width, height)
    target = (max(1, round(width * scale)), max(1, round(height * scale))) if resize == "pad" else (size, size)
    return picture.resize(target, filter)


def _unreadable(error: BaseException) -> Exception:
    """The reason why an image is set aside. A failing disk or mount is not the image's fault, and stops the run."""
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE):
        return error
    return Unreadable(_reason(error))


def _reason(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:200] if words else type(error).__name__
