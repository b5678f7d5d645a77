"""A grouped convolution as one op: on a wider map its groups are neighbouring columns.

Channels last, a map (H, W, G C) and a map (H, W G, C) are the same numbers: column w G + g has what group g reads at w.
A convolution whose dilation and padding along rows are G times as wide stays in the columns of one group, so that each
group is a region, or several, with factors of its own. Where the stride is s, only every s-th column of a group counts;
the others are of one more region, which computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors
from hscc_kernels.layout import DENSE

from .padding import stays_open


class Wide(NamedTuple):
    """How a map is wider than that of the convolution: so many groups, of whose columns each ``stride``-th counts."""

    groups: int
    stride: int

    @classmethod
    def of(cls, numbers: Sequence[int], geometry: Sequence[int]) -> Wide:
        """From what a file has; ValueError where the op's geometry, eight ints, is of no such map."""
        groups, stride = map(int, numbers)
        op = Geometry.unflat(geometry)
        if groups < 1 or stride < 1 or op != cls(groups, stride).geometry(cls(groups, stride).narrow(op)):
            raise ValueError(f"wide: got {[*numbers]} for {op}, expected groups and a stride that it is for")
        return cls(groups, stride)

    @property
    def block(self) -> int:
        """Columns of the op's output for each of the convolution's."""
        return self.groups * self.stride

    def geometry(self, narrow: Geometry) -> Geometry:
        """Of the op, from that of the convolution."""
        kernel, (rows, _), (pad, pad_w), (dilation, dilation_w) = narrow
        return Geometry(kernel, (rows, 1), (pad, pad_w * self.groups), (dilation, dilation_w * self.groups))

    def narrow(self, geometry: Geometry) -> Geometry:
        """Of the convolution, from that of the op."""
        kernel, (rows, _), (pad, pad_w), (dilation, dilation_w) = geometry
        return Geometry(kernel, (rows, self.stride), (pad, pad_w // self.groups), (dilation, dilation_w // self.groups))

    def out_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(Ho, Wo) of the convolution, from that of the op."""
        return size[0], -(-size[1] // self.block)

    def group_of(self, plan: PackedPlan) -> Tensor:
        """The group (R,) int64 of each region."""
        found = torch.zeros(plan.regions, dtype=torch.int64)
        for item in plan.work_items():
            if item.position_count:
                found[item.region] = int(plan.positions[item.position_start]) % self.groups
        return found

    def regions(self, plan: PackedPlan) -> int:
        """The most that a group has."""
        return -(-(plan.regions - (self.stride > 1)) // self.groups)

    def read(self, x: Tensor) -> Tensor:
        """(N, G C, H, W) -> (N, C, H, W G); a view where x is channels last."""
        columns, channels = x.shape[3] * self.groups, x.shape[1] // self.groups
        return _columns(x.permute(0, 2, 3, 1), columns, channels).permute(0, 3, 1, 2)

    def written(self, y: Tensor) -> Tensor:
        """What the op gives, (N, O, Ho, columns) -> (N, G O, Ho, Wo), channels last; a view at stride 1."""
        columns = y.shape[3] // self.groups
        y = _columns(y.permute(0, 2, 3, 1), columns, y.shape[1] * self.groups)
        if self.stride > 1:  # a slice would ask of a graph of any size what strides it has
            y = y.index_select(2, torch.arange(0, columns, self.stride, device=y.device))
        return y.permute(0, 3, 1, 2)

    def spread(self, y: Tensor, columns: int) -> Tensor:
        """The inverse of :meth:`written`: (N, G O, Ho, Wo) -> (N, O, Ho, columns), zeros where nothing counts."""
        n, o, h, _ = y.shape
        whole = y.new_zeros(n, h, columns // self.groups, o)
        whole[:, :, :: self.stride] = y.permute(0, 2, 3, 1)
        return whole.view(n, h, columns, o // self.groups).permute(0, 3, 1, 2)


def _columns(x: Tensor, columns: int, channels: int) -> Tensor:
    """The same numbers of a map (N, H, W, C) in other columns; a view where ``x`` is contiguous."""
    n, h = x.shape[:2]
    if stays_open(columns):  # that these are the same numbers PyTorch could not prove
        row = columns * channels
        return x.contiguous().as_strided((n, h, columns, channels), (h * row, row, channels, 1))
    return x.reshape(n, h, columns, channels)


def united(plans: Sequence[PackedPlan], biases: Sequence[Tensor], columns: int) -> tuple[PackedPlan, Tensor, Wide]:
    """The plan and the bias (R, O) of one op for the groups, whose plans are of one geometry.

    Args:
        biases: of each group (regions, O).
        columns: of an input of the calibrated size, before the padding of the geometry.
    """
    geometry, height = plans[0].geometry, plans[0].out_size[0]
    wide = Wide(len(plans), geometry.stride[1])
    whole = wide.geometry(geometry)
    w = whole.out_size(1 << 20, columns * wide.groups)[1]
    parts, rows = [], 0
    labels = torch.full((height, w), sum(plan.regions for plan in plans))
    for group, plan in enumerate(plans):
        labels[:, group :: wide.block] = plan.labels().cpu() + len(parts)
        parts += [part._replace(rows=part.rows + rows) for part in _regions(plan)]
        rows += len(plan.v)
    bias = torch.cat([*biases])
    if wide.stride > 1:
        channels = torch.arange(plans[0].out_channels, device=bias.device)
        nothing = ClusterFactors(channels, 0, bias.new_zeros(len(channels), 0))
        parts.append(RegionFactors(channels[:0], (nothing,)))
        bias = torch.cat([bias, bias.new_zeros(1, len(channels))])
    v = torch.cat([plan.v.detach() for plan in plans])
    return PackedPlan.pack(v, parts, labels.to(v.device), whole), bias, wide


def _regions(plan: PackedPlan) -> Iterator[RegionFactors]:
    """What the plan was packed from."""
    for item in sorted(plan.work_items()):
        clusters = []
        for c in plan.cluster_items(item):
            channels = plan.channels[item.region, c.channel_start : c.channel_start + c.channel_count].long()
            block = plan.u.detach()[c.u_start : c.u_start + c.rank * c.channel_count]
            u = None if c.u_start == DENSE else block.view(c.rank, c.channel_count).T
            clusters.append(ClusterFactors(channels, c.row_start, u))
        yield RegionFactors(plan.rows[item.row_start : item.row_start + item.row_count].long(), tuple(clusters))
