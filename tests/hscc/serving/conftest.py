"""A served model and engines that stop after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hscc.serving.engine import Engine
from hscc.serving.models import Served
from torch import nn

Start = Callable[..., Engine]


@pytest.fixture
def served(net: nn.Module) -> Served:
    """Takes float32 (n, 3, H, W) of any size, gives ``output`` (n, 4)."""
    return Served.of(net, torch.zeros(1, 3, 32, 32), any_size=True, name="small")


@pytest.fixture
def start() -> Iterator[Start]:
    """Makes an engine that is ready; ``start(served, limits, guard=...)``."""
    engines = []

    def make(*args, **options) -> Engine:
        engines.append(Engine(*args, **options))
        engines[-1].start()
        return engines[-1]

    yield make
    for engine in engines:
        engine.stop(5)
