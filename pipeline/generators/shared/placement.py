"""Where an object of one image may lie in another.

    mask m       255 on the object, whose box must stay inside the image
    margin       the pixels within `reach` of m come along: alpha falls from 1 on m to 1 / (reach + 1) at the margin's end
    ring R       the pixels outside of the margin, as far again: what surrounded the object
    d(p)^2       mean over R of (o - b)^2, the object's image o shifted by p over another image b

All d(p) together are three correlations, which the fast Fourier transform gives at once:

    sum over R of (o - b)^2  =  (R o^2) * 1 - 2 (R o) * b + R * b^2,    (f * g)(p) = sum over q of f(q) g(q + p)

Pixels of the ring that leave the image do not count, and where half of them do d(p) is infinite: little would be known of the
place. An object that the border cuts stays at that border.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor


class Objects(NamedTuple):
    """n objects in their images.

    pixels  float32 (n, c, s, s) in [-1, 1]
    alpha   float32 (n, 1, s, s) in [0, 1]: how much of a pixel is the object's
    ring    float32 (n, 1, s, s), 0 or 1
    box     int64 (n, 4): first and last row, first and last column of the mask
    """

    pixels: Tensor
    alpha: Tensor
    ring: Tensor
    box: Tensor

    @classmethod
    def of(cls, pixels: Tensor, masks: Tensor, seam: Seam, reach: int) -> Self:
        """`masks` are uint8 (n, 1, s, s), none of them empty; their `seam` is that of `reach` pixels."""
        return cls(pixels, seam.steps / (reach + 1), seam.ring.float(), _box(masks))

    def turned(self, turns: Tensor) -> Self:
        """Each object, with its image, turned by `turns` (n,) quarters; from 4 on mirrored first."""
        parts = [part.clone() for part in (self.pixels, self.alpha, self.ring)]
        for k in set(turns.tolist()):
            rows = turns == k
            for part in parts:
                own = part[rows].flip(3) if k >= 4 else part[rows]
                part[rows] = torch.rot90(own, k % 4, (2, 3))
        pixels, alpha, ring = parts
        return type(self)(pixels, alpha, ring, _box(alpha >= 1))

    def shifted(self, by: Tensor) -> Self:
        """Each object, with its image, shifted by (n, 2) pixels down and right; nothing comes in from outside."""
        side = self.pixels.shape[-1]
        at = torch.arange(side) - by[:, :, None]  # (n, 2, s): where the pixels of a row and of a column come from
        inside = (at >= 0) & (at < side)
        rows, columns = at.clamp(0, side - 1).unbind(1)
        there = (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]

        def moved(part: Tensor) -> Tensor:
            tall = part.gather(2, rows[:, None, :, None].expand_as(part))
            return tall.gather(3, columns[:, None, None, :].expand_as(part)) * there

        pixels, alpha, ring = map(moved, (self.pixels, self.alpha, self.ring))
        return type(self)(pixels, alpha, ring, self.box + by.repeat_interleave(2, 1))


class Seam(NamedTuple):
    """Of masks (n, 1, s, s): `steps` uint8, alpha in units of 1 / (reach + 1); `ring` uint8, 0 or 1."""

    steps: Tensor
    ring: Tensor


def seam(masks: Tensor, reach: int) -> Seam:
    """How masks uint8 (n, 1, s, s) fade within `reach` pixels, and what lies around that."""
    wider = masks.float() / 255
    steps = wider.byte()
    for _ in range(reach):
        wider = F.max_pool2d(wider, 3, 1, 1)
        steps += wider.byte()
    ring = F.max_pool2d(wider, 2 * reach + 1, 1, reach) - wider
    return Seam(steps, ring.byte())


class Places:
    """Shifts of objects in images of `side` pixels, as a grid: entry (i, j) is the shift by i and j modulo `period`.

    The period leaves room for rings that overhang the border, and is a size that the transform is fast at.
    """

    def __init__(self, side: int, reach: int) -> None:
        self.side, self.period = side, next_fast_len(side + 2 * reach)

    def shift(self, index: Tensor, objects: Objects) -> Tensor:
        """The shifts (n, 2) of `index` int64 (n,) into the flattened grid."""
        at = torch.stack([index // self.period, index % self.period], 1)
        return torch.where(at > self.side - 1 - objects.box[:, 1::2], at - self.period, at)

    def allowed(self, objects: Objects, within: float) -> Tensor:
        """bool (n, period, period): the box stays inside the image, a cut object at its border, and the shift is of `within`
        pixels at most in both directions."""
        first, last = objects.box[:, 0::2, None], objects.box[:, 1::2, None]  # (n, 2, 1)
        end = self.side - 1
        grid = torch.arange(self.period)
        shift = torch.where(grid > end - last, grid - self.period, grid)  # (n, 2, period)
        cut = (first == 0) | (last == end)
        good = (shift >= -first) & (shift <= end - last) & (~cut | (shift == 0)) & (shift.abs() <= within)
        return torch.logical_and(good[:, 0, :, None], good[:, 1, None, :])

    def disagreement(self, objects: Objects, images: Tensor) -> Tensor:
        """d^2 float32 (n, m, period, period) of each object in each of its `images` (n, m, c, s, s), at allowed places."""
        c, whole = images.shape[2], (self.period, self.period)

        def spectrum(part: Tensor) -> Tensor:
            out: Tensor = torch.fft.rfft2(part, whole)
            return out

        ring, inside = spectrum(objects.ring), spectrum(torch.ones(1, 1, self.side, self.side))
        seen = objects.ring * objects.pixels
        own = spectrum((seen * objects.pixels).sum(1, keepdim=True)).conj() * inside
        shared = (spectrum(seen).conj()[:, None] * spectrum(images)).sum(2)
        others = ring.conj() * spectrum(images.square().sum(2))
        total = torch.fft.irfft2(own - 2 * shared + others, whole)
        counted = torch.fft.irfft2(ring.conj() * inside, whole).round()
        known = counted >= objects.ring.sum((1, 2, 3)).view(-1, 1, 1, 1) / 2
        return torch.clamp(total / (c * counted).clamp(min=1.0), min=0.0).masked_fill(~known, torch.inf)


def _box(masks: Tensor) -> Tensor:
    """First and last row, first and last column (n, 4) of what is not 0 in masks (n, 1, s, s)."""
    there = masks[:, 0] > 0
    sides = [there.any(2).int(), there.any(1).int()]
    last = masks.shape[-1] - 1
    return torch.stack([edge for side in sides for edge in (side.argmax(1), last - side.flip(1).argmax(1))], 1)
