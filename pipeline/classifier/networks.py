"""Networks of the classifiers: images (n, c, h, w) in [-1, 1] -> logits (n, k).

small     SmallResNet, below 64 pixels
resnet18  torchvision's ResNet-18 (He et al., 2016), from 64 pixels, without pretrained weights
"""

from __future__ import annotations

from torch import nn

from pipeline.config import Classifier
from pipeline.networks.resnet import SmallResNet

LARGE = 64  # pixels from which `auto` takes ResNet-18


def build(config: Classifier, shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """A network with fresh weights, drawn from torch's global stream."""
    name = config.network
    if name == "auto":
        name = "resnet18" if shape[1] >= LARGE else "small"
    return SmallResNet(shape, n_classes, config.width) if name == "small" else _resnet18(shape, n_classes)


def _resnet18(shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """ResNet-18 with group normalisation, so that an output is a function of its own image and the moving average is whole.

    The stem keeps twice the resolution below 128 pixels: a 3 x 3 convolution of stride 2 without pooling.
    """
    from torchvision.models import resnet18  # half of the time that torch itself takes to import

    network: nn.Module = resnet18(weights=None, num_classes=n_classes, norm_layer=lambda channels: nn.GroupNorm(16, channels))
    small = shape[1] < 2 * LARGE
    network.conv1 = nn.Conv2d(shape[0], 64, 3 if small else 7, 2, 1 if small else 3, bias=False)
    if small:
        network.maxpool = nn.Identity()
    return network
