"""The public call: checks, choice of a backend, op."""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops  # noqa: F401  (registers the ops)
from .dispatch import resolve
from .plan import PackedPlan

ACTIVATIONS = ("none", "relu")


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
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, expected a torch.Tensor")
    if not isinstance(plan, PackedPlan):
        raise TypeError(f"plan: got {type(plan).__name__}, expected a PackedPlan")
    v, u = plan.v, plan.u
    if x.device != v.device:
        raise ValueError(f"x: got device {x.device}, expected {v.device} as the plan's factors")
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, v, u = x.to(dtype), v.to(dtype), u.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    _check(x, plan, v, bias, activation)
    if bias is not None and bias.ndim == 1:
        bias = bias.expand(plan.regions, -1)
    op = resolve(x, backend)
    return op(x, v, u, bias, *plan.tensors, plan.geometry.flat(), activation)


def _check(x: Tensor, plan: PackedPlan, v: Tensor, bias: Tensor | None, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, expected one of {list(ACTIVATIONS)}")
    shape = x.shape
    if len(shape) != 4 or shape[1] != plan.in_channels:
        raise ValueError(f"x: got shape {tuple(shape)}, expected (N, {plan.in_channels}, H, W)")
    if x.dtype != v.dtype:
        raise TypeError(f"x: got {x.dtype}, expected {v.dtype} as the plan's factors")
    size = plan.geometry.out_size(shape[2], shape[3])
    if size != plan.out_size:
        raise ValueError(
            f"x: got {shape[2]} x {shape[3]}, which gives an output of {size[0]} x {size[1]}, "
            f"expected one of {plan.out_size[0]} x {plan.out_size[1]} for this plan"
        )
    if bias is None:
        return
    regions, out_channels = plan.channels.shape
    if bias.shape not in ((regions, out_channels), (out_channels,)):
        raise ValueError(
            f"bias: got shape {tuple(bias.shape)}, expected {(out_channels,)} or {(regions, out_channels)}"
        )
    if bias.dtype != x.dtype or bias.device != x.device:
        raise TypeError(f"bias: got {bias.dtype} on {bias.device}, expected {x.dtype} on {x.device}")
