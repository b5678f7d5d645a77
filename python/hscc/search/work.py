"""What a layer does and holds, in quantities that add up over its parts: what its FLOPs, bytes and time come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from hscc_kernels import PackedPlan
from hscc_kernels.layout import ClusterItem, WorkItem

_ONCE = ("calls", "numbers", "pointwise", "indices")  # whatever the number of positions


class Work(NamedTuple):
    """What a layer or a part of it does for one image, and what it holds; as a rate, seconds of each."""

    calls: float = 0
    first: float = 0  # multiply-adds of the first stage
    values: float = 0  # of the first stage: rows x positions
    second: float = 0  # multiply-adds of the second stage
    outputs: float = 0
    scattered: float = 0  # outputs that pass a permutation of the channels
    taps: float = 0  # kernel taps x positions
    inputs: float = 0
    numbers: float = 0  # stored, and read in each call
    pointwise: float = 0  # calls of a dense 1 x 1 convolution, its multiply-adds, what it reads and writes
    pointwise_macs: float = 0
    pointwise_values: float = 0
    indices: float = 0  # int32 numbers stored; they take no time of their own

    @classmethod
    def of(cls, plan: PackedPlan) -> Work:
        """All of a plan."""
        items, (positions, outputs) = plan.work_items(), (plan.positions.numel(), plan.out_channels)
        first = sum(item.position_count * item.row_count for item in items) * plan.v.shape[1]
        mixed = (plan.channels.diff(dim=1) < 0).any(1).tolist()
        return cls(
            calls=1,
            first=first,
            values=first // plan.v.shape[1],
            second=plan.flops() // 2 - first,
            outputs=positions * outputs,
            scattered=outputs * sum(item.position_count for item in items if mixed[item.region]),
            taps=positions * plan.v.shape[1] // plan.in_channels,
            inputs=positions * plan.in_channels * plan.geometry.stride[0] * plan.geometry.stride[1],
            numbers=plan.parameters(),
            indices=sum(t.numel() for t in plan.tensors),
        )

    def repeated(self, times: float) -> Work:
        """On so many times the positions."""
        return Work(*(n if name in _ONCE else n * times for name, n in zip(self._fields, self, strict=True)))

    @classmethod
    def without_ranks(cls, conv: nn.Conv2d, regions: Sequence[tuple[int, int]]) -> Work:
        """Of a structure at rank 0: (positions, clusters) of each region."""
        positions, outputs = sum(size for size, _ in regions), conv.out_channels
        tables = len(WorkItem._fields) * len(regions) + len(ClusterItem._fields) * sum(count for _, count in regions)
        return cls(
            calls=1,
            outputs=positions * outputs,
            scattered=sum(size * outputs for size, clusters in regions if clusters > 1),
            taps=positions * conv.kernel_size[0] * conv.kernel_size[1],
            inputs=positions * conv.in_channels * conv.stride[0] * conv.stride[1],
            numbers=len(regions) * outputs,
            indices=positions + len(regions) * outputs + tables,
        )

    @classmethod
    def of_pointwise(cls, positions: int, inputs: int, outputs: int) -> Work:
        """A dense 1 x 1 convolution without bias."""
        return cls(
            numbers=inputs * outputs,
            pointwise=1,
            pointwise_macs=positions * inputs * outputs,
            pointwise_values=positions * (inputs + outputs),
        )
