"""A small MobileNetV2 (Sandler et al. 2018) for 28x28 grey images."""

from __future__ import annotations

from torch import Tensor, nn

STEM, LAST = 8, 256  # channels of the first convolution and of the last, 1x1
STAGES = ((4, 24, 2, 2), (4, 32, 2, 1), (4, 64, 3, 2), (4, 96, 1, 1))  # expansion, channels, blocks, first stride


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that pads to the same size, and its batch normalisation."""
    padding = kernel // 2
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class InvertedResidual(nn.Module):
    """1x1 to more channels, 3x3 of each channel alone, 1x1 back to few; a residual sum where the shape stays."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = expansion * inputs
        self.body = nn.Sequential(
            *(*conv(inputs, wide, 1), nn.ReLU6()),
            *(*conv(wide, wide, 3, stride, groups=wide), nn.ReLU6()),
            *conv(wide, outputs, 1),
        )
        self.residual = (inputs, stride) == (outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.residual else y


def build(classes: int = 10) -> nn.Sequential:
    """float32 (n, 1, 28, 28) -> logits (n, classes)."""
    layers, inputs = [*conv(1, STEM, 3), nn.ReLU6()], STEM
    for expansion, outputs, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(InvertedResidual(inputs, outputs, expansion, 1 if block else stride))
            inputs = outputs
    layers += [*conv(inputs, LAST, 1), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(LAST, classes))
