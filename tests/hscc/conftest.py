"""A small trained-like network and calibration data that all tests of the thin layer share."""

from __future__ import annotations

import pytest
import torch
from hscc import calibrated, whole
from hscc.search.latency import Machine
from hscc.search.work import Work
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


@pytest.fixture(autouse=True)
def _whole_networks(monkeypatch) -> None:
    """Whole networks are timed in PyTorch alone, and briefly."""
    monkeypatch.setattr(whole, "SECONDS", 0.02)
    monkeypatch.setattr(whole, "_runtimes", lambda *args: {})


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


@pytest.fixture
def machine(monkeypatch) -> dict[str, float]:
    """A machine of known speed instead of this one; the dense layers' seconds, to be changed at will."""
    rates = Work(calls=1e-6, first=1e-11, values=1e-10, second=1e-11, outputs=1e-10, taps=1e-10, numbers=1e-10)
    dense: dict[str, float] = {}
    monkeypatch.setattr(calibrated.Machine, "measured", lambda *args: Machine({"batch": 1}, rates, 0.05, {}, 1e-3))

    def seconds(self, layers, show) -> dict[str, float]:
        return {name: dense.get(name, 2e-6 + 1e-9 * conv.weight.numel()) for name, (conv, _) in layers.items()}

    monkeypatch.setattr(calibrated.Machine, "dense_seconds", seconds)
    monkeypatch.setattr(calibrated.Machine, "compare", lambda self, pairs, show: (3e-6 * len(pairs), 1e-6 * len(pairs)))
    return dense
