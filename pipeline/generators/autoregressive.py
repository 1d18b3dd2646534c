"""Autoregressive model: an image is a sequence of grey levels, each drawn given all before it (van den Oord et al., 2016).

    log P(x | y, a) = sum_i log P(x_i | x_<i, y, a),    x_i in {0 … levels - 1}
    P(x_i = k | …)  = softmax_k (b_k + sum_{j=1}^J z_ij phi_j(k)) at temperature 1,   phi_j(k) = cos(pi j (k + 1/2) / levels)
    log p(x | y)    = log P(x | y) + D log(levels / 2)     each level spread evenly over its cell of width 2 / levels

The order: patches of `patch` x `patch` pixels row by row, in a patch pixels row by row, channels innermost. Two networks give
z_i, both told y and a (the augmentation, zero when sampling) by their norms:

    global   a causal transformer over patches: h_t is a function of the patches before t     (Vaswani et al., 2017)
    local    residual layers for each number: h of its patch, its place, and the levels already drawn in a window around it

as in MegaByte (Yu et al., 2023); the window is a masked convolution before the attention (Chen et al., 2018, PixelSNAIL).
patch = 1 is the plain raster order with attention for each pixel; larger patches make attention cheap, and all stays exact.

Levels come in and go out as smooth functions: cosines. Neighbouring levels so share what few images teach, as a discretised
logistic mixture does (Salimans et al., 2017), while the free base measure b_k, one for untouched and one for resampled images,
learns at once which levels occur at all; 256 independent logits would have to learn each level from its own occurrences.

Sampling keeps the keys and values of the patches before: one pass of one token a patch and one local step a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Count, Share
from pipeline.core.images import to_float
from pipeline.core.seeds import noise, torch_stream
from pipeline.errors import ConfigError
from pipeline.generators.shared import augmentation, density
from pipeline.generators.shared.base import GenerativeModel, Traits
from pipeline.generators.shared.batches import Batch, Precision, Trained, blockwise, train
from pipeline.generators.shared.networks.unet import zero
from pipeline.runtime.parallel import Dropout, share
from pipeline.runtime.training import autocast, device

NAME = "autoregressive"
SEEN, TOLD = 8, 32  # cosines by which a level comes in and goes out
HEAD = 16  # channels of an attention head
GAIN = 30.0  # of the base measure: a step of lr moves a network's output far, a single parameter hardly


class AutoregressiveConfig(Trained):
    """The section `autoregressive` of params.yaml."""

    levels: Literal[2, 4, 8, 16, 32, 64, 128, 256] = 256
    """grey levels told apart: 256, or a smaller power of 2; a coarse level is filled evenly"""
    patch: Count = 2
    """pixels a side that share one pass of attention; 1 is finest, 4 suits 28 pixels"""
    window: Count = 3
    """pixels up, left and right that are seen directly"""
    width: Annotated[int, Field(ge=HEAD, multiple_of=HEAD)] = 64
    """channels of a token"""
    depth: Count = 2
    """layers of attention over patches"""
    local_depth: Count = 2
    """layers for each number"""
    dropout: Share = 0.2
    """share of units dropped inside the layers"""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """of matrices, not of gains and biases"""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """below 1: likelier levels, less variety"""
    steps: Count = 600
    """optimiser steps"""
    augment: Share = 0.15
    """probability of each non-leaking augmentation"""
    precision: Precision = "auto"
    """auto | fp32 | bf16: of the fit; samples and densities are always fp32"""


class Autoregressive(GenerativeModel):
    """Class-conditional autoregressive model of grey levels.

    `temperature` T divides the logits: the model is prod_i P(x_i | x_<i)^(1/T) / Z_i, in samples and in `log_prob` alike.
    """

    traits = Traits(density="explicit", likelihood="exact", data_parallel=True)
    name = NAME
    Config = AutoregressiveConfig
    config: AutoregressiveConfig

    def build(self) -> None:
        """Raises ConfigError where patches do not tile the image."""
        config, (_, height, width) = self.config, self.shape
        if height % config.patch or width % config.patch:
            raise ConfigError(
                f"{NAME}.patch={config.patch} with images of {height} x {width} pixels",
                expected="a divisor of the image size",
                remedy=f"set {NAME}.patch={math.gcd(config.patch, height, width)}",
            )
        self.order = raster(self.shape, config.patch)
        self.network = self._network(seed=0)

    def _network(self, seed: int) -> Network:
        with torch_stream(seed, NAME, "weights"):
            return Network(self.config, self.shape, self.n_classes)

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None) -> Self:
        config, where = self.config, device()
        self.network = network = self._network(seed)

        def loss(batch: Batch) -> Tensor:
            images, labels, conditions = share(batch.images, batch.labels, batch.conditions)
            levels = self._levels(images)
            with autocast(config.precision, where):
                logits = network(levels, labels, conditions)
            return F.cross_entropy(logits.flatten(0, 1), levels.flatten())

        decay = config.weight_decay
        train(network, config, (images, labels), loss, weight_decay=decay, seed=seed, name=NAME, folder=folder)
        return self

    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Each number by the inverse of its distribution function at a uniform number of the image's own; always float32."""
        config, network, size = self.config, self.network, 256 // self.config.levels

        def make(y: Tensor, own: list[int]) -> Tensor:
            uniform = torch.special.ndtr(noise(own, (2, len(self.order))).double()).float().clamp(max=1 - 2**-24)
            drawn, inside = uniform.to(y.device).unbind(1)
            levels = network.draw(y, drawn, config.temperature)
            grey = levels * size + (inside * size).long()  # any grey level of the coarse one
            return to_float(grey[:, self.order.argsort().to(y.device)]).view(-1, *self.shape)

        return blockwise(network, config, make, labels, seeds, self.shape)

    def log_prob(self, images: Tensor, labels: Tensor) -> Tensor:
        """log p(x | y) in nats float64 (n,) of dequantised images in [-1, 1]; always computed in float32, as samples are."""
        config, network = self.config, self.network

        def make(y: Tensor, rows: list[int]) -> Tensor:
            levels = self._levels(images[rows].to(y.device))
            logs = (network(levels, y, augmentation.unmoved(y)) / config.temperature).log_softmax(-1)
            own: Tensor = logs.gather(2, levels.unsqueeze(2)).flatten(1)
            return own.cpu().double().sum(1)

        logs = blockwise(network, config, make, labels, range(len(labels)), ()).double()
        return logs + len(self.order) * math.log(config.levels / 2)

    def _levels(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) -> levels int64 (n, D) in the order of the model."""
        return density.cells(images).flatten(1)[:, self.order.to(images.device)] // (256 // self.config.levels)

    def tensors(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_state_dict(tensors)


class Modulation(nn.Module):
    """Norm with scale and shift by an embedding (n, embed), for x (n, m, width); starts as the plain norm."""

    def __init__(self, width: int, embed: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.by = zero(nn.Linear(embed, 2 * width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.by(embedding).unsqueeze(1).chunk(2, 2)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class Layer(nn.Module):
    """x + W gelu(V norm(x)), for x (n, m, width)."""

    def __init__(self, width: int, embed: int, dropout: float) -> None:
        super().__init__()
        self.norm = Modulation(width, embed)
        self.up, self.down = nn.Linear(width, 2 * width), zero(nn.Linear(2 * width, width))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.dropout(F.gelu(self.up(self.norm(x, embedding)))))
        return out


class Attention(nn.Module):
    """Causal self-attention (Vaswani et al., 2017, eq. 1): token t of x (n, m, width) sees the tokens up to t."""

    def __init__(self, width: int, embed: int, dropout: float) -> None:
        super().__init__()
        self.norm = Modulation(width, embed)
        self.qkv, self.out = nn.Linear(width, 3 * width), zero(nn.Linear(width, width))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, embedding: Tensor, cache: Tensor | None = None, start: int = 0) -> Tensor:
        """`cache` (2, n, heads, T, HEAD) holds keys and values of tokens 0 … start - 1; those of x are written behind them."""
        n, m, width = x.shape
        q, k, v = self.qkv(self.norm(x, embedding)).view(n, m, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        if cache is not None:
            cache[0, :, :, start : start + m], cache[1, :, :, start : start + m] = k, v
            k, v = cache[:, :, :, : start + m]
        later = torch.ones(m, start + m, dtype=torch.bool, device=x.device).triu(start + 1)
        weights = (q @ k.mT * HEAD**-0.5).masked_fill(later, -torch.inf).softmax(-1)
        out: Tensor = x + self.dropout(self.out((weights @ v).transpose(1, 2).reshape(n, m, width)))
        return out


class Network(nn.Module):
    """Logits of each number of an image given those before it in the order."""

    def __init__(self, config: AutoregressiveConfig, shape: tuple[int, int, int], n_classes: int) -> None:
        super().__init__()
        channels, height, wide = shape
        width, embed = config.width, config.width
        self.levels, self.width, self.unit = config.levels, width, channels * config.patch**2
        order = raster(shape, config.patch)
        window = neighbours(shape, order, config.window)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("seen", torch.cat([cosines(config.levels, SEEN), torch.zeros(1, SEEN)]), persistent=False)
        self.register_buffer("told", cosines(config.levels, TOLD + 1)[:, 1:].mT.contiguous(), persistent=False)
        place = torch.stack([order % (height * wide) // wide, order % wide, order // (height * wide)])
        self.register_buffer("place", place, persistent=False)

        self.label = nn.Embedding(n_classes, embed)
        self.condition = nn.Linear(augmentation.CONDITIONS, embed, bias=False)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.patch = nn.Linear(self.unit * SEEN, width)
        self.attention = nn.ModuleList(Attention(width, embed, config.dropout) for _ in range(config.depth))
        self.mixing = nn.ModuleList(Layer(width, embed, config.dropout) for _ in range(config.depth))
        self.around = nn.Linear(window.shape[1] * SEEN, width)
        self.places = nn.ModuleList(nn.Embedding(size, width) for size in (height, wide, channels))
        self.local = nn.ModuleList(Layer(width, embed, config.dropout) for _ in range(config.local_depth))
        self.norm = Modulation(width, embed)
        self.out = zero(nn.Linear(width, TOLD))
        self.base = nn.Parameter(torch.zeros(2, config.levels))

    def forward(self, levels: Tensor, labels: Tensor, conditions: Tensor) -> Tensor:
        """Levels (n, D) in order, labels (n,), conditions (n, a) -> logits float32 (n, D, levels)."""
        embedding = self._embedding(labels, conditions)
        patches = self.patch(self._seen(levels).view(len(levels), -1, self.unit * SEEN))
        tokens = torch.cat([self.first.expand(len(levels), 1, -1), patches[:, :-1]], 1)
        h = self._global(tokens, embedding).repeat_interleave(self.unit, 1)
        return self._local(h, levels, embedding, conditions)

    def draw(self, labels: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        """Levels int64 (n, D) at the quantiles `uniform` (n, D) in [0, 1), untouched images of classes (n,)."""
        (n, total), none = uniform.shape, augmentation.unmoved(labels)
        embedding, token = self._embedding(labels, none), self.first.expand(n, 1, -1)
        caches = [
            torch.empty(2, n, self.width // HEAD, total // self.unit, HEAD, device=uniform.device) for _ in self.attention
        ]
        levels = torch.zeros(n, total, dtype=torch.long, device=uniform.device)
        for start in range(0, total, self.unit):
            h = self._global(token, embedding, caches, start // self.unit)
            for i in range(start, start + self.unit):
                logits = self._local(h, levels, embedding, none, slice(i, i + 1))
                below = (logits[:, 0] / temperature).softmax(-1).cumsum(-1)
                # `below` ends near 1, not at 1; as its share of the end a uniform number never meets a level without mass.
                levels[:, i] = (below <= uniform[:, i : i + 1] * below[:, -1:]).sum(-1)
            token = self.patch(self._seen(levels[:, start : start + self.unit]).view(n, 1, -1))
        return levels

    def _embedding(self, labels: Tensor, conditions: Tensor) -> Tensor:
        return F.silu(self.label(labels) + self.condition(conditions))

    def _seen(self, levels: Tensor) -> Tensor:
        """Levels (…) -> their cosines (…, SEEN); `self.levels` stands for a number not yet drawn and gives zeros."""
        return F.embedding(levels, self.get_buffer("seen"))

    def _place(self, at: slice) -> Tensor:
        rows, columns, channels = self.get_buffer("place")[:, at]
        row, column, channel = self.places
        out: Tensor = row(rows) + column(columns) + channel(channels)
        return out

    def _global(self, x: Tensor, embedding: Tensor, caches: list[Tensor] | None = None, start: int = 0) -> Tensor:
        """Tokens (n, m, width) of the patches before patches start … start + m - 1 -> what these are told (n, m, width)."""
        x = x + self._place(slice(start * self.unit, (start + x.shape[1]) * self.unit, self.unit))
        for i, (attend, mix) in enumerate(zip(self.attention, self.mixing, strict=True)):
            x = mix(attend(x, embedding, caches[i] if caches else None, start), embedding)
        return x

    def _local(self, h: Tensor, levels: Tensor, embedding: Tensor, conditions: Tensor, at: slice = slice(None)) -> Tensor:
        """Logits of the numbers `at`, given h (n, m, width) of their patches and the levels (n, D) before them."""
        seen = F.pad(levels, (0, 1), value=self.levels)[:, self.get_buffer("window")[at]]
        x = h + self._place(at) + self.around(self._seen(seen).flatten(2))
        for layer in self.local:
            x = layer(x, embedding)
        z = self.out(self.norm(x, embedding)).float()
        moved = (conditions != 0).any(1).long()
        out: Tensor = z @ self.get_buffer("told") + GAIN * self.base[moved].unsqueeze(1)
        return out


def cosines(levels: int, count: int) -> Tensor:
    """phi_j(k) = cos(pi j (k + 1/2) / levels) (levels, count) for levels k and j = 0 … count - 1."""
    k, j = torch.arange(levels)[:, None].double(), torch.arange(count).double()
    return torch.cos(math.pi * j * (k + 0.5) / levels).float()


def raster(shape: tuple[int, int, int], patch: int) -> Tensor:
    """int64 (D,): the places, in a flat image (c, h, w), of the numbers in the order in which they are drawn."""
    c, h, w = shape
    at = torch.arange(c * h * w).view(c, h // patch, patch, w // patch, patch)
    return at.permute(1, 3, 2, 4, 0).flatten()


def neighbours(shape: tuple[int, int, int], order: Tensor, radius: int) -> Tensor:
    """int64 (D, K): for each number the numbers before it at most `radius` rows and columns away; D where there is none.

    Column j is one offset in row and column and one channel, the same for all; one that never comes before has no column.
    """
    c, h, w = shape
    rank = torch.full((c, h + 2 * radius, w + 2 * radius), len(order))  # a frame of numbers that never come
    inner = torch.empty_like(order)
    inner[order] = torch.arange(len(order))
    rank[:, radius : radius + h, radius : radius + w] = inner.view(shape)
    windows = rank.unfold(1, 2 * radius + 1, 1).unfold(2, 2 * radius + 1, 1)  # (c, h, w, rows, columns)
    around = windows.permute(1, 2, 0, 3, 4).reshape(h * w, -1).repeat(c, 1)[order]
    before = around < torch.arange(len(order))[:, None]
    return around.masked_fill(~before, len(order))[:, before.any(0)]
