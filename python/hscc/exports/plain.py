"""Factors of a plan as weights of PyTorch's own layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hscc_kernels import Geometry, PackedPlan
from hscc_kernels.layout import DENSE, WorkItem


def rows_of(plan: PackedPlan, item: WorkItem) -> Tensor:
    """The rows of V that a region uses, int64 (s,)."""
    return plan.rows[item.row_start : item.row_start + item.row_count].long()


def second_stage(plan: PackedPlan, item: WorkItem) -> Tensor:
    """U (O, s) of a region; ones where a cluster has no second stage."""
    u = plan.v.new_zeros(plan.out_channels, item.row_count)
    for c in plan.cluster_items(item):
        channels = plan.channels[item.region, c.channel_start : c.channel_start + c.channel_count].long()
        columns = torch.arange(c.row_start, c.row_start + c.rank, device=u.device)
        if c.u_start == DENSE:
            u[channels, columns] = 1
        else:
            block = plan.u.detach()[c.u_start : c.u_start + c.rank * c.channel_count].view(c.rank, c.channel_count)
            u[channels[:, None], columns] = block.T
    return u


def first_stage(plan: PackedPlan, rows: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """The convolution of these rows of V; of a row of zeros where there is none, as runtimes know no layer of none."""
    v = plan.v.detach()[rows] if len(rows) else plan.v.new_zeros(1, plan.v.shape[1])
    return rows_conv(v, plan.in_channels, plan.geometry, 1, bias)


def rows_conv(v: Tensor, channels: int, geometry: Geometry, groups: int = 1, bias: Tensor | None = None) -> nn.Conv2d:
    """The convolution of rows (q, D) that read so many channels each."""
    kernel, stride, padding, dilation = geometry
    weight = v.unflatten(1, (*kernel, channels)).permute(0, 3, 1, 2)
    return conv(weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv(weight: Tensor, bias: Tensor | None = None, **options) -> nn.Conv2d:
    """With this weight (O, C / groups, kh, kw), which is copied."""
    outputs, channels, *kernel = weight.shape
    shape = channels * options.get("groups", 1), outputs, tuple(kernel)
    made = nn.utils.skip_init(nn.Conv2d, *shape, bias=bias is not None, **options)  # draws no random numbers
    return _filled(made, weight, bias)


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """With this weight (O, D), which is copied."""
    return _filled(nn.utils.skip_init(nn.Linear, *weight.shape[::-1], bias=bias is not None), weight, bias)


def _filled(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    module.weight = fresh(weight)
    if bias is not None:
        module.bias = fresh(bias)
    return module


def fresh(tensor: Tensor) -> nn.Parameter:
    """A copy with the usual strides: those of a size of 1 are free, and say "channels last" where they are."""
    own = tensor.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(own, requires_grad=False)
