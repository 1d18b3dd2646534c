"""A fast residual network for small images (He et al., 2016, with pre-activation order and group normalisation).

    stem      3 x 3 convolution to `width` channels
    stage i   one residual block of width 2^i, i = 0 … n - 1; each stage after the first halves the resolution
    head      mean over the pixels (n, w) -> logits (n, k)

The number of stages follows from the resolution: down to 4 pixels, three at most. Group normalisation makes an output a
function of its own image, whatever the batch (Wu & He, 2018).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), with a 1 x 1 convolution on the way round where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels_in), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        same = channels_in == channels and stride == 1
        self.around: nn.Module = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, h, w) -> (n, channels, h / stride, w / stride)."""
        y = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.around(x) + self.conv2(F.silu(self.norm2(y)))
        return out


class SmallResNet(nn.Module):
    """Images (n, c, h, w) in [-1, 1] -> logits (n, k). `width` is a multiple of 8."""

    def __init__(self, shape: tuple[int, int, int], n_classes: int, width: int) -> None:
        super().__init__()
        channels, size, _ = shape
        self.width, stages = width, 1
        while stages < 3 and size // 2**stages >= 4:
            stages += 1
        widths = [width * 2**i for i in range(stages)]
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        pairs = zip([width, *widths[:-1]], widths, strict=True)
        self.blocks = nn.Sequential(*(Block(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(pairs)))
        self.norm = nn.GroupNorm(8, widths[-1])
        self.head = nn.Linear(widths[-1], n_classes)

    def levels(self, x: Tensor) -> Tensor:
        """(n, c, h, w) in [-1, 1] -> (n, d): channels' means and deviations after each block, then what the head is given."""
        found, h = [], self.stem(x)
        for block in self.blocks:
            h = block(h)
            found += [h.mean((2, 3)), h.std((2, 3), correction=0)]
        return torch.cat([*found, self._last(h)], 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) in [-1, 1] -> logits (n, k)."""
        out: Tensor = self.head(self._last(self.blocks(self.stem(x))))
        return out

    def _last(self, h: Tensor) -> Tensor:
        return F.silu(self.norm(h)).mean((2, 3))
