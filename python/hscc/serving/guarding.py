"""What a guard's scores do to an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from .models import Served
from .signature import named

Policy = Literal["flag", "reject", "dense"]


class Scorer(Protocol):
    """A guard, e.g. ``hscc.Guard``: runs the model and scores each image; higher is more foreign."""

    threshold: float

    def __call__(self, model: Callable[[Tensor], Any], x: Tensor) -> tuple[Any, Tensor]: ...


@dataclass(frozen=True)
class Guarded:
    """A guard and what happens to images that score above its threshold.

    Args:
        policy: "flag": they are answered and marked. "reject": the request is refused (``errors.Foreign``). "dense":
            the dense model answers them, and they are marked.
        dense: the other model of the policy "dense", with the same inputs and outputs.
    """

    guard: Scorer
    policy: Policy = "flag"
    dense: Served | None = None

    def __post_init__(self) -> None:
        if self.policy not in ("flag", "reject", "dense"):
            raise ValueError(f"policy: got {self.policy!r}, expected 'flag', 'reject' or 'dense'")
        if (self.policy == "dense") != (self.dense is not None):
            got = "none" if self.dense is None else "one"
            raise ValueError(f"dense: got {got} with the policy {self.policy!r}, expected one for 'dense' alone")

    def check(self, model: Served) -> None:
        """Raises ValueError where the guard cannot watch this model."""
        if self.dense is not None and (self.dense.inputs, self.dense.outputs) != (model.inputs, model.outputs):
            raise ValueError("dense: got a model of another signature, expected the served model's")

    def run(self, model: Callable[[Tensor], Any], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Outputs by name, and scores float32 (n,)."""
        outputs, scores = self.guard(model, x)
        scores = torch.as_tensor(scores, dtype=torch.float32)
        if scores.shape != (len(x),):
            raise TypeError(f"guard: got scores {tuple(scores.shape)} for {len(x)} images, expected one an image")
        return named(outputs), scores

    def flags(self, scores: Tensor) -> Tensor:
        """Bool (n,); a score that is NaN is foreign."""
        return ~(scores <= self.guard.threshold)
