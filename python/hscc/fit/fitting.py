"""The chosen structure of one layer as factors. Derivations: ``docs/math.md``."""

from __future__ import annotations

import torch

from hscc_kernels import ClusterFactors, RegionFactors

from ..config import Config
from ..maths import factors
from ..maths.factors import Basis, Ridge
from ..maths.moments import Moments
from ..nn.conv2d import HSCConv2d, dense_bias, weight_rows
from ..nn.projection import SqueezedConv2d
from ..search.options import spectrum
from ..search.plan import LayerPlan
from ..search.structure import sizes, union, within


def fit(layer: LayerPlan, moments: Moments, config: Config, basis: Basis | None = None) -> HSCConv2d | SqueezedConv2d:
    """The layer's factors from moments of its cells, whose computable values are those of ``basis``.

    ``basis`` None: they are the dense layer's outputs, and are the wanted ones.
    """
    structure = layer.structure
    conv, squeeze = structure.conv(layer.stats), structure.squeeze
    regressed = basis is not None
    basis = basis or Basis.outputs(weight_rows(conv).double(), dense_bias(conv).double())
    parts = union(layer.stats.cell_moments(moments), structure.members)
    if structure.shared:
        pool, found, biases = _shared(layer, parts, basis, config.ridge if regressed else 0.0)
    else:
        pool, found, biases = _own(layer, parts, basis, config, regressed)
    made = HSCConv2d.from_conv(conv, found, pool @ basis.weight, torch.stack(biases), structure.regions.labels)
    return SqueezedConv2d.of(squeeze.layer(), made) if squeeze else made


def _own(layer: LayerPlan, parts, basis: Basis, config: Config, regressed: bool):
    ridge = Ridge(config.ridge, basis.dense) if regressed else None
    structure, pool, found, biases, start = layer.structure, [], [], [], 0
    for part, split, chosen in zip(parts, structure.clusters, layer.region_ranks, strict=True):
        region_bias, region_clusters, row = part.target_mean.new_empty(len(part.target_mean)), [], 0
        for channels, rank in zip(split, chosen, strict=True):
            if rank is None and not regressed:
                rows, u, region_bias[channels] = basis.dense[channels], None, basis.offset[channels]
            else:
                full = spectrum(layer.stats, structure, part, channels, config, ridge)
                rows, u = full.a[:rank], full.u[:, :rank]
                region_bias[channels] = full.bias(basis.offset, len(channels) if rank is None else rank)
                if rank is None:
                    rows, u = u @ rows, None
            region_clusters.append(ClusterFactors(channels, row, u))
            pool.append(rows)
            row += len(rows)
        found.append(RegionFactors(torch.arange(start, start + row), tuple(region_clusters)))
        biases.append(region_bias)
        start += row
    return torch.cat(pool), found, biases


def _shared(layer: LayerPlan, parts, basis: Basis, ridge: float):
    everything, metric = layer.stats.everything
    pooled = within(parts, sizes(layer.stats, layer.structure))
    rows = factors.shared_rows(pooled, metric, layer.choice.pool, Ridge(ridge, basis.dense))
    picked = [
        factors.pick_rows(part, rows, rank, ridge, metric) for part, rank in zip(parts, layer.choice.ranks, strict=True)
    ]
    used = torch.cat([index for index, _ in picked]).unique()
    found, biases = [], []
    for part, (index, u) in zip(parts, picked, strict=True):
        found.append(RegionFactors(torch.searchsorted(used, index), (ClusterFactors(everything, 0, u),)))
        biases.append(part.target_mean + u @ (rows[index] @ (basis.offset - part.mean)))
    return rows[used], found, biases
