"""The only place where an image changes its range or layout.

Outside: uint8 in [0, 255], as PNG bytes in a manifest or as a tensor (n, c, h, w).
Inside a network: float32 in [-1, 1], x = u / 127.5 - 1, tensor (n, c, h, w).
c is 1 (grey) or 3 (RGB).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 (n, c, h, w) in [0, 255] -> float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """float (n, c, h, w), clipped to [-1, 1] -> uint8 in [0, 255], rounded half to even."""
    return images.float().clamp(-1.0, 1.0).add(1.0).mul_(127.5).round_().byte()


RESIZED_AT_ONCE = 256  # images, as float


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 (n, c, h, h) -> (n, c, size, size) by a bicubic filter, antialiased; as they are where they have that size."""
    import torch.nn.functional as F

    if images.shape[-1] == size:
        return images
    made = images.new_empty((len(images), images.shape[1], size, size))
    for i in range(0, len(images), RESIZED_AT_ONCE):
        part = images[i : i + RESIZED_AT_ONCE].float()
        large = F.interpolate(part, (size, size), mode="bicubic", antialias=True, align_corners=False)
        made[i : i + RESIZED_AT_ONCE] = large.clamp_(0, 255).round_().byte()
    return made


def masks_resized(masks: Tensor, size: int) -> Tensor:
    """uint8 (n, 1, h, h), 0 or 255 -> (n, 1, size, size): where a mask covers half of a pixel, or as much as of any pixel."""
    covered = resized(masks, size)
    most = covered.flatten(1).amax(1).view(-1, 1, 1, 1) if len(covered) else covered
    return ((covered >= most.clamp(1, 128)) * 255).to(masks.dtype)


def at_resolution(images: Tensor, size: int) -> Tensor:
    """uint8 (n, c, h, h) of the same form, with no more detail than images of `size` pixels a side that were enlarged have."""
    return images if size >= images.shape[-1] else resized(resized(images, size), images.shape[-1])


def encode_png(image: Tensor | np.ndarray) -> bytes:
    """uint8 (c, h, w) -> PNG bytes. The same pixels always give the same bytes."""
    array = np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0))
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """PNG bytes that encode_png wrote -> uint8 (c, h, w)."""
    array = np.asarray(Image.open(io.BytesIO(data)))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def encode_all(images: Tensor) -> list[bytes]:
    """uint8 (n, c, h, w) -> n PNGs, in threads (zlib releases the lock)."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(encode_png, images.numpy(), chunksize=256))


def decode_all(data: Sequence[bytes]) -> Tensor:
    """n PNGs of one size and mode -> uint8 (n, c, h, w). Raises ValueError if sizes or modes differ."""
    import torch

    with ThreadPoolExecutor() as pool:
        return torch.from_numpy(np.stack(list(pool.map(decode_png, data, chunksize=256))))


def pixel_hash(image: Tensor | np.ndarray) -> str:
    """Hash of shape and pixels of one uint8 image (c, h, w). Equal pixels give equal hashes, whatever the file format was."""
    array = np.ascontiguousarray(np.asarray(image))
    return hashlib.blake2b(repr(array.shape).encode() + array.tobytes(), digest_size=16).hexdigest()
