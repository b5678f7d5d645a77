"""A small U-Net (Ronneberger et al. 2015) with batch normalisation, in plain PyTorch."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTHS = (16, 32, 64, 128)  # from the full resolution down, each at half the one before


def conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*conv(inputs, outputs), *conv(outputs, outputs))


class UNet(nn.Module):
    """Down by max pooling, up by nearest neighbours and a 3x3 convolution; levels are joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(double(inputs, outputs) for inputs, outputs in pairwise((1, *WIDTHS)))
        self.pool = nn.MaxPool2d(2)
        steps = [*pairwise(WIDTHS[::-1])]
        self.up = nn.ModuleList(nn.Sequential(nn.Upsample(scale_factor=2), *conv(*step)) for step in steps)
        self.join = nn.ModuleList(double(2 * outputs, outputs) for _, outputs in steps)
        self.last = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level in self.down:
            x = level(self.pool(x) if skips else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.last(x)


def build() -> UNet:
    """float32 (n, 1, H, W), H and W divisible by 8 -> logits of "is tumour" (n, 1, H, W)."""
    return UNet()
