"""Pretrained: a network that others trained on many images, by its name in timm (Wightman, 2019).

    x = (resize(u, s) / 255 - mean) / deviation
    z = [n(p), n(mean h_1), n(deviation h_1), …, n(mean h_L), n(deviation h_L)]

u are levels. p is what the network hands to its classifier: mostly the mean over places, or a class token. h_1 … h_L are its
last L = LEVELS inner maps of different size (of a transformer its last layers), their mean and deviation are over places: they
know of surfaces and edges, which p has given up for the classes that it was trained to tell. n(v) brings the numbers of a part
to mean 0 and the part to length 1, so that all parts count alike. The size s, the filter of resize, mean and deviation of x are
those that the weights were trained with. A grey image is given three equal channels.

Sums are in bf16, where the hardware multiplies it, with channels last. A batch normalisation is folded into the convolution
before it, which gives the same numbers but for rounding: a (W x + b) + c = (a W) x + (a b + c).

Where the weights come from is told in weights_files.py.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline import config
from pipeline.encoders import weights_files
from pipeline.encoders.base import Fixed, Interpolation, Normalisation, Origin, Shape
from pipeline.errors import ConfigError, DataError
from pipeline.runtime.training import device, multiplies_bf16

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

# What the end of a tag says of the images that weights were trained on.
TRAINED_ON = {
    "in1k": "ImageNet-1k",
    "in12k": "ImageNet-12k",
    "in21k": "ImageNet-21k",
    "in22k": "ImageNet-22k",
    "lvd142m": "LVD-142M, images of the web chosen to be like ImageNet-22k and others",
    "lvd1689m": "LVD-1689M, images of the web",
    "laion2b": "LAION-2B, images of the web with their texts",
    "openai": "400 million images of the web with their texts",
    "webli": "WebLI, images of the web with their texts",
}


@dataclass(frozen=True)
class Look:
    """How a model of timm looks at an image."""

    size: int  # pixels a side
    interpolation: Interpolation
    normalisation: Normalisation

    @classmethod
    def of(cls, settings: config.Encoder) -> Look:
        """Raises ConfigError for a model that timm does not know, or where timm is not installed."""
        card = described(settings.name)
        filtered: Interpolation = "bilinear" if card.interpolation == "bilinear" else "bicubic"
        return cls(settings.size or int(card.input_size[-1]), filtered, Normalisation(card.mean, card.std))

    def prepared(self, levels: Tensor) -> Tensor:
        """Levels in [0, 255] of images (n, c, h, w), of any type -> what the network is handed, float32 (n, 3, s, s)."""
        x = levels.float()
        if x.shape[-1] != self.size:
            mode = "bilinear" if self.interpolation == "bilinear" else "bicubic"
            x = F.interpolate(x, (self.size, self.size), mode=mode, antialias=True, align_corners=False).clamp_(0, 255)
        return self.normalisation.apply(x.expand(-1, 3, -1, -1).contiguous())


class Pretrained(Fixed):
    """Features (n, d) of the model that `settings` name. Raises ConfigError for an unknown model, or where its weights are not
    to be had, and DataError for a file that holds others."""

    batch = 16  # what a batch computes stays in the cache
    slow = True
    size: int

    def __init__(self, shape: Shape, settings: config.Encoder) -> None:
        super().__init__(shape)
        self.settings, self.look, card = settings, Look.of(settings), described(settings.name)
        self.size, self.interpolation, self.normalisation = self.look.size, self.look.interpolation, self.look.normalisation
        self.file = weights_of(settings)
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        self.origin = Origin(trained_on(card), card.license or "not stated", digest)

    @classmethod
    def made(cls, shape: Shape, settings: config.Encoder) -> Pretrained:
        """See Fixed."""
        return cls(shape, settings)

    @cached_property
    def network(self) -> nn.Module:
        """Without its classifier, on the device. It is read when the first image that has no features yet is looked at."""
        where = device()
        network = folded(body(self.settings, self.file).eval(), self.size).to(where)
        # Weights in bf16, not autocast: that would convert them anew for each batch.
        return network.to(torch.bfloat16 if multiplies_bf16(where) else torch.float32).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def _encode(self, images: np.ndarray) -> np.ndarray:
        where = device()
        x = self.look.prepared(torch.from_numpy(images).to(where)).to(next(self.network.parameters()).dtype)
        parts = _parts(self.network, x.contiguous(memory_format=torch.channels_last))
        return np.asarray(torch.cat([F.normalize(v - v.mean(1, keepdim=True), eps=SHORTEST) for v in parts], 1).cpu())


def described(name: str) -> PretrainedCfg:
    """What timm knows of a model: size, normalisation, licence, place of its weights. Raises ConfigError for an unknown one."""
    if name == "none":
        raise ConfigError(
            "encoder.name=none, and a setting asks for a pretrained encoder",
            expected="the name of a model of timm",
            remedy=f"set encoder.name={weights_files.LITE0}",
        )
    timm = _timm()
    with contextlib.suppress(RuntimeError):  # raised for a tag that the model does not have
        card: PretrainedCfg | None = timm.get_pretrained_cfg(name)
        if card:
            return card
    from difflib import get_close_matches

    close = get_close_matches(name, timm.list_models(pretrained=True), n=1)
    raise ConfigError(
        f"encoder.name={name}",
        expected="the name of a model of timm with weights",
        remedy=f"did you mean {close[0]}?" if close else "see timm.list_models(pretrained=True)",
    )


def weights_of(settings: config.Encoder) -> Path:
    """The file with the weights of the model that `settings` name. Raises ConfigError where there is none."""
    card = described(settings.name)
    return weights_files.found(f"{card.architecture}.{card.tag}", card.hf_hub_id, settings.weights)


def body(settings: config.Encoder, file: Path) -> nn.Module:
    """The network without its classifier, with the weights in `file`. Raises DataError where they are of another network."""
    timm, card = _timm(), described(settings.name)
    sized = {"img_size": settings.size} if settings.size and card.fixed_input_size else {}
    remedy = "name the file of this model in encoder.weights, or take encoder.weights out of params.yaml"
    try:
        network: nn.Module = timm.create_model(
            settings.name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, num_classes=0, **sized
        )
        held = weights_files.names(file)
    except (RuntimeError, KeyError, OSError, SafetensorError) as error:
        raise DataError(
            f"{file}: {' '.join(str(error).split())[:200]}", expected=f"weights of {settings.name}", remedy=remedy
        ) from error
    # timm passes over tensors that are missing where it drops the classifier: they would keep random values.
    if absent := sorted(network.state_dict().keys() - held):
        raise DataError(
            f"{file} lacks {absent[0]}{f' and {len(absent) - 1} more tensors' if absent[1:] else ''}",
            expected=f"weights of {settings.name}", remedy=remedy,
        )  # fmt: skip
    return network


LEVELS = 4  # inner maps of which mean and deviation are features
SHORTEST = 1e-3  # length of a part below which it is not made longer: it says nothing


def _parts(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Of images (n, 3, s, s): what the classifier would be handed, then mean and deviation of inner maps, float32 (n, d_i).

    Some networks of timm show no inner maps. They have the first part alone.
    """
    if not hasattr(network, "forward_intermediates"):
        return [network(x).float()]
    levels = min(LEVELS, len(network.feature_info))  # type: ignore[arg-type]
    last, maps = network.forward_intermediates(x, indices=levels)  # type: ignore[operator]
    flat = [part.float().flatten(2) for part in maps]
    handed = network.forward_head(last, pre_logits=True).float()  # type: ignore[operator]
    return [handed, *(statistic for part in flat for statistic in (part.mean(2), part.std(2, correction=0)))]


FOLDED = 1e-3  # relative difference of features up to which folding has changed nothing but rounding


@torch.no_grad()
def folded(network: nn.Module, size: int) -> nn.Module:
    """`network` with each batch normalisation in the convolution that stands before it, where that gives the same features.

    Which convolution feeds a normalisation is told by their order alone, so the result is compared on one image.
    """
    x = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    made, before = copy.deepcopy(network), network(x)
    for parent in made.modules():
        last: nn.Module | None = None
        for name, child in list(parent.named_children()):
            if isinstance(last, nn.Conv2d) and isinstance(child, nn.BatchNorm2d):
                assert child.running_mean is not None and child.running_var is not None
                last.weight, bias = fuse_conv_bn_weights(
                    last.weight, last.bias, child.running_mean, child.running_var, child.eps, child.weight, child.bias
                )
                last.register_parameter("bias", bias)
                setattr(parent, name, getattr(child, "act", nn.Identity()))  # timm's normalisations may hold an activation
            last = child
    same = bool((made(x) - before).norm() <= FOLDED * before.norm())
    return made if same else network


def trained_on(card: PretrainedCfg) -> str:
    """The images that shaped the weights, as far as timm's tag tells."""
    known = [TRAINED_ON[word] for word in str(card.tag or "").split("_") if word in TRAINED_ON]
    return ", then ".join(dict.fromkeys(known)) or f"unknown: timm calls these weights {card.tag or 'nothing'}"


def _timm() -> Any:
    try:
        import timm  # half a second to import, and many projects look through no such network
    except ModuleNotFoundError:
        raise ConfigError(
            "encoder.name is set, and timm is not installed",
            expected="the extra `encoder`",
            remedy="pip install 'tailforge[encoder]', or set encoder.name=none",
        ) from None
    return timm
