"""What the op's arguments have to be: types, devices and shapes, without a look at any value of a tensor.

The C++ extension checks the same and every index, in ``csrc/plan_view.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import ClusterItem, Geometry, WorkItem, sized

ACTIVATIONS = ("none", "relu")
SCALES = (2.0**-126, 2.0**126)  # of inputs in int8: between them the inverse of a float32 is one, too
MOST_PATCH = 2**31 // (255 * 128)  # elements whose products in int8 always sum to 32 bits


def check(
    x: Tensor,
    bias: Tensor | None,
    v: Tensor,
    u: Tensor,
    positions: Tensor,
    rows: Tensor,
    channels: Tensor,
    work: Tensor,
    clusters: Tensor,
    sizes: Sequence[int],
    activation: str,
    *,
    any_dtype: bool = False,
) -> None:
    """Raises TypeError or ValueError with got and expected. ``any_dtype``: autocast makes the floating types equal."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, expected one of {list(ACTIVATIONS)}")
    if len(sizes) != 10:
        raise ValueError(f"sizes: got {len(sizes)} ints, expected 10")
    if x.device != v.device:
        raise ValueError(f"x: got device {x.device}, expected {v.device} as the plan's factors")
    geometry = Geometry.unflat(sizes)
    taps = geometry.kernel[0] * geometry.kernel[1]
    if x.ndim != 4 or x.shape[1] * taps != v.shape[-1]:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (N, {v.shape[-1] // taps}, H, W)")
    if not any_dtype:
        _check_dtypes(x, v, u, bias)
    (*_, out_height, out_width), (height, width) = sized(sizes, x), geometry.out_size(x.shape[2], x.shape[3])
    if height != out_height or width != out_width:
        raise ValueError(
            f"x: got {x.shape[2]} x {x.shape[3]}, which gives an output of {height} x {width}, "
            f"expected one of {out_height} x {out_width} for this plan"
        )
    if bias is not None and bias.shape not in (channels.shape, channels.shape[1:]):
        expected = f"{tuple(channels.shape[1:])} or {tuple(channels.shape)}"
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, expected {expected}")
    _check_index(positions, rows, channels, work, clusters, x.device, out_height * out_width)


def check_int8(x: Tensor, bias: Tensor | None, v: Tensor, v_scale: Tensor, u: Tensor, *rest) -> None:
    """The same for the op in int8."""
    *index, scale, zero_point, activation = rest
    check(x, bias, v, u, *index, activation, any_dtype=True)
    if x.dtype not in (torch.float32, torch.uint8):
        raise TypeError(f"x: got {x.dtype}, expected torch.float32 or torch.uint8")
    for name, tensor, dtype in (("v", v, torch.int8), ("u", u, torch.float32)):
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: got {tensor.dtype}, expected {dtype}")
    if bias is not None and (bias.dtype != torch.float32 or bias.device != x.device):
        raise TypeError(f"bias: got {bias.dtype} on {bias.device}, expected torch.float32 on {x.device}")
    if v_scale.dtype != torch.float32 or v_scale.shape != v.shape[:1] or v_scale.device != x.device:
        got = f"{v_scale.dtype} of shape {tuple(v_scale.shape)} on {v_scale.device}"
        raise TypeError(f"v_scale: got {got}, expected torch.float32 of shape ({v.shape[0]},) on {x.device}")
    check_inputs(scale, zero_point, v.shape[1])


def check_inputs(scale: float, zero_point: int, patch: int) -> None:
    """How inputs become 8 bits, and that sums of so many products fit 32."""
    if not SCALES[0] <= scale <= SCALES[1]:
        raise ValueError(f"scale: got {scale}, expected 2^-126..2^126")
    if not 0 <= zero_point <= 255:
        raise ValueError(f"zero_point: got {zero_point}, expected 0..255")
    if patch > MOST_PATCH:
        raise ValueError(f"v: got D = {patch}, expected at most {MOST_PATCH}")


def _check_dtypes(x: Tensor, v: Tensor, u: Tensor, bias: Tensor | None) -> None:
    if x.dtype != v.dtype or u.dtype != v.dtype:
        name, got = ("x", x.dtype) if x.dtype != v.dtype else ("u", u.dtype)
        raise TypeError(f"{name}: got {got}, expected {v.dtype} as the plan's factors")
    if bias is not None and (bias.dtype != x.dtype or bias.device != x.device):
        raise TypeError(f"bias: got {bias.dtype} on {bias.device}, expected {x.dtype} on {x.device}")


def _check_index(positions, rows, channels, work, clusters, device: torch.device, count: int) -> None:
    for name, tensor, shape in (
        ("positions", positions, (count,)),
        ("rows", rows, (None,)),
        ("channels", channels, (None, None)),
        ("work", work, (channels.shape[0], len(WorkItem._fields))),
        ("clusters", clusters, (None, len(ClusterItem._fields))),
    ):
        if tensor.dtype != torch.int32 or tensor.device != device:
            raise TypeError(f"{name}: got {tensor.dtype} on {tensor.device}, expected torch.int32 on {device}")
        if tensor.ndim != len(shape) or any(e is not None and g != e for g, e in zip(tensor.shape, shape, strict=True)):
            expected = ", ".join("any" if e is None else str(e) for e in shape)
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected ({expected})")
