"""The specification: the convolution in plain PyTorch, any device, any floating dtype; autograd gives its gradients.

Every kernel and the backward are checked against this file. Loops over regions and clusters, no speed tricks.
Arguments are those of the op (see ``ops.py``); shapes in ``plan.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import DENSE, ClusterItem, Geometry, WorkItem, sized
from .plan import PackedPlan


def lowrank_conv2d(
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
) -> Tensor:
    """x (N, C, H, W), bias (O,), (R, O) or None -> (N, O, Ho, Wo), channels last in memory. Differentiable."""
    geometry = Geometry.unflat(sizes)
    patches = im2col(x, geometry)  # [N, P, D]

    def first_stage(place: Tensor, factor_rows: Tensor) -> Tensor:
        return patches[:, place] @ v[factor_rows].T  # [N, p, s]

    plan = PackedPlan(v, u, positions, rows, channels, work, clusters, sized(sizes, x))
    return second_stage(first_stage, len(x), plan, bias, activation)


def second_stage(
    first_stage: Callable[[Tensor, Tensor], Tensor], images: int, plan: PackedPlan, bias: Tensor | None, activation: str
) -> Tensor:
    """Outputs (N, O, Ho, Wo) from Z, which ``first_stage`` gives for positions (p,) and rows of v (s,) as (N, p, s)."""
    _, u, positions, rows, channels, work, clusters, _ = plan
    out = u.new_zeros(images, positions.shape[0], channels.shape[1])  # [N, P, O]
    biases = None if bias is None else bias.expand(channels.shape)
    for item, place, factor_rows in regions_of(positions, rows, work):
        z = first_stage(place, factor_rows)
        parts = []
        for c in clusters_of(clusters, item):
            part = z[..., c.row_start : c.row_start + c.rank]
            parts.append(part if c.u_start == DENSE else part @ u_block(u, c))
        y = torch.cat(parts, dim=-1)
        order = channels[item.region].long()
        if biases is not None:
            y = y + biases[item.region, order]
        out[:, place[:, None], order] = y
    out = F.relu(out) if activation == "relu" else out
    return out.view(images, *plan.out_size, channels.shape[1]).permute(0, 3, 1, 2)


def im2col(x: Tensor, geometry: Geometry) -> Tensor:
    """(N, C, H, W) -> patches (N, P, D), D ordered (kh, kw, C)."""
    n, c = x.shape[:2]
    height, width = geometry.out_size(*x.shape[2:])
    taps = geometry.kernel[0] * geometry.kernel[1]
    if n == 0:
        return x.new_zeros(0, height * width, taps * c)
    columns = F.unfold(x, geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)
    return columns.view(n, c, taps, -1).permute(0, 3, 2, 1).reshape(n, height * width, taps * c)


def regions_of(positions: Tensor, rows: Tensor, work: Tensor) -> Iterator[tuple[WorkItem, Tensor, Tensor]]:
    """Each region with its positions and its rows of v, both int64."""
    for values in work.tolist():
        item = WorkItem(*values)
        place = positions[item.position_start : item.position_start + item.position_count].long()
        yield item, place, rows[item.row_start : item.row_start + item.row_count].long()


def clusters_of(clusters: Tensor, item: WorkItem) -> list[ClusterItem]:
    table = clusters[item.cluster_start : item.cluster_start + item.cluster_count]
    return [ClusterItem(*values) for values in table.tolist()]


def u_block(u: Tensor, c: ClusterItem) -> Tensor:
    """(rank, channels) of a cluster."""
    return u[c.u_start : c.u_start + c.rank * c.channel_count].view(c.rank, c.channel_count)
