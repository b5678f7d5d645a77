"""ResNet-20 in its form for CIFAR (He et al. 2016), for 28x28 grey images."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

WIDTHS, BLOCKS = (16, 32, 64), 3  # of the three stages, and blocks in each


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution that pads to the same size, and its batch normalisation."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes ("option B")."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv(inputs, outputs, 3, stride), nn.ReLU(), *conv(outputs, outputs, 3))
        same = (inputs, stride) == (outputs, 1)
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv(inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def build(classes: int = 10) -> nn.Sequential:
    """float32 (n, 1, 28, 28) -> logits (n, classes)."""
    layers = [*conv(1, WIDTHS[0], 3), nn.ReLU()]
    for stage, (inputs, outputs) in enumerate(pairwise((WIDTHS[0], *WIDTHS))):
        for block in range(BLOCKS):
            changes = block == 0
            layers.append(Block(inputs if changes else outputs, outputs, 2 if changes and stage else 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], classes))
