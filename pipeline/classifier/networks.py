"""Networks of the classifiers: images (n, c, h, w) in [-1, 1], or features (n, d) of an encoder -> logits (n, k).

    small     below 64 pixels; w = classifier.width
              3 x 3 convolution to w channels            -> max pool, from 14 pixels
              3 x 3 convolution to 2 w channels          -> max pool
              residual block (He et al., 2016)           -> max pools, down to 3 x 3 pixels or fewer
              dropout, linear in all that is left
    resnet18  torchvision's ResNet-18, from 64 pixels, without pretrained weights
    frozen    of features: those of an image brought to mean 0 and deviation 1 (Ba et al., 2016), dropout
              linear to w units, GELU, where w > 0; linear. w = frozen.width
    finetune  the encoder's network, trained on (finetuned.py)

A plan may ask for a cosine last layer; the body, its weights included, is the same.

Both normalise groups of channels of one image (Wu & He, 2018). So an output is a function of its own image, and there are no
statistics of batches. `small` keeps where things are: a mean over all pixels before the last layer cost 3 to 4 points on
Fashion-MNIST.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.classifier.finetuned import Finetuned
from pipeline.config import Classifier, ClassifierInMode, Mode

LARGE = 64  # pixels from which `auto` takes ResNet-18


def build(config: ClassifierInMode, shape: Sequence[int], n_classes: int, cosine: float | None = None) -> nn.Module:
    """A network with fresh weights, drawn from torch's global stream, for images of `shape` (c, h, w), or features (v, d).

    In the mode finetune only the last layer's are fresh. `cosine` is the scale of a Cosine last layer.
    """
    if config.mode == "frozen":
        network: nn.Module = Perceptron(shape[-1], n_classes, config.width, config.dropout)
    elif config.mode == "finetune":
        network = Finetuned(config, n_classes)
    else:
        network = _of_images(config, shape, n_classes)
    if cosine is not None:
        # After the linear layer was drawn, and from its weights: no other weight depends on the kind of the last layer.
        setattr(network, head_name(network), Cosine(head(network).get_parameter("weight"), cosine))
    # A step of `small` on the processor takes 1.2 to 1.5 times as long with channels first.
    return network.to(memory_format=torch.channels_last)


def head(network: nn.Module) -> nn.Module:
    """The last layer of a network that `build` made."""
    return network.get_submodule(head_name(network))


def body_state(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network that `build` made, by name, without its last layer's."""
    return {name: value for name, value in network.state_dict().items() if not name.startswith(f"{head_name(network)}.")}


def cosine_scale(network: nn.Module) -> float | None:
    """What `build` was given as `cosine`."""
    last = head(network)
    return last.scale if isinstance(last, Cosine) else None


def mode(network: nn.Module) -> Mode:
    """The mode whose inputs a network that `build` made is handed."""
    if isinstance(network, Perceptron):
        return "frozen"
    return "finetune" if isinstance(network, Finetuned) else "scratch"


def head_name(network: nn.Module) -> str:
    """Of the last layer of a network that `build` made."""
    return "head" if isinstance(network, Small | Perceptron | Finetuned) else "fc"


class Cosine(nn.Module):
    """s cos(x, w_y): a last layer that sees the angles of features alone (Wang et al., CosFace, 2018, without its margin)."""

    def __init__(self, weight: Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(weight.detach().clone()), scale

    def forward(self, x: Tensor) -> Tensor:
        """(n, features) -> (n, k) in [-scale, scale]."""
        # bf16 has no more than 8 bits for a cosine, and the scale would show it.
        with torch.autocast(x.device.type, enabled=False):
            return self.scale * F.linear(F.normalize(x.float()), F.normalize(self.weight))


class Perceptron(nn.Module):
    """At most one hidden layer on features. No weight is learned from more than the rows of a run, so it takes seconds."""

    def __init__(self, dimension: int, n_classes: int, width: int, dropout: float) -> None:
        super().__init__()
        own = nn.LayerNorm(dimension, elementwise_affine=False)
        hidden = [nn.Linear(dimension, width), nn.GELU()] if width else []
        self.body = nn.Sequential(own, nn.Dropout(dropout), *hidden)
        self.head = nn.Linear(width or dimension, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, d) -> logits (n, k)."""
        out: Tensor = self.head(self.body(x))
        return out


class Residual(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same shape."""
        out: Tensor = x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return out


class Small(nn.Module):
    """A fast residual network for small images; `width` is a multiple of 8."""

    def __init__(self, shape: Sequence[int], n_classes: int, width: int, dropout: float) -> None:
        super().__init__()
        channels, size, _ = shape
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
        if size >= 14:
            layers.append(nn.MaxPool2d(2))
            size //= 2
        layers += [nn.Conv2d(width, 2 * width, 3, 1, 1, bias=False), nn.GroupNorm(8, 2 * width), nn.ReLU(), nn.MaxPool2d(2)]
        size //= 2
        layers += [Residual(2 * width), nn.GroupNorm(8, 2 * width), nn.ReLU()]
        while size > 3:
            layers.append(nn.MaxPool2d(2))
            size //= 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout))
        self.head = nn.Linear(2 * width * size * size, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) in [-1, 1] -> logits (n, k)."""
        out: Tensor = self.head(self.body(x))
        return out


def _of_images(config: Classifier, shape: Sequence[int], n_classes: int) -> nn.Module:
    name = config.network
    if name == "auto":
        name = "resnet18" if shape[1] >= LARGE else "small"
    return Small(shape, n_classes, config.width, config.dropout) if name == "small" else _resnet18(shape, n_classes)


def _resnet18(shape: Sequence[int], n_classes: int) -> nn.Module:
    """The stem keeps twice the resolution below 128 pixels: a 3 x 3 convolution of stride 2 without pooling."""
    from torchvision.models import resnet18  # half of the time that torch itself takes to import

    network: nn.Module = resnet18(weights=None, num_classes=n_classes, norm_layer=lambda channels: nn.GroupNorm(16, channels))
    small = shape[1] < 2 * LARGE
    network.conv1 = nn.Conv2d(shape[0], 64, 3 if small else 7, 2, 1 if small else 3, bias=False)
    if small:
        network.maxpool = nn.Identity()
    return network
