"""A small trained-like network and calibration data that all tests of the thin layer share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(24, 20, 3, padding="same", bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 4),
    )


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(1)
    return small_net().eval()


@pytest.fixture
def data() -> list[Tensor]:
    """Six batches of smooth random images with a dark border, so that regions exist."""
    generator = torch.Generator().manual_seed(2)
    images = torch.nn.functional.interpolate(
        torch.randn(48, 3, 8, 8, generator=generator), size=(32, 32), mode="bilinear"
    )
    images[..., :6] = 0
    return list(images.split(8))
