"""The public call: choice of a backend, op, and in the caller's words what the op refuses."""

from __future__ import annotations

import torch
from torch import Tensor, is_grad_enabled, is_inference_mode_enabled
from torch.compiler import is_compiling, is_dynamo_compiling

from . import arguments, ops  # noqa: F401  (registers the ops)
from .dispatch import resolve
from .plan import PackedPlan


def lowrank_conv2d(
    x: Tensor,
    plan: PackedPlan,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    backend: str | None = None,
) -> Tensor:
    """Hierarchical spatio-channel low-rank convolution: one kernel launch for all regions and clusters.

    Args:
        x: (N, C, H, W), float64, float32, float16 or bfloat16 as the plan's factors; any strides, fastest when
            channels last. Under autocast x and the factors are cast to the autocast dtype.
        plan: the layer's :class:`PackedPlan`, made for this output size.
        bias: (O,) or one row a region (R, O).
        activation: "none" or "relu", applied inside the kernel.
        backend: "triton", "cpu" or "reference"; None takes ``HSCC_BACKEND`` or the first that can run.
            A named backend never falls back.

    Returns:
        (N, O, Ho, Wo), dtype of x, channels last in memory.

    Raises:
        TypeError, ValueError: an argument does not fit; the text gives got and expected.
        BackendUnavailable: the named backend cannot run this call.
        RuntimeError: under ``torch.func.grad``, which takes no op of torch.library; ``torch.func.vmap`` works, and for
            gradients ``torch.autograd.grad``.
    """
    try:  # every op refuses what does not fit before it computes; asking first would cost as much as the call
        op = resolve(x, backend)
        if is_dynamo_compiling():  # it cannot trace the question about inference mode below
            return op(x, bias, *plan, activation)
        op = op._op  # all that OpOverload.__call__ calls; a frame of Python is dear while caches are cold
        if is_inference_mode_enabled() or is_grad_enabled() or is_compiling():
            return op(x, bias, *plan, activation)
        with torch._C._AutoDispatchBelowAutograd():  # torch.library's autograd is Python, called without gradients, too
            return op(x, bias, *plan, activation)
    except Exception:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: got {type(x).__name__}, expected a torch.Tensor") from None
        if not isinstance(plan, PackedPlan):
            raise TypeError(f"plan: got {type(plan).__name__}, expected a PackedPlan") from None
        device = x.device.type
        cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        arguments.check(x, bias, *plan, activation, any_dtype=cast)
        raise
