"""One layer in 8 bits: the scale of its inputs, rows rounded, and a second stage that makes up for both."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from hscc_kernels.layout import DENSE
from hscc_kernels.reference_int8 import quantise

from ..nn.conv2d import HSCConv2d
from ..nn.int8 import Int8Conv2d

KEPT = 2**29  # bytes of a layer's inputs and outputs that are looked at
VALUES = 2**20  # inputs that a scale is chosen by
CLIPS = tuple(2 ** (-step / 4) for step in range(13))  # shares of a range's end that a scale may reach
RIDGE = 1e-4  # towards the float second stage, relative to the mean variance of what it reads


@dataclass
class Samples:
    """Inputs (N, C, H, W) of a layer behind the quantised ones, and what the float layer gives (N, O, Ho, Wo)."""

    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    bytes: int = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        if self.bytes <= KEPT:
            self.kept.append((x, y))
            self.bytes += x.nbytes + y.nbytes


def fit(layer: HSCConv2d, samples: Samples, bits: int) -> tuple[Int8Conv2d, float, float]:
    """(the layer in int8, the share of its outputs' energy about their mean that it misses on the samples, and the one
    that the float layer misses on these inputs, for what the layers before have lost).

    Derivation: ``docs/math.md``.
    """
    scale, zero_point = range_of(torch.cat([x.flatten() for x, _ in samples.kept]))
    made = Int8Conv2d.of(layer, scale, zero_point, bits)
    moments = [_Region.empty(layer, item) for item in layer.plan.work_items()]
    before = 0.0
    for x, y in samples.kept:
        before += float((layer.forward(x) - y).double().square().sum())
        z = first_stage(made, x)
        for region in moments:
            region.add(z, y if layer.wide is None else layer.wide.spread(y, z.shape[-1]))
    for region in moments:
        region.fit_(made)
    energy = max(sum(float(region.energy()) for region in moments), 1e-30)
    return made, sum(float(region.missed(made)) for region in moments) / energy, before / energy


def range_of(values: Tensor) -> tuple[float, int]:
    """The scale and zero point of least squared error: of ranges about 0 that are cut off more or less, first above,
    then below."""
    values = values[:: max(1, len(values) // VALUES)].float()
    low, high = values.min().clamp_max(0).item(), values.max().clamp_min(0).item()
    if high - low < 1e-30:
        return 1.0, 0

    def error(ends: tuple[float, float]) -> float:
        scale, zero_point = _grid(*ends)
        rounded = (quantise(values, scale, zero_point).float() - zero_point).mul_(scale)
        return rounded.sub_(values).square_().sum().item()

    high = min(((low, clip * high) for clip in CLIPS), key=error)[1]
    return _grid(*min(((clip * low, high) for clip in CLIPS), key=error))


def _grid(low: float, high: float) -> tuple[float, int]:
    scale = float(torch.tensor(max(high - low, 1e-30) / 255, dtype=torch.float32))
    return scale, min(max(round(-low / scale), 0), 255)


def first_stage(layer: Int8Conv2d, x: Tensor) -> Tensor:
    """All rows of V everywhere, (N, C, H, W) -> (N, q, Ho, Wo): sums of integers, which float32 holds nearly."""
    whole = quantise(layer.read(x), layer.scale, layer.zero_point).float() - layer.zero_point
    kernel, stride, padding, dilation = layer.plan.geometry
    weight = layer.v.float().unflatten(1, (*kernel, -1)).permute(0, 3, 1, 2)
    return F.conv2d(whole, weight, None, stride, padding, dilation).mul_(layer.scale * layer.v_scale[:, None, None])


@dataclass
class _Region:
    """Moments at its positions of [z, 1], z its rows (s,) of the first stage, and of outputs y (O,) with them."""

    index: int
    place: Tensor
    rows: Tensor
    clusters: list
    gram: Tensor
    cross: Tensor
    square: Tensor

    @classmethod
    def empty(cls, layer: HSCConv2d, item) -> _Region:
        plan = layer.plan
        place = plan.positions[item.position_start : item.position_start + item.position_count].long()
        rows = plan.rows[item.row_start : item.row_start + item.row_count].long()
        zeros = plan.v.new_zeros
        size, outputs = len(rows) + 1, plan.out_channels
        gram, cross = zeros(size, size, dtype=torch.float64), zeros(outputs, size, dtype=torch.float64)
        square = zeros(outputs, dtype=torch.float64)
        return cls(item.region, place, rows, plan.cluster_items(item), gram, cross, square)

    def add(self, z: Tensor, y: Tensor) -> None:
        seen = z.flatten(2).index_select(2, self.place).index_select(1, self.rows).transpose(0, 1).flatten(1)
        seen = torch.cat([seen, torch.ones_like(seen[:1])]) if len(seen) else seen.new_ones(1, len(z) * len(self.place))
        wanted = y.flatten(2).index_select(2, self.place).transpose(0, 1).flatten(1)
        self.gram += (seen @ seen.T).double()
        self.cross += (wanted @ seen.T).double()
        self.square += wanted.double().square().sum(1)

    @property
    def mean(self) -> tuple[Tensor, Tensor]:
        """Of z and of y."""
        return self.gram[-1, :-1] / self.gram[-1, -1], self.cross[:, -1] / self.gram[-1, -1]

    def fit_(self, layer: Int8Conv2d) -> None:
        """Second stages by ridge regression towards the float ones; biases so that means are kept."""
        (mean, wanted), count = self.mean, self.gram[-1, -1]
        covariance = self.gram[:-1, :-1] / count - torch.outer(mean, mean)
        cross = self.cross[:, :-1] / count - torch.outer(wanted, mean)
        for cluster, channels, u in self._parts(layer):
            part = slice(cluster.row_start, cluster.row_start + cluster.rank)
            new = wanted[channels]
            if cluster.u_start == DENSE:
                new = new - mean[part]
            elif cluster.rank:
                ridge = covariance[part, part].clone()
                ridge.diagonal().add_(RIDGE * ridge.diagonal().mean().clamp_min(1e-30))
                old = u.double().T  # [channels, rank]
                step = cross[channels][:, part] - old @ covariance[part, part]
                solved = old + torch.linalg.solve(ridge, step.T).T
                u.copy_(solved.T)
                new = new - u.double().T @ mean[part]
            layer.bias.data[self.index, channels] = new.to(layer.bias)

    def energy(self) -> Tensor:
        """Of the outputs about their mean."""
        return (self.square - self.cross[:, -1].square() / self.gram[-1, -1]).sum()

    def missed(self, layer: Int8Conv2d) -> Tensor:
        """Squared errors of the outputs, summed."""
        total = self.square.new_zeros(())
        for cluster, channels, u in self._parts(layer):
            part = slice(cluster.row_start, cluster.row_start + cluster.rank)
            rows = torch.eye(cluster.rank).to(self.gram) if cluster.u_start == DENSE else u.double().T
            bias = layer.bias.data[self.index, channels, None].double()
            map_ = torch.cat([rows, bias], 1)  # [channels, rank + 1]
            index = torch.tensor([*range(part.start, part.stop), len(self.gram) - 1], device=map_.device)
            cross, gram = self.cross[channels][:, index], self.gram[index][:, index]
            total += self.square[channels].sum() - 2 * (map_ * cross).sum() + ((map_ @ gram) * map_).sum()
        return total.clamp_min(0)

    def _parts(self, layer: Int8Conv2d):
        """Of each cluster: itself, its channels, and U as a view (rank, channels)."""
        order = layer.channels[self.index].long()
        for cluster in self.clusters:
            channels = order[cluster.channel_start : cluster.channel_start + cluster.channel_count]
            size = cluster.rank * cluster.channel_count
            u = layer.u.data[cluster.u_start : cluster.u_start + size] if cluster.u_start != DENSE else layer.u.data[:0]
            yield cluster, channels, u.view(-1, max(cluster.channel_count, 1))
