"""The specification: the convolution and its gradients in plain PyTorch, any device, any floating dtype.

Every kernel is checked against this file. Loops over regions and clusters, no speed tricks.
Arguments are those of the op (see ``ops.py``); shapes in ``plan.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .plan import DENSE, ClusterItem, Geometry, WorkItem


def lowrank_conv2d(
    x: Tensor,
    v: Tensor,
    u: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    rows: Tensor,
    channels: Tensor,
    work: Tensor,
    clusters: Tensor,
    geometry: Sequence[int],
    activation: str,
) -> Tensor:
    """x (N, C, H, W), bias (R, O) or None -> (N, O, Ho, Wo), channels last in memory. Differentiable."""
    geometry = Geometry.unflat(geometry)
    patches = im2col(x, geometry)  # [N, P, D]
    out = x.new_zeros(x.shape[0], patches.shape[1], channels.shape[1])  # [N, P, O]
    for item, place, factor_rows in _regions(positions, rows, work):
        z = patches[:, place] @ v[factor_rows].T  # [N, p, s]
        parts = []
        for c in _clusters(clusters, item):
            part = z[..., c.row_start : c.row_start + c.rank]
            parts.append(part if c.u_start == DENSE else part @ _u_block(u, c))
        y = torch.cat(parts, dim=-1)
        order = channels[item.region].long()
        if bias is not None:
            y = y + bias[item.region, order]
        out[:, place[:, None], order] = y
    out = F.relu(out) if activation == "relu" else out
    height, width = geometry.out_size(*x.shape[2:])
    return out.view(x.shape[0], height, width, channels.shape[1]).permute(0, 3, 1, 2)


def lowrank_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    v: Tensor,
    u: Tensor,
    y: Tensor,
    positions: Tensor,
    rows: Tensor,
    channels: Tensor,
    work: Tensor,
    clusters: Tensor,
    geometry: Sequence[int],
    activation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, v, u and bias (R, O) from that of the output; y is the output. Unneeded ones are empty."""
    geometry = Geometry.unflat(geometry)
    need_x, need_v, need_u, need_bias = needs
    if activation == "relu":
        grad = grad * (y > 0)
    grad = grad.permute(0, 2, 3, 1).flatten(1, 2)  # [N, P, O]
    patches = im2col(x, geometry)  # [N, P, D]
    d_patches = torch.zeros_like(patches) if need_x else None
    d_v = torch.zeros_like(v) if need_v else v.new_empty(0)
    d_u = torch.zeros_like(u) if need_u else u.new_empty(0)
    d_bias = grad.new_zeros(channels.shape) if need_bias else grad.new_empty(0)
    for item, place, factor_rows in _regions(positions, rows, work):
        order = channels[item.region].long()
        g = grad[:, place][..., order]  # [N, p, O], cluster after cluster
        if need_bias:
            d_bias[item.region, order] = g.sum((0, 1))
        region_patches = patches[:, place]
        z = region_patches @ v[factor_rows].T if need_u else None  # [N, p, s]
        d_z = g.new_zeros(*g.shape[:2], item.row_count)
        for c in _clusters(clusters, item):
            g_c = g[..., c.channel_start : c.channel_start + c.channel_count]
            rank = slice(c.row_start, c.row_start + c.rank)
            if c.u_start == DENSE:
                d_z[..., rank] += g_c
                continue
            d_z[..., rank] += g_c @ _u_block(u, c).T
            if need_u:
                block = torch.einsum("nps,npo->so", z[..., rank], g_c)
                d_u[c.u_start : c.u_start + block.numel()] += block.reshape(-1)
        if need_v:
            d_v.index_add_(0, factor_rows, torch.einsum("nps,npd->sd", d_z, region_patches))
        if need_x:
            d_patches[:, place] = d_z @ v[factor_rows]
    d_x = col2im(d_patches, x.shape, geometry) if need_x else x.new_empty(0)
    return d_x, d_v, d_u, d_bias


def im2col(x: Tensor, geometry: Geometry) -> Tensor:
    """(N, C, H, W) -> patches (N, P, D), D ordered (kh, kw, C)."""
    n, c = x.shape[:2]
    height, width = geometry.out_size(*x.shape[2:])
    taps = geometry.kernel[0] * geometry.kernel[1]
    if n == 0:
        return x.new_zeros(0, height * width, taps * c)
    columns = F.unfold(x, geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)
    return columns.view(n, c, taps, -1).permute(0, 3, 2, 1).reshape(n, height * width, taps * c)


def col2im(patches: Tensor, shape: Sequence[int], geometry: Geometry) -> Tensor:
    """The adjoint of :func:`im2col`: sums patches (N, P, D) into an input of that shape."""
    n, c, height, width = shape
    if n == 0:
        return patches.new_zeros(shape)
    columns = patches.view(n, patches.shape[1], -1, c).permute(0, 3, 2, 1).reshape(n, -1, patches.shape[1])
    return F.fold(columns, (height, width), geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)


def _regions(positions: Tensor, rows: Tensor, work: Tensor) -> Iterator[tuple[WorkItem, Tensor, Tensor]]:
    for values in work.tolist():
        item = WorkItem(*values)
        place = positions[item.position_start : item.position_start + item.position_count].long()
        yield item, place, rows[item.row_start : item.row_start + item.row_count].long()


def _clusters(clusters: Tensor, item: WorkItem) -> list[ClusterItem]:
    table = clusters[item.cluster_start : item.cluster_start + item.cluster_count]
    return [ClusterItem(*values) for values in table.tolist()]


def _u_block(u: Tensor, c: ClusterItem) -> Tensor:
    return u[c.u_start : c.u_start + c.rank * c.channel_count].view(c.rank, c.channel_count)
