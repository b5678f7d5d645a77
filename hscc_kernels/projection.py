"""project: fewer channels by a matrix; a 1 x 1 convolution in all but name."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.compiler import is_dynamo_compiling

from . import ops  # noqa: F401  (registers the ops)
from .dispatch import resolve

_CPU = torch.ops.hscc.lowrank_conv2d_cpu.default
_PROJECT = torch.ops.hscc.project_cpu.default


def project(x: Tensor, matrix: Tensor) -> Tensor:
    """Channels (N, C, H, W) or (C, H, W) to c of them by ``matrix`` (C, c), laid out in memory as x.

    Maps that are channels last, and planes that become one, go through our kernel where the cpu backend runs float32
    and no gradient is wanted; everything else is one matrix product of PyTorch's. Raises ValueError where the shapes do
    not fit, and what PyTorch raises where the dtypes or devices do not.
    """
    if matrix.ndim != 2 or x.ndim not in (3, 4) or x.shape[-3] != matrix.shape[0]:
        got = f"{tuple(x.shape)} and {tuple(matrix.shape)}"
        raise ValueError(f"x, matrix: got {got}, expected (N, C, H, W) or (C, H, W) and (C, c)")
    if x.ndim == 3:
        return project(x[None], matrix)[0]
    batched = not is_dynamo_compiling() and is_batchedtensor(x)  # under vmap, where layouts cannot be asked for
    last = not batched and x.is_contiguous(memory_format=torch.channels_last)
    if x.is_cpu and (last or (matrix.shape[1] == 1 and x.is_contiguous())) and _takes(x, matrix):
        return _PROJECT(x, matrix) if is_dynamo_compiling() else _PROJECT._op(x, matrix)  # as in functional.py
    if not last:
        matrices = matrix.T.expand(x.shape[0], -1, -1)  # for bmm, as matmul would copy them
        return torch.bmm(matrices, x.flatten(2)).unflatten(2, x.shape[2:])
    return torch.matmul(x.permute(0, 2, 3, 1), matrix).permute(0, 3, 1, 2)


def _takes(x: Tensor, matrix: Tensor) -> bool:
    """Whether our op gives what PyTorch's would, cast and recorded as it would."""
    learns = torch.is_grad_enabled() and (x.requires_grad or matrix.requires_grad)
    floats = x.dtype == matrix.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return floats and not learns and resolve(x) is _CPU
