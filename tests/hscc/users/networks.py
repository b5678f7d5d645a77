"""Small networks, and how a refusal is checked."""

from __future__ import annotations

import copy

import hscc
import pytest
import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def network(outputs: int = 3) -> nn.Sequential:
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, outputs)
    return nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), *head).eval()


class Net(nn.Module):
    """Two convolutions and whatever ``body`` makes of them."""

    def __init__(self, body=None, **parts) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), nn.Linear(16, 3)
        for name, part in parts.items():
            setattr(self, name, part)
        self.body = [body]  # no module of its own

    def forward(self, x: Tensor):
        if self.body[0]:
            return self.body[0](self, x)
        return self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))


def config(reduction: float = 3, **options) -> hscc.Config:
    return hscc.Config(hscc.flops(reduction), **{"regions": 2, **options})


def unchanged(model: nn.Module, call) -> None:
    """``call`` raises, and leaves every module and every number of the model as they were."""
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    call()
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


def refuses(model: nn.Module, data, match: str, error: type[Exception] = ValueError, **options) -> None:
    def call() -> None:
        with pytest.raises(error, match=match) as caught:
            hscc.compress_(model, data, config(**options))
        assert "\n" not in str(caught.value)

    unchanged(model, call)
