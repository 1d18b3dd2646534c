"""Augmentation of whole batches on the device: uint8 (n, c, h, w) -> float32 in [-1, 1], no Python loop over images.

Features of views (n, 1 + v, d) have been moved already (inputs.py): of them one is chosen.

    none         x
    affine       x(A u + b): rotation, scale and shift drawn per image, one bilinear resampling per batch
    flip_affine  affine, and the mirror images that data.flips declares to keep their label
    crop         a part of the image, of at least CROP of its area and sides at most STRETCH : 1 apart, brought to the
                 image's size (Szegedy et al., 2015), and mirror images. It may cut off the small thing that makes the class
    trivial      TrivialAugment (Müller & Hutter, 2021): one operation of a fixed list at a random strength. The batch is cut
                 into chunks that share operation and strength, which leaves each image's distribution as in the paper. Before
                 it, a crop shifted by at most an eighth of the image, and mirror images

Draws come from a CPU generator handed in, so that they do not depend on the device. With `shared` one draw moves all images of
a batch alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.images import to_float, to_uint8
from pipeline.core.seeds import rng as stream

ROTATION = 15.0  # degrees, at most, either way
SCALE = 0.15  # relative, at most, either way
SHIFT = 0.12  # of the image's side, at most, either way
CROP = 0.4  # of the image's area, at least
STRETCH = 4 / 3  # sides of a crop, at most
CHUNK = 8  # images that share one operation of TrivialAugment


def apply(name: str, images: Tensor, flips: str, rng: torch.Generator, *, shared: bool = False) -> Tensor:
    """Transform `images` as `name` says. `flips`: none | horizontal | both. Of features one view is chosen: float (n, d)."""
    if name == "none":
        return still(images)
    if images.ndim == 3:
        return _chosen(images, rng)
    if name == "affine":
        return affine(to_float(images), rng, shared=shared)
    if name == "flip_affine":
        return affine(flip(to_float(images), flips, rng, shared=shared), rng, shared=shared)
    if name == "crop":
        return crop(flip(to_float(images), flips, rng, shared=shared), rng, shared=shared)
    if name == "trivial":
        moved = shift(flip(images, flips, rng, shared=shared), rng, shared=shared)
        return to_float(trivial(moved, rng, chunk=max(1, len(images)) if shared else CHUNK))
    raise ValueError(f"transform {name!r}")


def still(images: Tensor) -> Tensor:
    """Images as they are, float32 in [-1, 1], or the first view of features, float (n, d)."""
    return images[:, 0].float() if images.ndim == 3 else to_float(images)


def view(name: str, flips: str, number: int, images: Tensor) -> Tensor:
    """uint8 (n, c, h, w) moved as `name` says, all images by the map of this number."""
    return to_uint8(apply(name, images, flips, stream(0, "view", name, flips, number), shared=True))


def _chosen(views: Tensor, rng: torch.Generator) -> Tensor:
    """float (n, d): of each row of (n, 1 + v, d) one of the views but the first, where there are some."""
    n, several, _ = views.shape
    if several == 1:
        return still(views)
    which = torch.randint(1, several, (n,), generator=rng).to(views.device)
    return views[torch.arange(n, device=views.device), which].float()


def _uniform(n: int, limit: float, rng: torch.Generator, where: torch.device) -> Tensor:
    return torch.rand(n, generator=rng).mul_(2).sub_(1).mul_(limit).to(where)


def affine(x: Tensor, rng: torch.Generator, *, shared: bool = False) -> Tensor:
    """float (n, c, h, w), each image rotated, scaled and shifted a little; the border's pixels continue outwards."""
    n, where = len(x), x.device
    drawn = 1 if shared else n
    angle = _uniform(drawn, math.radians(ROTATION), rng, where)
    scale = torch.exp(_uniform(drawn, math.log1p(SCALE), rng, where))
    # affine_grid's coordinates run from -1 to 1, so that a shift of one side is 2.
    dx, dy = (_uniform(drawn, 2 * SHIFT, rng, where) for _ in range(2))
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1).expand(n, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def crop(x: Tensor, rng: torch.Generator, *, shared: bool = False) -> Tensor:
    """float (n, c, h, w), of each image a part, enlarged."""
    n, where = len(x), x.device
    drawn = 1 if shared else n
    area = 1 - torch.rand(drawn, generator=rng).mul_(1 - CROP).to(where)
    stretch = torch.exp(_uniform(drawn, math.log(STRETCH), rng, where))
    width, height = (area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1)
    dx, dy = (_uniform(drawn, 1.0, rng, where) * (1 - side) for side in (width, height))
    none = torch.zeros_like(width)
    theta = torch.stack([torch.stack([width, none, dx], 1), torch.stack([none, height, dy], 1)], 1).expand(n, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def flip(x: Tensor, flips: str, rng: torch.Generator, *, shared: bool = False) -> Tensor:
    """(n, c, h, w), half of the images mirrored left to right, and for `both` half of them upside down too."""
    for dimension in {"none": (), "horizontal": (3,), "both": (3, 2)}[flips]:
        coin = (torch.rand(1 if shared else len(x), generator=rng) < 0.5).to(x.device)
        x = torch.where(coin[:, None, None, None], x.flip(dimension), x)
    return x


def shift(x: Tensor, rng: torch.Generator, *, shared: bool = False) -> Tensor:
    """uint8 (n, c, h, w), each image shifted by whole pixels, at most an eighth of its side; the border's pixels continue."""
    n, _, h, w = x.shape
    limit = max(1, h // 8)
    dy, dx = torch.randint(-limit, limit + 1, (2, 1 if shared else n), generator=rng).to(x.device).expand(2, n)
    rows = (torch.arange(h, device=x.device) + dy[:, None]).clamp_(0, h - 1)
    columns = (torch.arange(w, device=x.device) + dx[:, None]).clamp_(0, w - 1)
    batch = torch.arange(n, device=x.device)[:, None, None]
    return x[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _warp(
    angle: float = 0.0, dx: float = 0.0, dy: float = 0.0, shear_x: float = 0.0, shear_y: float = 0.0
) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms.v2 import functional as ops

    def warp(x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        warped: Tensor = ops.affine(x, angle=angle, translate=[dx * w, dy * h], scale=1.0, shear=[shear_x, shear_y])
        return warped

    return warp


def _operation(name: str, s: float) -> Callable[[Tensor], Tensor]:
    """Operation `name` at signed strength s in [-1, 1]; the paper's 'wide' ranges, shifts as shares of the side."""
    from torchvision.transforms.v2 import functional as ops

    table: Mapping[str, Callable[[Tensor], Tensor]] = {
        "identity": lambda x: x,
        "autocontrast": ops.autocontrast,
        "equalize": ops.equalize,
        "rotate": _warp(angle=135.0 * s),
        "solarize": lambda x: ops.solarize(x, 255.0 * (1 - abs(s))),
        "posterize": lambda x: ops.posterize(x, 8 - round(6 * abs(s))),
        "contrast": lambda x: ops.adjust_contrast(x, 1 + 0.99 * s),
        "brightness": lambda x: ops.adjust_brightness(x, 1 + 0.99 * s),
        "sharpness": lambda x: ops.adjust_sharpness(x, 1 + 0.99 * s),
        "shear_x": _warp(shear_x=math.degrees(math.atan(0.99 * s))),
        "shear_y": _warp(shear_y=math.degrees(math.atan(0.99 * s))),
        "translate_x": _warp(dx=s / 4),
        "translate_y": _warp(dy=s / 4),
        "color": lambda x: ops.adjust_saturation(x, 1 + 0.99 * s),
    }
    return table[name]


OPERATIONS = (
    "identity", "autocontrast", "equalize", "rotate", "solarize", "posterize", "contrast", "brightness", "sharpness",
    "shear_x", "shear_y", "translate_x", "translate_y", "color",
)  # fmt: skip


def trivial(x: Tensor, rng: torch.Generator, chunk: int = CHUNK) -> Tensor:
    """uint8 (n, c, h, w) -> uint8; colour is left out for grey images, which have none."""
    names = OPERATIONS if x.shape[1] == 3 else OPERATIONS[:-1]
    chunks = torch.split(x, chunk)
    which = torch.randint(len(names), (len(chunks),), generator=rng).tolist()
    strength = torch.rand(len(chunks), generator=rng).mul_(2).sub_(1).tolist()
    return torch.cat([_operation(names[i], s)(part) for part, i, s in zip(chunks, which, strength, strict=True)])
