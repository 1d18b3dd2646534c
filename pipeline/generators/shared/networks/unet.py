"""A small U-Net v(x, t, y, a) for images at a noise level t, of class y, under augmentation a.

    space-to-depth by `patch`, 3 x 3 convolution to `width`
    down   `depth` blocks of `width`; halve; `depth` blocks of 2 `width`, attention after each where at most 256 pixels remain
    up     mirror image with skip connections
    out    norm, 3 x 3 convolution, depth-to-space

A block is norm, SiLU, convolution, norm with scale and shift by the embedding, SiLU, dropout, convolution, added to its input
(Dhariwal & Nichol, 2021, adaptive group normalisation). The embedding is an MLP of sinusoids of t plus a table row of y plus a
linear map of a; row k of the table (k classes) is `no class`, for classifier-free guidance. Last convolutions start at zero.
Space-to-depth makes a convolution's matrices large where matrix units are fast and pixels few (docs/decisions/0003).
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.runtime.parallel import Dropout

M = TypeVar("M", nn.Conv2d, nn.Linear)
VECTOR = 16  # channels of a group from which a processor's bf16 kernel normalises channels_last as fast as its fp32 kernel


class Norm(nn.GroupNorm):
    """Group normalisation (Wu & He, 2018); of small groups in fp32, where the bf16 kernel takes two to nine times as long."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same shape and type."""
        return super().forward(x) if x.shape[1] >= VECTOR * self.num_groups else super().forward(x.float()).to(x.dtype)


class Block(nn.Module):
    """Residual block with an embedding of width `embed`."""

    def __init__(self, channels_in: int, channels: int, embed: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(8, channels_in), Norm(8, channels, affine=False)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.modulation = zero(nn.Linear(embed, 2 * channels))
        self.dropout = Dropout(dropout)
        self.around: nn.Module = nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(n, channels_in, h, w), (n, embed) -> (n, channels, h, w)."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        y = self.conv1(silu(self.norm1(x)))
        y = self.conv2(self.dropout(silu(torch.addcmul(shift, self.norm2(y), 1 + scale))))
        out: Tensor = self.around(x) + y
        return out


class Attention(nn.Module):
    """Self-attention over the pixels, heads of 32 channels (Vaswani et al., 2017, eq. 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 32)
        self.norm = Norm(8, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same shape."""
        n, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).mT
        q, k, v = self.qkv(tokens).view(n, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        # Written out: with so few tokens the fused kernel is slower on processors, its backward pass most of all.
        weights = (q @ k.mT * (c // self.heads) ** -0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(n, h * w, c)
        out: Tensor = x + self.out(mixed).mT.view(n, c, h, w)
        return out


class UNet(nn.Module):
    """v(x, t, y, a): images (n, c, h, w), times (n,) in [0, 1], labels (n,) in 0 … n_classes, conditions (n, a)."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        n_classes: int,
        *,
        width: int,
        depth: int,
        patch: int,
        dropout: float,
        conditions: int,
    ) -> None:
        super().__init__()
        channels, size, _ = shape
        self.patch, embed = patch, 4 * width
        self.time = nn.Sequential(nn.Linear(width, embed), nn.SiLU(), nn.Linear(embed, embed))
        self.label = nn.Embedding(n_classes + 1, embed)
        self.condition = nn.Linear(conditions, embed, bias=False)
        self.frequencies = width // 2
        self.stem = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        wide, small = 2 * width, size // patch // 2
        attend = small**2 <= 256
        self.down1 = nn.ModuleList(Block(width, width, embed, dropout) for _ in range(depth))
        self.shrink = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.down2 = nn.ModuleList(Block(wide, wide, embed, dropout) for _ in range(depth))
        self.attention = nn.ModuleList(Attention(wide) if attend else nn.Identity() for _ in range(2 * depth))
        self.up2 = nn.ModuleList(Block(2 * wide, wide, embed, dropout) for _ in range(depth))
        self.grow = nn.Conv2d(wide, 4 * width, 1)
        self.up1 = nn.ModuleList(Block(2 * width, width, embed, dropout) for _ in range(depth))
        self.norm = Norm(8, width)
        self.out = zero(nn.Conv2d(width, channels * patch**2, 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, conditions: Tensor) -> Tensor:
        """(n, c, h, w), (n,), (n,), (n, a) -> (n, c, h, w) in float32."""
        embedding = F.silu(self.time(sinusoids(t, self.frequencies)) + self.label(labels) + self.condition(conditions))
        x = self.stem(F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last))
        skips = [x := block(x, embedding) for block in self.down1]
        x = self.shrink(x)
        attention = iter(self.attention)
        for block in self.down2:
            x = next(attention)(block(x, embedding))
            skips.append(x)
        for block in self.up2:
            x = next(attention)(block(torch.cat([x, skips.pop()], 1), embedding))
        x = F.pixel_shuffle(self.grow(x), 2)
        for block in self.up1:
            x = block(torch.cat([x, skips.pop()], 1), embedding)
        return F.pixel_shuffle(self.out(silu(self.norm(x))), self.patch).float()


def silu(x: Tensor) -> Tensor:
    """SiLU, written over x where no gradient will want it: one tensor less to write, the same bits."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def sinusoids(t: Tensor, frequencies: int) -> Tensor:
    """(n,) times in [0, 1] -> (n, 2 frequencies): sine and cosine at geometric frequencies from 1 to 1000."""
    rates = torch.exp(torch.linspace(0.0, math.log(1000.0), frequencies, device=t.device))
    angles = t[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def zero(module: M) -> M:
    """The module with its weights and biases at zero: its branch starts silent."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
