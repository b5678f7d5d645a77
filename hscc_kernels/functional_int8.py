"""The public call in int8, for inference."""

from __future__ import annotations

import torch
from torch import Tensor, is_grad_enabled, is_inference_mode_enabled
from torch.compiler import is_compiling, is_dynamo_compiling

from . import arguments, ops
from .dispatch import INT8, resolve
from .int8_plan import Int8Plan


def lowrank_conv2d_int8(
    x: Tensor,
    plan: Int8Plan,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    backend: str | None = None,
) -> Tensor:
    """As ``lowrank_conv2d`` with a first stage in int8: inputs are rounded to 8 bits once, sums are exact.

    Args:
        x: (N, C, H, W), float32, or uint8 that has been rounded so already (``reference_int8.quantise``); any strides,
            fastest when channels last.
        plan: the layer's :class:`Int8Plan`, made for this output size.
        bias: (O,) or one row a region (R, O), float32.
        activation: "none" or "relu", applied inside the kernel.
        backend: "cpu" or "reference"; None takes ``HSCC_BACKEND`` or the first that can run. A named backend never
            falls back.

    Returns:
        (N, O, Ho, Wo) float32, channels last in memory.

    Raises:
        TypeError, ValueError: an argument does not fit; the text gives got and expected.
        BackendUnavailable: the named backend cannot run this call.
        RuntimeError: something requires a gradient; there is none in int8.
    """
    try:  # the op refuses what does not fit before it computes, as in functional.py
        op = resolve(x, backend, INT8)
        if is_dynamo_compiling():
            return op(x, bias, *plan, activation)
        if is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, bias, plan.u, plan.v_scale)):
            raise RuntimeError(f"lowrank_conv2d_int8: {ops.NO_GRADIENT}")
        op = op._op
        if is_inference_mode_enabled() or is_compiling():
            return op(x, bias, *plan, activation)
        with torch._C._AutoDispatchBelowAutograd():
            return op(x, bias, *plan, activation)
    except Exception:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: got {type(x).__name__}, expected a torch.Tensor") from None
        if not isinstance(plan, Int8Plan):
            raise TypeError(f"plan: got {type(plan).__name__}, expected an Int8Plan") from None
        arguments.check_int8(x, bias, *plan, activation)
        raise
