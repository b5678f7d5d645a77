"""The rows of a plan's tables, and the geometry of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class WorkItem(NamedTuple):
    """A row of ``PackedPlan.work``: one region. ``macs`` is the multiply-adds of one position."""

    region: int
    position_start: int
    position_count: int
    row_start: int
    row_count: int
    cluster_start: int
    cluster_count: int
    macs: int


class ClusterItem(NamedTuple):
    """A row of ``PackedPlan.clusters``; starts count from the region's own channels and rows, ``u_start`` from u.

    ``u_start == DENSE`` means: no second stage, the rank (= channel_count) first-stage rows are the outputs.
    """

    channel_start: int
    channel_count: int
    row_start: int
    rank: int
    u_start: int


DENSE = -1
ANY = -1  # for an output's height and width in a plan's sizes: those that the input gives


class Geometry(NamedTuple):
    """Kernel size, stride, zero padding and dilation of a convolution, each as (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Output (height, width) for an input of that size, as ``nn.Conv2d`` counts it."""
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = self
        return (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1

    def flat(self) -> list[int]:
        """Eight ints: kernel, stride, padding, dilation."""
        return [*self.kernel, *self.stride, *self.padding, *self.dilation]

    @classmethod
    def unflat(cls, ints: Sequence[int]) -> Geometry:
        """The inverse; more ints than eight may follow."""
        return cls(*((ints[i], ints[i + 1]) for i in (0, 2, 4, 6)))


def sized(sizes: Sequence[int], x: Tensor) -> tuple[int, ...]:
    """A plan's ten sizes, with the height and width of the output for x (N, C, H, W) where they are :data:`ANY`."""
    if sizes[-1] != ANY:
        return tuple(sizes)
    return (*sizes[:-2], *Geometry.unflat(sizes).out_size(x.shape[2], x.shape[3]))
