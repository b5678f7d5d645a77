"""The specification in int8: inputs and rows of V in 8 bits, exact sums, the second stage in floating point.

    x' = round(x / scale) + zero_point, ties to even, at least 0, at most 255; NaN becomes the zero point
    z = (sum of (x' - zero_point) v', exact, in 32 bits) * (scale * v_scale of the row)      y = bias + U z

Zero padding is the zero point, so that it counts exactly 0. The division is a product with the float32 inverse of the
scale, as in ``torch.fake_quantize_per_tensor_affine``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import Geometry, sized
from .plan import PackedPlan
from .reference import im2col, second_stage


def quantise(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Inputs, float32, of any shape -> uint8."""
    inverse = 1 / torch.tensor(scale, dtype=torch.float32, device=x.device)
    scaled = x * inverse
    whole = torch.where(scaled.isnan(), 0.0, scaled).clamp(-zero_point, 255 - zero_point).round()
    return (whole + zero_point).to(torch.uint8)


def lowrank_conv2d_int8(
    x: Tensor,
    bias: Tensor | None,
    v: Tensor,
    v_scale: Tensor,
    u: Tensor,
    positions: Tensor,
    rows: Tensor,
    channels: Tensor,
    work: Tensor,
    clusters: Tensor,
    sizes: Sequence[int],
    scale: float,
    zero_point: int,
    activation: str,
) -> Tensor:
    """x (N, C, H, W), float32 or uint8 -> (N, O, Ho, Wo), channels last in memory, in the dtype of u.

    With u, v_scale and bias in float64 only what is in 8 bits is rounded.
    """
    in_bytes = x if x.dtype == torch.uint8 else quantise(x, scale, zero_point)
    whole = in_bytes.double() - zero_point  # float64 holds every sum exactly
    patches, exact_v = im2col(whole, Geometry.unflat(sizes)), v.double()
    scales = torch.tensor(scale, dtype=torch.float32, device=x.device) * v_scale

    def first_stage(place: Tensor, factor_rows: Tensor) -> Tensor:
        return (patches[:, place] @ exact_v[factor_rows].T).to(u.dtype) * scales[factor_rows]

    plan = PackedPlan(v, u, positions, rows, channels, work, clusters, sized(sizes, x))
    return second_stage(first_stage, len(x), plan, bias, activation)
