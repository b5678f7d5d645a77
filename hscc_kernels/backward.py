"""Gradients by gathered matrix products, a region at a time: what the op's autograd runs on every device.

Patches are windows of a padded channels-last copy of x, so im2col is one gather a region; its adjoint adds tap by tap,
where no two patches meet (no atomics: repeatable).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import DENSE, Geometry
from .reference import clusters_of, regions_of, u_block

PATCH_NUMBERS = 1 << 26  # images come in parts whose patches hold no more, unless one image's do


def lowrank_conv2d_backward(
    grad: Tensor,
    y: Tensor,
    x: Tensor,
    v: Tensor,
    u: Tensor,
    positions: Tensor,
    rows: Tensor,
    channels: Tensor,
    work: Tensor,
    clusters: Tensor,
    sizes: Sequence[int],
    activation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (channels last), bias (R, O), v and u from that of the output y; unneeded ones are empty."""
    geometry = Geometry.unflat(sizes)
    need_x, need_bias, need_v, need_u = needs
    sums = torch.promote_types(x.dtype, torch.float32)  # halves are summed in float
    d_x = torch.empty_like(x, memory_format=torch.channels_last) if need_x else x.new_empty(0)
    shapes = zip((channels.shape, v.shape, u.shape), needs[1:], strict=True)
    d_bias, d_v, d_u = (x.new_zeros(shape if need else (0,), dtype=sums) for shape, need in shapes)
    regions = [(item, *index, clusters_of(clusters, item)) for item, *index in regions_of(positions, rows, work)]
    images = max(1, PATCH_NUMBERS // max(1, len(positions) * v.shape[1]))
    for start in range(0, len(x), images):
        part = slice(start, start + images)
        g_part = grad[part] * (y[part] > 0) if activation == "relu" else grad[part]
        g_part = g_part.permute(0, 2, 3, 1).flatten(1, 2)  # [n, P, O]
        padded = padded_nhwc(x[part], geometry)
        windows = windows_of(padded, geometry)
        n, width = len(padded), windows.shape[2]
        d_patches = padded.new_zeros(n, len(positions), v.shape[1]) if need_x else None
        for item, place, factor_rows, table in regions:
            order, v_rows = channels[item.region].long(), v[factor_rows]
            g = g_part.index_select(1, place).index_select(2, order).flatten(0, 1)  # [n p, O], cluster after cluster
            if need_bias:
                d_bias[item.region, order] += g.sum(0, dtype=sums)
            if need_u or need_v:
                patches = windows[:, place // width, place % width].reshape(-1, v.shape[1])  # [n p, D]
            z = patches @ v_rows.T if need_u else None  # [n p, s]
            d_z = g.new_zeros(len(g), item.row_count)
            for c in table:
                g_c = g[:, c.channel_start : c.channel_start + c.channel_count]
                rank = slice(c.row_start, c.row_start + c.rank)
                if c.u_start == DENSE:
                    d_z[:, rank] += g_c
                    continue
                d_z[:, rank] += g_c @ u_block(u, c).T
                if need_u:
                    d_u[c.u_start : c.u_start + c.rank * c.channel_count] += (z[:, rank].T @ g_c).flatten()
            if need_v:
                d_v.index_add_(0, factor_rows, (d_z.T @ patches).to(sums))
            if need_x:
                d_patches.index_copy_(1, place, (d_z @ v_rows).view(n, len(place), v.shape[1]))
        if need_x:
            d_x[part] = _col2im(d_patches.view(windows.shape), padded, geometry, sums)
    return d_x, d_bias.to(grad.dtype), d_v.to(v.dtype), d_u.to(u.dtype)


def padded_nhwc(x: Tensor, geometry: Geometry) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C), contiguous, with its padding."""
    pad_h, pad_w = geometry.padding
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, pad_w, pad_w, pad_h, pad_h)).contiguous()


def _col2im(d_patches: Tensor, padded: Tensor, geometry: Geometry, sums: torch.dtype) -> Tensor:
    """Adjoint of the patches (N, Ho, Wo, kh, kw, C) of a padded image -> (N, C, H, W) without the padding."""
    total = torch.zeros_like(padded, dtype=sums)
    windows = windows_of(total, geometry)
    for i, j in product(*map(range, geometry.kernel)):
        windows[..., i, j, :] += d_patches[..., i, j, :]
    pad_h, pad_w = geometry.padding
    return total[:, pad_h : total.shape[1] - pad_h, pad_w : total.shape[2] - pad_w].permute(0, 3, 1, 2)


def windows_of(padded: Tensor, geometry: Geometry) -> Tensor:
    """A padded image (N, H, W, C), contiguous -> a view (N, Ho, Wo, kh, kw, C): its patches, which share numbers."""
    n, height, width, depth = padded.shape
    kernel, (sh, sw), _, (dh, dw) = geometry
    image, row, pixel, _ = padded.stride()
    out = geometry._replace(padding=(0, 0)).out_size(height, width)
    return padded.as_strided((n, *out, *kernel, depth), (image, sh * row, sw * pixel, dh * row, dw * pixel, 1))
