"""Gradients by gathered matrix products, a region at a time: what the op's autograd runs on every device.

Patches are rows of a padded channels-last copy of x, so im2col is one gather a region; its adjoint adds tap by tap,
where no two patches meet (no atomics: repeatable).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .plan import DENSE, Geometry
from .reference import clusters_of, regions_of, u_block


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
    """Gradients of x (channels last), v, u and bias (R, O) from that of the output y; unneeded ones are empty."""
    geometry = Geometry.unflat(geometry)
    need_x, need_v, need_u, need_bias = needs
    n, depth, height, width = x.shape
    if activation == "relu":
        grad = grad * (y > 0)
    grad = grad.permute(0, 2, 3, 1).flatten(1, 2)  # [N, P, O]
    (pad_h, pad_w), sums = geometry.padding, torch.promote_types(x.dtype, torch.float32)  # halves are summed in float
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad_w, pad_w, pad_h, pad_h))
    pixels = padded.flatten(1, 2)  # [N, pixels, C]
    taps = tap_pixels(geometry, x.shape[2:], x.device)
    d_pixels = torch.zeros_like(pixels, dtype=sums) if need_x else None
    d_v = torch.zeros_like(v) if need_v else v.new_empty(0)
    d_u = torch.zeros_like(u) if need_u else u.new_empty(0)
    d_bias = grad.new_zeros(channels.shape) if need_bias else grad.new_empty(0)
    for item, place, factor_rows in regions_of(positions, rows, work):
        order = channels[item.region].long()
        g = grad[:, place][..., order]  # [N, p, O], cluster after cluster
        if need_bias:
            d_bias[item.region, order] = g.sum((0, 1))
        patches = (
            pixels[:, taps[place].flatten()].view(n, len(place), v.shape[1]) if need_u or need_v else None
        )  # [N, p, D]
        z = patches @ v[factor_rows].T if need_u else None  # [N, p, s]
        d_z = g.new_zeros(*g.shape[:2], item.row_count)
        for c in clusters_of(clusters, item):
            g_c = g[..., c.channel_start : c.channel_start + c.channel_count]
            rank = slice(c.row_start, c.row_start + c.rank)
            if c.u_start == DENSE:
                d_z[..., rank] += g_c
                continue
            d_z[..., rank] += g_c @ u_block(u, c).T
            if need_u:
                block = z[..., rank].flatten(0, 1).T @ g_c.flatten(0, 1)
                d_u[c.u_start : c.u_start + block.numel()] += block.reshape(-1)
        if need_v:
            d_v.index_add_(0, factor_rows, d_z.flatten(0, 1).T @ patches.flatten(0, 1))
        if need_x:
            d_patches = (d_z @ v[factor_rows]).view(n, len(place), taps.shape[1], depth).to(sums)
            for tap, pixel in enumerate(taps[place].T):
                d_pixels[:, pixel] += d_patches[:, :, tap]
    if not need_x:
        return x.new_empty(0), d_v, d_u, d_bias
    d_x = d_pixels.view(padded.shape)[:, pad_h : pad_h + height, pad_w : pad_w + width].to(x.dtype).permute(0, 3, 1, 2)
    return d_x.clone(memory_format=torch.channels_last), d_v, d_u, d_bias


def tap_pixels(geometry: Geometry, size: Sequence[int], device: torch.device) -> Tensor:
    """(P, taps) int64: the pixel of the padded image that each tap of each output position reads."""
    (kh, kw), (sh, sw), (_, pw), (dh, dw) = geometry
    width = size[1] + 2 * pw
    out_h, out_w = geometry.out_size(*size)
    rows = sh * torch.arange(out_h, device=device)[:, None] + dh * torch.arange(kh, device=device)  # [Ho, kh]
    columns = sw * torch.arange(out_w, device=device)[:, None] + dw * torch.arange(kw, device=device)  # [Wo, kw]
    return (width * rows[:, None, :, None] + columns[None, :, None, :]).view(out_h * out_w, kh * kw)
