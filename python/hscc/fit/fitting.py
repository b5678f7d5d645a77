"""The chosen structure of one layer as factors. Derivations: ``docs/math.md``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hscc_kernels import ClusterFactors, RegionFactors

from ..config import Config
from ..maths import factors
from ..maths.factors import Basis, Metric, Ridge
from ..maths.moments import Moments, RegionMoments
from ..nn.conv2d import HSCConv2d, dense_bias, weight_rows
from ..nn.projection import SqueezedConv2d
from ..search.plan import LayerPlan
from ..search.structure import sizes, union, within


def fit(
    layer: LayerPlan, moments: Moments | None, config: Config, basis: Basis | None = None
) -> HSCConv2d | SqueezedConv2d:
    """The layer's factors from moments of its cells: computable values are those of ``basis``, wanted ones the outputs
    in the layer's frame.

    Both None: the computable values are the wanted ones, the dense layer's outputs in calibration.
    """
    stats, structure = layer.stats, layer.structure
    conv, squeeze, regressed = structure.conv(stats), structure.squeeze, basis is not None
    dense = Basis.outputs(weight_rows(conv).double(), dense_bias(conv).double())
    if config.factorization == "weight":
        basis = dense
    elif not regressed:
        basis = Basis(stats.frame.into @ dense.weight, stats.frame.into @ dense.offset, stats.frame.back)
    parts = union(stats.cell_moments(moments if regressed else stats.moments.total()), structure.members)
    means = [*map(stats.mean_of, structure.members)]
    fitting = Fitting(layer, config, dense, basis, regressed)
    pool, found, biases = (fitting.shared if structure.shared else fitting.own)(parts, means)
    made = HSCConv2d.from_conv(conv, found, pool, torch.stack(biases), structure.regions.labels)
    return SqueezedConv2d.of(squeeze.layer(), made) if squeeze else made


@dataclass(frozen=True)
class Fitting:
    """Of one layer, whose moments are of values of ``basis`` and of outputs in its frame; ``dense`` are its outputs."""

    layer: LayerPlan
    config: Config
    dense: Basis
    basis: Basis
    regressed: bool

    @cached_property
    def ridge(self) -> Ridge:
        """Towards the dense layer's outputs, in the frame."""
        return Ridge(self.config.ridge if self.regressed else 0.0, self.layer.stats.frame.into @ self.basis.dense)

    def own(self, parts: list[RegionMoments], means: list[Tensor]):
        """(rows (q, D), factors of each region, biases) where each cluster has rows of its own."""
        pool, found, biases, start = [], [], [], 0
        everything = zip(parts, means, self.layer.structure.clusters, self.layer.region_ranks, strict=True)
        for part, mean, split, chosen in everything:
            target, bias = self.wanted_mean(part, mean), mean.clone()
            region_clusters, row = [], 0
            for channels, rank in zip(split, chosen, strict=True):
                rows, u, bias[channels] = self.cluster(part, target, channels, rank)
                region_clusters.append(ClusterFactors(channels, row, u))
                pool.append(rows)
                row += len(rows)
            found.append(RegionFactors(torch.arange(start, start + row), tuple(region_clusters)))
            biases.append(bias)
            start += row
        return torch.cat(pool), found, biases

    def cluster(self, part: RegionMoments, target: Tensor, channels: Tensor, rank: int | None):
        """(rows (r, D), U (n, r) or None where they are the outputs, bias (n,)) of a cluster."""
        if rank is None and not self.regressed:
            return self.dense.weight[channels], None, self.dense.offset[channels]
        if self.config.factorization == "weight":
            full = factors.from_weight(self.dense.weight, self.dense.offset, channels)
            return full.a[:rank] @ self.dense.weight, full.u[:, :rank], self.dense.offset[channels]
        u, a = self.directions(part, channels)
        about = self.basis.offset - part.mean
        if rank is None:
            rows = u @ a
            if len(channels) == len(self.dense.weight):  # what the dense layer gives outside of the frame
                rows = rows + self.basis.dense - self.layer.stats.frame.back @ self.ridge.dense
            return rows @ self.basis.weight, None, target[channels] + rows @ about
        u, a = u[:, :rank], a[:rank]
        return a @ self.basis.weight, u, target[channels] + u @ (a @ about)

    def directions(self, part: RegionMoments, channels: Tensor) -> tuple[Tensor, Tensor]:
        """U (n, m) and A (m, X) of a cluster, strongest first."""
        back, ridge = self.layer.stats.frame.back, self.ridge
        if len(channels) < len(back):  # its channels in their own metric, all directions
            metric = self.layer.stats.metric_of(channels)
            own = metric.root @ back[channels]
            part = part._replace(target_mean=own @ part.target_mean, cross=own @ part.cross)
            back, ridge = metric.inverse, ridge._replace(dense=metric.root @ self.basis.dense[channels])
        if self.regressed:
            every, plain = torch.arange(back.shape[1]), Metric.plain(back.shape[1], back)
            full = factors.from_regression(part, every, plain, ridge)
            return back @ full.u, full.a
        _, u = factors.eigen(ridge.dense @ part.covariance @ ridge.dense.T)
        return back @ u, u.T @ ridge.dense

    def shared(self, parts: list[RegionMoments], means: list[Tensor]):
        """As :meth:`own`, where regions pick from one pool of rows."""
        stats, choice = self.layer.stats, self.layer.choice
        one = Metric.plain(len(stats.frame.into), stats.frame.into)
        pooled = within(parts, sizes(stats, self.layer.structure))
        rows = factors.shared_rows(pooled, one, choice.pool, self.ridge)
        picked = [
            factors.pick_rows(part, rows, rank, self.ridge.strength, one)
            for part, rank in zip(parts, choice.ranks, strict=True)
        ]
        used = torch.cat([index for index, _ in picked]).unique()
        found, biases = [], []
        for part, mean, (index, u) in zip(parts, means, picked, strict=True):
            u = stats.frame.back @ u
            found.append(RegionFactors(torch.searchsorted(used, index), (ClusterFactors(stats.channels, 0, u),)))
            biases.append(self.wanted_mean(part, mean) + u @ (rows[index] @ (self.basis.offset - part.mean)))
        return rows[used] @ self.basis.weight, found, biases

    def wanted_mean(self, part: RegionMoments, mean: Tensor) -> Tensor:
        """(O,) of the wanted outputs in a region, where the dense layer's is ``mean``."""
        frame = self.layer.stats.frame
        return mean + frame.back @ (part.target_mean - frame.into @ mean)
