"""Finetuned: a pretrained network with a fresh last layer, all of which learns from the images of the project.

    z = f(x),   logits = W dropout(z) + b

f is the network of encoders/pretrained.py with its batch normalisations folded into its convolutions, so that an output is a
function of its own image. Layer i of L has the learning rate lr d^(L - i), where d is finetune.layer_decay: early layers see
edges and colours, which change little from one set of images to another (Howard & Ruder, 2018; Bao et al., BEiT, 2022).

With finetune.lora_rank r the weights of f stay as they are. The matrix V of each linear layer of its attention gets a
change of rank r, and that and the last layer learn (Hu et al., LoRA, 2022, section 4.1):

    V + 2 B A,   A (r, d) drawn, B (d', r) zero

Finished weights are rounded to float16, which halves their files. Scores are those of the rounded ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipeline.config import ClassifierInMode, Encoder
from pipeline.core.seeds import torch_stream
from pipeline.encoders import pretrained
from pipeline.errors import ConfigError

LORA_SCALE = 2.0  # alpha / r of Hu et al.


class Finetuned(nn.Module):
    """Raises ConfigError where no encoder is named, its weights are not to be had, or LoRA finds no attention."""

    def __init__(self, config: ClassifierInMode, n_classes: int) -> None:
        super().__init__()
        start = _pretrained(config.encoder)
        self.look, self.body = start.look, copy.deepcopy(start.body)
        if config.lora_rank:
            _adapt(self.body, config.lora_rank, config.encoder.name)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(start.dimension, n_classes)

    def train(self, mode: bool = True) -> Finetuned:
        """Statistics of normalisations that could not be folded, and dropout within the body, stay as after pretraining."""
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) in [-1, 1] -> logits (n, k)."""
        prepared = self.look.prepared((x + 1) * 127.5).contiguous(memory_format=torch.channels_last)
        out: Tensor = self.head(self.dropout(self.body(prepared)))
        return out


class LowRank(nn.Module):
    """A matrix with a change of rank r that learns."""

    def __init__(self, matrix: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, matrix.shape[1]))
        self.up = nn.Parameter(torch.zeros(matrix.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, matrix: Tensor) -> Tensor:
        """(d', d) -> the same shape."""
        return matrix + LORA_SCALE * self.up @ self.down


def learning_rates(network: nn.Module, decay: float) -> Mapping[str, float]:
    """Of each parameter of the body its share of lr, in (0, 1]; those of the last layer are not named."""
    if not isinstance(network, Finetuned):
        return {}
    from timm.models import group_parameters

    layers = group_parameters(network.body, network.body.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    last = max(layers.values(), default=0) + 1
    return {f"body.{name}": decay ** (last - layer) for name, layer in layers.items()}


def stored(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that a file of `network` holds."""
    tensors: dict[str, Tensor] = network.state_dict()
    if not isinstance(network, Finetuned):
        return tensors
    # Buffers are counts and variances, which float16 may not hold.
    return tensors | {name: value.detach().half() for name, value in network.named_parameters()}


def rounded(network: nn.Module) -> nn.Module:
    """A finished network with the weights that its file will hold."""
    if isinstance(network, Finetuned):
        network.load_state_dict(stored(network))
    return network


class _Start(NamedTuple):
    """What all networks of one encoder start from; `dimension` is that of its features."""

    look: pretrained.Look
    body: nn.Module
    dimension: int


@lru_cache(1)  # a process trains many networks of one encoder
def _pretrained(settings: Encoder) -> _Start:
    look = pretrained.Look.of(settings)
    with torch_stream(0, "pretrained"), torch.no_grad():  # timm draws weights before it reads them
        body = pretrained.folded(pretrained.body(settings, pretrained.weights_of(settings)).eval(), look.size)
        dimension = body(torch.zeros(1, 3, look.size, look.size)).shape[1]
    return _Start(look, body.requires_grad_(True), dimension)


def _adapt(body: nn.Module, rank: int, name: str) -> None:
    """Give the matrices of attention a LowRank, and let nothing else of `body` learn."""
    body.requires_grad_(False)
    attention = [part for place, part in body.named_modules() if place.rpartition(".")[2] == "attn"]
    layers = [child for part in attention for child in part.children() if isinstance(child, nn.Linear)]
    if not layers:
        raise ConfigError(
            f"finetune.lora_rank={rank}: {name} has no attention",
            expected="a transformer, e.g. vit_small_patch14_dinov2.lvd142m, or 0",
            remedy="set finetune.lora_rank: 0",
        )
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
