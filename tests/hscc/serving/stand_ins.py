"""Models and guards whose behaviour a test can steer."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

POISON = 666.0


class Gate(nn.Module):
    """Gives the mean of each image when the gate is open, and notes the batch of each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.entered, self.batches = threading.Event(), threading.Event(), []
        self.open.set()

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        self.entered.set()
        assert self.open.wait(20)
        if (x == POISON).any():
            raise RuntimeError("secret words of the inside")
        return x.mean((1, 2, 3))[:, None]

    def close(self) -> None:
        """After the warm-up: the next pass waits, and says so by ``entered``."""
        self.open.clear()
        self.entered.clear()
        self.batches.clear()


class Brightness:
    """A guard that finds bright images foreign."""

    threshold = 0.5

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(x)
        return model(x), x.mean((1, 2, 3)).double()


def image(value: float, n: int = 1, size: int = 4) -> Tensor:
    """(n, 1, size, size)."""
    return torch.full((n, 1, size, size), float(value))
