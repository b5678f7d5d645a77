"""The only file with ``torch.library``: schemas, fake kernels, autograd and FLOPs of namespace ``hscc``.

Each backend is an op of its own, ``hscc::lowrank_conv2d_<backend>``, with one schema, one fake and one autograd,
so that the choice between them stands in one readable table (``dispatch.py``). C++ only implements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import (  # _extension: C++ registers its kernels
    _extension,  # noqa: F401
    arguments,
    backward,
    flops,
    layout,
    reference,
    reference_int8,
    region_map,
)

BACKENDS = ("triton", "cpu", "reference")
INT8_BACKENDS = ("cpu", "reference")
NO_GRADIENT = "got an input that requires a gradient, expected none: there are no gradients in int8"

_SCHEMA = (
    "(Tensor x, Tensor? bias, Tensor v, Tensor u, Tensor positions, Tensor rows, Tensor channels, Tensor work, "
    "Tensor clusters, int[] sizes, str activation) -> Tensor"
)
_INT8_SCHEMA = (
    "(Tensor x, Tensor? bias, Tensor v, Tensor v_scale, Tensor u, Tensor positions, Tensor rows, Tensor channels, "
    "Tensor work, Tensor clusters, int[] sizes, float scale, int zero_point, str activation) -> Tensor"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor y, Tensor x, Tensor v, Tensor u, Tensor positions, Tensor rows, Tensor channels, "
    "Tensor work, Tensor clusters, int[] sizes, str activation, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)"
)
_RESIZED_SCHEMA = (
    "(Tensor positions, Tensor work, int[] sizes, int patch, SymInt height, SymInt width, int block=1) -> "
    "(Tensor, Tensor)"
)


def _fake(x, bias, v, u, positions, rows, channels, work, clusters, sizes: Sequence[int], activation) -> Tensor:
    arguments.check(x, bias, v, u, positions, rows, channels, work, clusters, sizes, activation)
    size = (x.shape[0], channels.shape[1], *layout.sized(sizes, x)[-2:])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _int8_fake(x, bias, v, v_scale, u, positions, rows, channels, work, clusters, sizes, *rest) -> Tensor:
    arguments.check_int8(x, bias, v, v_scale, u, positions, rows, channels, work, clusters, sizes, *rest)
    size = (x.shape[0], channels.shape[1], *layout.sized(sizes, x)[-2:])
    return torch.empty(size, dtype=u.dtype, device=x.device, memory_format=torch.channels_last)


def _refuse_gradient(ctx, inputs, output) -> None:
    raise RuntimeError(f"lowrank_conv2d_int8: {NO_GRADIENT}")


def _int8_reference(*args) -> Tensor:
    arguments.check_int8(*args)
    return reference_int8.lowrank_conv2d_int8(*args).contiguous(memory_format=torch.channels_last)


def _backward_fake(grad, y, x, v, u, positions, rows, channels, work, clusters, sizes, activation, needs):
    shapes = (x.shape, channels.shape, v.shape, u.shape)
    d_x, *rest = (x.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))
    return d_x.contiguous(memory_format=torch.channels_last) if needs[0] else d_x, *rest


def _setup_context(ctx, inputs, output) -> None:
    x, bias, *factors_and_index, sizes, activation = inputs
    ctx.save_for_backward(output if activation != "none" else output.new_empty(0), x, *factors_and_index)
    ctx.bias_ndim, ctx.sizes, ctx.activation = 0 if bias is None else bias.ndim, sizes, activation


def _backward(ctx, grad: Tensor):
    needs = list(ctx.needs_input_grad[:4])
    needs[1] = needs[1] and ctx.bias_ndim > 0
    gradients = torch.ops.hscc.lowrank_conv2d_backward(grad, *ctx.saved_tensors, ctx.sizes, ctx.activation, needs)
    d_x, d_bias, d_v, d_u = (g if need else None for g, need in zip(gradients, needs, strict=True))
    if needs[1] and ctx.bias_ndim == 1:  # shared by all regions
        d_bias = d_bias.sum(0)
    return d_x, d_bias, d_v, d_u, *(None,) * (len(ctx.needs_input_grad) - 4)


def _refuse_double_backward(ctx, *gradients):
    raise RuntimeError("lowrank_conv2d: double backward is not supported; use the reference function instead")


def _autocast(device: str, backend: str):
    """The op under autocast: floating tensors but those of float64 are cast, as PyTorch does for a convolution."""
    op = getattr(torch.ops.hscc, f"lowrank_conv2d_{backend}").default

    def run(x, bias, v, u, *rest):
        wanted = x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype(device)
        dtype = torch.float32 if backend == "cpu" and wanted == torch.float16 else wanted  # it has no float16
        with torch.autocast(device, enabled=False):
            if x.dtype != torch.float64:
                x, bias, v, u = (t if t is None or not t.is_floating_point() else t.to(dtype) for t in (x, bias, v, u))
            return op(x, bias, v, u, *rest).to(wanted)

    return run


def _reference(*args) -> Tensor:
    arguments.check(*args)
    return reference.lowrank_conv2d(*args).contiguous(memory_format=torch.channels_last)


def _triton(*args) -> Tensor:
    from .triton_kernels.lowrank_conv2d import lowrank_conv2d

    return lowrank_conv2d(*args)


def _project_fake(x: Tensor, matrix: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).matmul(matrix).permute(0, 3, 1, 2)


def _resized(positions: Tensor, work: Tensor, sizes: Sequence[int], patch: int, *size_and_block: int):
    height, width, *block = size_and_block
    made = region_map.resized(positions, work, sizes, patch, (height, width), *block)
    return made.positions, made.work


def _resized_fake(positions: Tensor, work: Tensor, sizes: Sequence[int], patch: int, *size_and_block: int):
    height, width, *_ = size_and_block
    return positions.new_empty(height * width), torch.empty_like(work)


def _register() -> None:
    for backend in BACKENDS:
        name = f"hscc::lowrank_conv2d_{backend}"
        torch.library.define(name, _SCHEMA)
        torch.library.register_fake(name, _fake)
        torch.library.register_autograd(name, _backward, setup_context=_setup_context)
        flops.register(f"lowrank_conv2d_{backend}", flops.lowrank_conv2d)
        for device in ("cpu", "cuda"):
            torch.library.impl(name, f"Autocast{device.upper()}")(_autocast(device, backend))
    torch.library.impl("hscc::lowrank_conv2d_reference", "default", _reference)
    torch.library.impl("hscc::lowrank_conv2d_triton", ("cpu", "cuda"), _triton)
    for backend in INT8_BACKENDS:
        name = f"hscc::lowrank_conv2d_int8_{backend}"
        torch.library.define(name, _INT8_SCHEMA)
        torch.library.register_fake(name, _int8_fake)
        torch.library.register_autograd(name, lambda ctx, *gradients: None, setup_context=_refuse_gradient)
        flops.register(f"lowrank_conv2d_int8_{backend}", flops.lowrank_conv2d_int8)
    torch.library.impl("hscc::lowrank_conv2d_int8_reference", "default", _int8_reference)
    name = "hscc::lowrank_conv2d_backward"
    torch.library.define(name, _BACKWARD_SCHEMA)
    torch.library.register_fake(name, _backward_fake)
    torch.library.impl(name, "default", backward.lowrank_conv2d_backward)
    torch.library.register_autograd(name, _refuse_double_backward, setup_context=lambda ctx, inputs, output: None)
    flops.register("lowrank_conv2d_backward", flops.lowrank_conv2d_backward)
    torch.library.define("hscc::resized", _RESIZED_SCHEMA)
    torch.library.register_fake("hscc::resized", _resized_fake)
    torch.library.impl("hscc::resized", "default", _resized)
    flops.register("resized", lambda *args, **unused: 0)
    torch.library.define("hscc::project_cpu", "(Tensor x, Tensor matrix) -> Tensor")
    torch.library.register_fake("hscc::project_cpu", _project_fake)
    flops.register("project_cpu", flops.project)


_register()
