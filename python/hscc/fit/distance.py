"""How far a student's outputs are from its teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def distance(got: list[Tensor], wanted: list[Tensor], temperature: float | None) -> Tensor:
    """Sum over the outputs of how far the student's are from the teacher's."""
    if not wanted or [t.shape for t in got] != [t.shape for t in wanted]:
        shapes = [[tuple(t.shape) for t in side] for side in (got, wanted)]
        raise ValueError(
            f"student: got outputs {shapes[0]}, expected at least one, shaped as the teacher's {shapes[1]}"
        )
    total = got[0].new_zeros((), dtype=torch.promote_types(got[0].dtype, torch.float32))
    for s, t in zip(got, wanted, strict=True):
        s, t = s.to(total.dtype), t.to(total.dtype)
        if temperature is not None and s.ndim == 2 and s.shape[1] > 1:
            logs = (F.log_softmax(side / temperature, 1) for side in (s, t))
            total = total + temperature**2 * F.kl_div(*logs, log_target=True, reduction="batchmean")
        else:
            total = total + F.mse_loss(s, t) / t.square().mean().clamp_min(1e-12)
    return total
