"""Int8Conv2d: an ``HSCConv2d`` whose first stage multiplies integers of 8 bits; for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from hscc_kernels import Int8Plan, PackedPlan, lowrank_conv2d_int8

from .conv2d import HSCConv2d


class Int8Conv2d(HSCConv2d):
    """As :class:`HSCConv2d`, float32 in and out, with rows ``v`` int8 (q, D) and ``v_scale`` float32 (q,).

    Made by :meth:`of`. An input a counts as ``round(a / scale) + zero_point``, 0 to 255; both are plain numbers, which
    ``state_dict`` has as extra state. There are no gradients.
    """

    def __init__(self, plan: Int8Plan, bias: Tensor, **options) -> None:
        """``options`` as of :class:`HSCConv2d`."""
        super().__init__(PackedPlan(plan.v, *plan[2:-2]), bias, **options)
        self.register_buffer("v_scale", plan.v_scale)
        self.scale, self.zero_point = float(plan.scale), int(plan.zero_point)
        self.requires_grad_(False)

    @classmethod
    def of(cls, layer: HSCConv2d, scale: float, zero_point: int, bits: int = 8) -> Int8Conv2d:
        """With the rows of ``layer``, float32, rounded to the nearest of ``bits``."""
        plan = Int8Plan.quantised(_detached(layer.plan), scale, zero_point, bits)
        return cls(plan, layer.bias.detach().clone()).adopt_(layer)

    def dequantised(self) -> HSCConv2d:
        """The float layer that has the same rows; it does not round its inputs."""
        plan = self.plan._replace(v=self.v * self.v_scale[:, None], u=self.u.detach().clone())
        return HSCConv2d(plan, self.bias.detach().clone()).adopt_(self)

    def _run(self, x: Tensor, plan: PackedPlan) -> Tensor:
        whole = Int8Plan(plan.v, self.v_scale, *plan[1:], self.scale, self.zero_point)
        return lowrank_conv2d_int8(x, whole, self.bias, activation=self.activation)

    def scale_rows_(self, rows: Tensor, factors: Tensor) -> None:
        """By their scales; a scale is positive, so that signs go to the numbers."""
        self.v.data[rows] *= factors.sign().to(self.v.dtype)[:, None]
        self.v_scale[rows] *= torch.where(factors == 0, 1, factors.abs())

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.scale, self.zero_point], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        scale, zero_point = state.tolist()
        self.scale, self.zero_point = float(scale), int(zero_point)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, int8, scale={self.scale:.4g}, zero_point={self.zero_point}"


def _detached(plan: PackedPlan) -> PackedPlan:
    return plan._replace(v=plan.v.detach(), u=plan.u.detach().clone())
