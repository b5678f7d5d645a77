"""A model with its guard, where a plain model is wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .guard import Guard


class GuardedModel(nn.Module):
    """Gives what ``model`` gives, and keeps the guard's scores of all images that it saw.

    For one thread at a time, unlike the guard itself; the model is to be in evaluation mode when it is called.
    """

    def __init__(self, model: nn.Module, guard: Guard) -> None:
        super().__init__()
        self.model, self.guard = model, guard
        self._scores: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        outputs, scores = self.guard(self.model, x)
        self._scores.append(scores.cpu())
        return outputs

    @property
    def scores(self) -> Tensor:
        """float32 (n,), in the order of the images."""
        return torch.cat(self._scores) if self._scores else torch.empty(0)

    @property
    def flagged(self) -> int:
        """How many images score above the threshold."""
        return int((self.scores > self.guard.threshold).sum())
