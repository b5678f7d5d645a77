"""Int8Plan: a plan whose first stage multiplies integers of 8 bits; the specification is ``reference_int8.py``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import SCALES, check_inputs
from .plan import PackedPlan

BITS = (7, 8)


class Int8Plan(NamedTuple):
    """A :class:`PackedPlan` with rows in int8, and how the layer's inputs become 8 bits; made by :meth:`quantised`.

    Shapes, for what differs:
        v: (q, D) int8; D at most 65793.
        v_scale: (q,) float32, what 1 in a row of v counts.
        u and the tensors after it: as in the float plan, u float32.
        scale, zero_point: an input a is round(a / scale) + zero_point, 0 to 255; the zero point stands for 0.0.

    These are the op's arguments between bias and activation, in its order: ``op(x, bias, *plan, activation)``.
    """

    v: Tensor
    v_scale: Tensor
    u: Tensor
    positions: Tensor
    rows: Tensor
    channels: Tensor
    work: Tensor
    clusters: Tensor
    sizes: tuple[int, ...]
    scale: float
    zero_point: int

    @classmethod
    def quantised(cls, plan: PackedPlan, scale: float, zero_point: int, bits: int = 8) -> Int8Plan:
        """A float32 plan with its rows rounded to ``bits``; see :func:`quantise_rows`.

        Raises TypeError where the plan is of another dtype, ValueError for values that do not fit.
        """
        if plan.v.dtype != torch.float32:
            raise TypeError(f"plan: got {plan.v.dtype}, expected torch.float32")
        check_inputs(scale, zero_point, plan.v.shape[1])
        v, v_scale = quantise_rows(plan.v, bits)
        return cls(v, v_scale, *plan[1:], float(scale), int(zero_point))

    def dequantised(self) -> PackedPlan:
        """The float32 plan that has the same rows."""
        return PackedPlan(self.v * self.v_scale[:, None], *self[2:9])


def quantise_rows(v: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Rows (q, D), floating -> int8 (q, D) and the scale (q,) float32 of each: symmetric, to the nearest, ties to even.

    With 7 bits no number is above 63. Processors without VNNI are quicker with these: two products fit 16 bits. A row
    of zeros has the scale 1. Raises ValueError for other bits and for numbers that are not finite.
    """
    if bits not in BITS:
        raise ValueError(f"bits: got {bits}, expected one of {list(BITS)}")
    if not bool(v.isfinite().all()):
        raise ValueError("v: got numbers that are not finite, expected finite ones")
    most = 2 ** (bits - 1) - 1
    largest = v.abs().amax(1) if v.shape[1] else v.new_zeros(v.shape[0])
    v_scale = (largest.double() / most).float()
    v_scale = torch.where(v_scale < SCALES[0], 1.0, v_scale)
    return (v.double() / v_scale.double()[:, None]).round().clamp(-most, most).to(torch.int8), v_scale
