"""A small VGG-like network of 3x3 convolutions for 28x28 grey images."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

WIDTHS = (32, 64, 128)


def build(classes: int = 10, batch_norm: bool = False) -> nn.Sequential:
    """float32 (n, 1, 28, 28) -> logits (n, classes); ``batch_norm`` gives the form that is trained."""
    layers: list[nn.Module] = []
    channels = [1, *(width for width in WIDTHS for _ in range(2))]
    for index, (inputs, outputs) in enumerate(pairwise(channels)):
        if index in (2, 4):
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm))
        layers += [nn.BatchNorm2d(outputs)] * batch_norm
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))


def fold(model: nn.Sequential) -> nn.Sequential:
    """``build(batch_norm=True)`` -> the same function (in eval mode) in the layers of ``build()``."""
    layers: list[nn.Module] = []
    for layer in model.eval():
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)
