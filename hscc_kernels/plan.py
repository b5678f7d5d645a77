"""PackedPlan: everything a kernel needs to know about one hierarchical spatio-channel convolution.

The mathematics is in ``docs/math.md``; in short, for an output position p of region r and a cluster of channels C,

    y[C, p] = bias[r, C] + U (V[rows of r] x_p)[slice]        x_p: the im2col patch of p, channels last
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import region_map
from .layout import DENSE, ClusterItem, Geometry, WorkItem


class ClusterFactors(NamedTuple):
    """Channels (n,) of one cluster, where its rows start in the region's list, and U (n, rank); None is dense."""

    channels: Tensor
    row_start: int
    u: Tensor | None


class RegionFactors(NamedTuple):
    """The pool rows (s,) that a region computes, and its clusters, which partition the output channels."""

    rows: Tensor
    clusters: tuple[ClusterFactors, ...]


class PackedPlan(NamedTuple):
    """Flat tensors of one layer for one output size; build it with :meth:`pack`.

    Shapes (q pool rows, D = kh*kw*C patch length, R regions, O output channels, P = Ho*Wo output positions):
        v: (q, D) first-stage rows, D ordered (kh, kw, C), floating.
        u: (sum of rank * channels,) the clusters' second-stage blocks, each (rank, channels) row by row, as v.
        positions: (P,) int32, flat output positions, region after region, within one as in ``region_map.py``.
        rows: (S,) int32, rows of v that each region uses, region after region.
        channels: (R, O) int32, each region's output channels, cluster after cluster.
        work: (R, 8) int32, the work list: a :class:`WorkItem` a row, dearest position first.
        clusters: (K, 5) int32, a :class:`ClusterItem` a row.
        sizes: ten ints, the geometry's eight and the output's height and width.

    These are the op's arguments between bias and activation, in its order: ``op(x, bias, *plan, activation)``.
    """

    v: Tensor
    u: Tensor
    positions: Tensor
    rows: Tensor
    channels: Tensor
    work: Tensor
    clusters: Tensor
    sizes: tuple[int, ...]

    @property
    def geometry(self) -> Geometry:
        return Geometry.unflat(self.sizes)

    @property
    def out_size(self) -> tuple[int, int]:
        return self.sizes[-2:]

    @property
    def in_channels(self) -> int:
        return self.v.shape[1] // (self.geometry.kernel[0] * self.geometry.kernel[1])

    @property
    def out_channels(self) -> int:
        return self.channels.shape[1]

    @property
    def regions(self) -> int:
        return self.channels.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The index tensors, in order."""
        return self[2:7]

    @classmethod
    def pack(cls, v: Tensor, regions: Sequence[RegionFactors], labels: Tensor, geometry: Geometry) -> PackedPlan:
        """Flattens per-region factors; ``labels`` (Ho, Wo) holds the region number of each output position.

        Raises ValueError when the parts do not form a partition or do not fit each other.
        """
        rows, channels, clusters, u, table = [], [], [], [], []
        for region, part in enumerate(regions):
            macs = part.rows.numel() * v.shape[1]
            table.append([region, 0, 0, sum(map(len, rows)), len(part.rows), len(clusters), len(part.clusters)])
            start, ordered = 0, [_in_order(cluster) for cluster in part.clusters]
            for cluster in ordered:
                count = len(cluster.channels)
                if cluster.u is None:
                    rank, u_start = count, DENSE
                else:
                    rank, u_start = cluster.u.shape[1], sum(map(len, u))
                    u.append(cluster.u.T.reshape(-1))
                    macs += count * rank
                clusters.append(ClusterItem(start, count, cluster.row_start, rank, u_start))
                start += count
            table[-1].append(macs)
            rows.append(part.rows)
            channels.append(torch.cat([c.channels for c in ordered]))
        if len({len(c) for c in channels}) != 1:
            raise ValueError(f"clusters: got {[len(c) for c in channels]} channels in the regions, expected equal")
        index = {"dtype": torch.int32, "device": v.device}
        order = sorted(range(len(table)), key=lambda r: -table[r][-1])
        plan = cls(
            v=v,
            u=torch.cat(u).to(v) if u else v.new_zeros(0),
            positions=torch.empty(0, **index),
            rows=torch.cat(rows).to(**index),
            channels=torch.stack(channels).to(**index),
            work=torch.tensor([table[r] for r in order], **index),
            clusters=torch.tensor(clusters, **index).view(-1, len(ClusterItem._fields)),
            sizes=(*geometry.flat(), 0, 0),
        )
        return plan.mapped(labels).validate()

    def mapped(self, labels: Tensor) -> PackedPlan:
        """This plan on another region map: ``labels`` (Ho, Wo), values in [0, R)."""
        flat = labels.reshape(-1)
        if flat.numel() and not (int(flat.min()) >= 0 and int(flat.max()) < self.regions):
            raise ValueError(f"labels: got {int(flat.min())}..{int(flat.max())}, expected 0..{self.regions - 1}")
        return self._replace(**region_map.mapped(self.work, labels, self.geometry, self.v.shape[1])._asdict())

    def resized(self, size: tuple[int, int], block: int = 1) -> PackedPlan:
        """This plan for outputs of another size: each position is of the region of the nearest one.

        ``block``: so many neighbouring columns go as one, each to its own place in another.
        """
        return self._replace(
            **region_map.resized(self.positions, self.work, self.sizes, self.v.shape[1], size, block)._asdict()
        )

    def labels(self) -> Tensor:
        """(Ho, Wo) int64 region of each output position."""
        return region_map.labels_of(self.positions, self.work, self.sizes)

    def to(self, *args, **kwargs) -> PackedPlan:
        """Like ``Tensor.to``; a dtype changes only the factors."""
        moved = {name: getattr(self, name).to(*args, **kwargs) for name in ("v", "u")}
        device = moved["v"].device
        index = ("positions", "rows", "channels", "work", "clusters")
        return self._replace(**moved, **{name: getattr(self, name).to(device) for name in index})

    def flops(self) -> int:
        """Floating-point operations of one image: two a multiply-add; bias and activation are not counted."""
        return 2 * sum(item.position_count * item.macs for item in self.work_items())

    def parameters(self) -> int:
        """Numbers stored: factors and one bias a region and channel."""
        return self.v.numel() + self.u.numel() + self.channels.numel()

    def work_items(self) -> list[WorkItem]:
        return [WorkItem(*row) for row in self.work.tolist()]

    def cluster_items(self, item: WorkItem) -> list[ClusterItem]:
        table = self.clusters[item.cluster_start : item.cluster_start + item.cluster_count]
        return [ClusterItem(*row) for row in table.tolist()]

    def validate(self) -> PackedPlan:
        """Checks every index (reads the tensors, so it is not for a warm forward); returns the plan itself."""
        least = (1, 1, 1, 1, 0, 0, 1, 1, 0, 0)  # kernel, stride, padding, dilation, output
        fits = len(self.sizes) == len(least)
        fits = fits and all(isinstance(n, int) and n >= m for n, m in zip(self.sizes, least, strict=True))
        _expect("sizes", fits, self.sizes, f"ten ints, at least {least}")
        _expect("v", self.v.ndim == 2 and self.v.is_floating_point(), self.v.shape, "floating (q, D)")
        taps = self.geometry.kernel[0] * self.geometry.kernel[1]
        _expect("v", self.v.shape[1] % taps == 0, self.v.shape, f"D a multiple of {taps} taps")
        _expect("u", self.u.ndim == 1 and self.u.dtype == self.v.dtype, self.u.dtype, f"flat, {self.v.dtype}")
        for name, width in (("work", len(WorkItem._fields)), ("clusters", len(ClusterItem._fields))):
            table = getattr(self, name)
            _expect(name, table.ndim == 2 and table.shape[1] == width, table.shape, f"(n, {width})")
        for tensor, name in zip(self.tensors, ("positions", "rows", "channels", "work", "clusters"), strict=True):
            _expect(name, tensor.dtype == torch.int32, tensor.dtype, "torch.int32")
            _expect(name, tensor.device == self.v.device, tensor.device, self.v.device)
            _expect(name, tensor.is_contiguous(), "strides " + str(tensor.stride()), "contiguous")
        count = self.out_size[0] * self.out_size[1]
        _expect(
            "positions",
            _is_permutation(self.positions, count),
            "other values",
            f"each of 0..{count - 1} once",
        )
        for region in self.channels:
            last = self.out_channels - 1
            _expect("channels", _is_permutation(region, last + 1), "other values", f"each of 0..{last} once")
        if self.rows.numel():
            low, high = int(self.rows.min()), int(self.rows.max())
            _expect("rows", low >= 0 and high < self.v.shape[0], f"{low}..{high}", f"0..{self.v.shape[0] - 1}")
        items = self.work_items()
        _expect("work", sorted(i.region for i in items) == list(range(self.regions)), items, "every region once")
        spans = sorted((i.position_start, i.position_count) for i in items)
        _expect("work", _tiles(spans, count), spans, f"spans that cover {count} positions once")
        for item in items:
            self._validate_region(item)
        return self

    def _validate_region(self, item: WorkItem) -> None:
        inside = item.row_start >= 0 and item.row_start + item.row_count <= self.rows.numel() and item.row_count >= 0
        _expect("work", inside, item, f"rows within 0..{self.rows.numel()}")
        inside = item.cluster_start >= 0 and item.cluster_start + item.cluster_count <= self.clusters.shape[0]
        _expect("work", inside and item.cluster_count >= 0, item, f"clusters within 0..{self.clusters.shape[0]}")
        clusters = self.cluster_items(item)
        spans = [(c.channel_start, c.channel_count) for c in clusters]
        _expect("clusters", _tiles(spans, self.out_channels), spans, f"{self.out_channels} channels covered once")
        for c in clusters:
            fits = c.row_start >= 0 and c.rank >= 0 and c.row_start + c.rank <= item.row_count
            _expect("clusters", fits, c, f"rows within the region's {item.row_count}")
            if c.u_start == DENSE:
                _expect("clusters", c.rank == c.channel_count, c, "rank = channels in a dense cluster")
            else:
                fits = c.u_start >= 0 and c.u_start + c.rank * c.channel_count <= self.u.numel()
                _expect("clusters", fits, c, f"a U block within {self.u.numel()} values")


def _in_order(cluster: ClusterFactors) -> ClusterFactors:
    """The cluster with its channels ascending, so that neighbours are stored together; a dense one keeps its rows."""
    if cluster.u is None:
        return cluster
    if cluster.u.shape[0] != len(cluster.channels):
        raise ValueError(f"U of a cluster: got {tuple(cluster.u.shape)}, expected ({len(cluster.channels)}, rank)")
    order = cluster.channels.argsort()
    return cluster._replace(channels=cluster.channels[order], u=cluster.u[order])


def _expect(name: str, ok: bool, got: object, expected: object) -> None:
    if not ok:
        raise ValueError(f"plan.{name}: got {got}, expected {expected}")


def _is_permutation(index: Tensor, count: int) -> bool:
    expected = torch.arange(count, dtype=index.dtype, device=index.device)
    return index.shape == (count,) and bool(torch.equal(index.sort().values, expected))


def _tiles(spans: Sequence[tuple[int, int]], count: int) -> bool:
    """Whether (start, length) spans, in order, cover 0..count without gap or overlap."""
    end = 0
    for start, length in spans:
        if start != end or length < 0:
            return False
        end += length
    return end == count
