"""One layer, from statistics to factors: its possible structures, their gains and costs, and the chosen one fitted.

Errors are measured in the layer's metric: channels by the sensitivity of the network's output (``Metric``), positions
by the weight of their cell. Without sensitivity both are plain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from hscc_kernels import ClusterFactors, RegionFactors

from . import clusters, factors, ranks, regions
from .config import Config
from .factors import Metric, Spectrum
from .layer import HSCConv2d, dense_bias, weight_rows
from .squeeze import Squeeze
from .ranks import Choice, Cost, Group, Own, Shared
from .regions import RegionMap
from .stats import Moments, Profile, RegionMoments, SplitMoments, pooled

CLUSTERS_PAY = 0.25  # share of U in a rank's FLOPs below which clusters, which split only U, cannot win


@dataclass(frozen=True)
class LayerStats:
    """All that calibration says of a layer: gram (O, O) sensitivity, weights (cells,) of a position of each cell."""

    name: str
    conv: nn.Conv2d
    profile: Profile
    cells: RegionMap
    moments: SplitMoments
    gram: Tensor
    weights: Tensor
    squeezes: tuple[Squeeze, ...] = ()

    @property
    def positions(self) -> int:
        return self.cells.labels.numel()

    @property
    def dense(self) -> Cost:
        flops = 2 * self.profile.calls * self.positions * self.conv.weight.numel()
        return Cost(flops, sum(p.numel() for p in self.conv.parameters()))

    @cached_property
    def everything(self) -> tuple[Tensor, Metric]:
        """All channels (O,) and their metric."""
        channels = torch.arange(self.conv.out_channels, device=self.gram.device)
        return channels, Metric.of(self.gram, channels)

    def metric(self, channels: Tensor) -> Metric:
        everything, metric = self.everything
        return metric if len(channels) == len(everything) else Metric.of(self.gram, channels)


@dataclass(frozen=True)
class Structure:
    """members: cells of each region; clusters: channels (n,) of each cluster of each region."""

    regions: RegionMap
    members: tuple[tuple[int, ...], ...]
    clusters: tuple[tuple[Tensor, ...], ...]
    shared: bool
    squeeze: Squeeze | None = None


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of a layer: its structure and the ranks that it gets."""

    stats: LayerStats
    structure: Structure
    choice: Choice

    @property
    def stays_dense(self) -> bool:
        return not self.structure.shared and self.structure.squeeze is None and all(rank == ranks.DENSE for rank in self.choice.ranks)

    @property
    def region_ranks(self) -> tuple[tuple[int | None, ...], ...]:
        """Ranks by region, then cluster; None is a dense cluster."""
        flat = iter(None if rank == ranks.DENSE else rank for rank in self.choice.ranks)
        return tuple(tuple(next(flat) for _ in split) for split in self.structure.clusters)

    @property
    def error(self) -> float:
        """Share of the output energy that is predicted to be missed."""
        return min(max(1 - self.choice.gain, 0.0), 1.0)


def options(stats: LayerStats, config: Config) -> list[tuple[Structure, Own | Shared]]:
    """The structures that a layer may have, with what they gain and cost at every rank."""
    split = config.budget.energy is None and min(half.count.min().item() for half in stats.moments.halves) > 0
    seen, unseen = stats.moments.halves if split else (stats.moments.total(),) * 2
    total = _region_moments(seen, stats, (tuple(range(stats.cells.count)),))[0]
    found = []
    for structure in _structures(stats, config):
        fitted, tested = (_region_moments(m, stats, structure.members) for m in (seen, unseen))
        base = _base(stats, structure, fitted, tested, total)
        for squeeze in (None, *stats.squeezes):
            if squeeze:
                structure = replace(structure, squeeze=squeeze)
                seen2, unseen2 = squeeze.moments.halves if split else (squeeze.moments.total(),) * 2
                fitted, tested = (_region_moments(m, stats, structure.members) for m in (seen2, unseen2))
            if structure.shared:
                found.append((structure, _shared(stats, structure, fitted, tested, base, config)))
            else:
                found.append((structure, _own(stats, structure, fitted, tested, base, config)))
    return found


def fit(layer: LayerPlan, moments: Moments, config: Config, ridge: float | None) -> HSCConv2d:
    """The layer's factors from moments of its cells; ``ridge`` None: computable and wanted outputs are the same."""
    stats, structure = layer.stats, layer.structure
    conv = structure.squeeze.core if structure.squeeze else stats.conv
    weight, bias = weight_rows(conv).double(), dense_bias(conv).double()
    parts = _region_moments(moments, stats, structure.members)
    if structure.shared:
        pool, found, biases = _fit_shared(layer, parts, bias, ridge or 0.0)
        rows = pool @ weight
    else:
        rows, found, biases = _fit_own(layer, parts, weight, bias, config, ridge)
    projection = structure.squeeze and structure.squeeze.projection
    return HSCConv2d.from_conv(conv, found, rows, torch.stack(biases), structure.regions.labels, projection)


def _structures(stats: LayerStats, config: Config) -> Iterator[Structure]:
    everything, _ = stats.everything
    fixed = not config.search or config.factorization == "weight" or config.budget.energy is not None
    second_stage = stats.conv.out_channels / (stats.conv.weight[0].numel() + stats.conv.out_channels)
    most = config.clusters if second_stage >= CLUSTERS_PAY else 1
    counts = [2**i for i in range(6) if 2**i < stats.cells.count] + [stats.cells.count]
    for count in counts[-1:] if fixed else counts:
        merged, members = regions.merge(stats.cells, stats.profile, count)
        for number in [config.clusters] if fixed else range(1, most + 1):
            if number == 1:
                yield Structure(merged, members, ((everything,),) * merged.count, False)
                continue
            parts = _region_moments(stats.moments.total(), stats, members)
            split = tuple(clusters.split(part.covariance, number, config.seed) for part in parts)
            yield Structure(merged, members, split, False)
        if config.sharing and not fixed and merged.count > 1:
            yield Structure(merged, members, ((everything,),) * merged.count, True)


def _region_moments(moments: Moments, stats: LayerStats, members: tuple[tuple[int, ...], ...]) -> list[RegionMoments]:
    """Moments of unions of cells, each position counted by its weight."""

    def weighted(cell: int) -> RegionMoments:
        part = moments.region(cell)
        return part._replace(count=part.count * stats.weights[cell].item())

    return [pooled([weighted(cell) for cell in cells]) for cells in members]


def _sizes(stats: LayerStats, structure: Structure) -> list[tuple[int, float]]:
    """(positions, weight of all positions) of each region."""
    sizes = stats.cells.sizes()
    return [
        (sum(sizes[c] for c in cells), sum(sizes[c] * stats.weights[c].item() for c in cells))
        for cells in structure.members
    ]


def _energy(fitted: RegionMoments, tested: RegionMoments, channels: Tensor, metric: Metric) -> float:
    """Per unit of weight, the energy of tested data about the fitted mean."""
    shift = (tested.mean - fitted.mean)[channels]
    covariance = tested.covariance[channels][:, channels]
    return ((metric.root @ metric.root) * (covariance + torch.outer(shift, shift))).sum().item()


def _base(stats, structure, fitted, tested, total: RegionMoments) -> tuple[float, float]:
    """(energy about one mean for all positions, the share of it that region means alone explain)."""
    sizes = _sizes(stats, structure)
    energy = sum(w * _energy(total, part, *stats.everything) for (_, w), part in zip(sizes, tested, strict=True))
    left = sum(w * _energy(f, t, *stats.everything) for (_, w), f, t in zip(sizes, fitted, tested, strict=True))
    energy = max(energy, 1e-30)
    return energy, (energy - left) / energy if left > 0 else 1.0


def _patch(stats: LayerStats, structure: Structure) -> int:
    conv = structure.squeeze.core if structure.squeeze else stats.conv
    return conv.weight[0].numel()


def _squeeze_cost(structure: Structure) -> Cost:
    return structure.squeeze.cost if structure.squeeze else Cost(0, 0)


def _own(stats, structure, fitted, tested, base, config: Config) -> Own:
    energy, base = base
    patch = _patch(stats, structure)
    if config.factorization == "weight":
        weight, bias = weight_rows(stats.conv).double(), dense_bias(stats.conv).double()
        energy, base = stats.positions * weight.square().sum().item(), 0.0
    groups = []
    for (size, share), old, new, split in zip(
        _sizes(stats, structure), fitted, tested, structure.clusters, strict=True
    ):
        for channels in split:
            if config.factorization == "weight":
                gains, all_gains = factors.from_weight(weight, bias, channels).gains, None
                share = size
            else:
                metric = stats.metric(channels)
                if structure.squeeze:
                    spectrum, all_gains = factors.from_regression(old, channels, metric, config.ridge), None
                else:
                    spectrum = factors.from_activations(old, channels, metric)
                    all_gains = _energy(old, new, channels, metric)
                gains = factors.held_out_gains(spectrum, metric, new, channels)
            rest = 0.0 if all_gains is None else max(all_gains - gains.sum().item(), 0.0)
            flops, count = 2 * stats.profile.calls * size, len(channels)
            groups.append(
                Group(
                    gains.cpu().numpy() * share / energy,
                    rest * share / energy,
                    Cost(flops * (patch + count), patch + count),
                    Cost(flops * patch * count, patch * count),
                )
            )
    fixed = Cost(0, len(structure.members) * stats.conv.out_channels).plus(_squeeze_cost(structure))
    return Own(groups, base, fixed, config.rank_multiple, None if structure.squeeze else stats.dense)


def _shared(stats, structure, fitted, tested, base, config: Config) -> Shared:
    energy, base = base
    patch = _patch(stats, structure)
    everything, metric = stats.everything
    sizes = _sizes(stats, structure)
    within = _within(fitted, sizes)
    if structure.squeeze:
        spectrum = factors.from_regression(within, everything, metric, config.ridge)
    else:
        spectrum = factors.from_activations(within, everything, metric)
    gains = [
        factors.held_out_gains(
            spectrum._replace(mean=old.mean, target_mean=old.target_mean), metric, new, everything, falling=False
        )
        for old, new in zip(fitted, tested, strict=True)
    ]
    weights = torch.tensor([[w] for _, w in sizes], dtype=torch.float64)
    outputs = stats.conv.out_channels
    flops = [2 * stats.profile.calls * size for size, _ in sizes]
    return Shared(
        (torch.stack(gains).cpu() * weights / energy).numpy().astype(np.float64),
        [Cost(f * (patch + outputs), outputs) for f in flops],
        Cost(0, patch),
        base,
        Cost(0, len(sizes) * outputs).plus(_squeeze_cost(structure)),
    )


def _within(parts: list[RegionMoments], sizes: list[tuple[int, float]]) -> RegionMoments:
    """Moments about each region's own mean, pooled by weight: what shared rows have to explain."""
    total = sum(w for _, w in sizes)
    share = [w / max(total, 1e-30) for _, w in sizes]

    def mean(name: str) -> Tensor:
        return sum(w * getattr(part, name) for w, part in zip(share, parts, strict=True))

    return RegionMoments(total, mean("mean"), mean("covariance"), mean("target_mean"), mean("cross"))


def _spectrum(
    stats: LayerStats, part: RegionMoments, channels: Tensor, weight, bias, config: Config, ridge
) -> Spectrum:
    if config.factorization == "weight":
        return factors.from_weight(weight, bias, channels)
    metric = stats.metric(channels)
    if ridge is None:
        return factors.from_activations(part, channels, metric)
    return factors.from_regression(part, channels, metric, ridge)


def _fit_own(layer: LayerPlan, parts, weight, bias, config: Config, ridge: float | None):
    pool, found, biases, start = [], [], [], 0
    for part, split, chosen in zip(parts, layer.structure.clusters, layer.region_ranks, strict=True):
        region_bias, region_clusters, row = torch.empty_like(bias), [], 0
        for channels, rank in zip(split, chosen, strict=True):
            if rank is None and layer.structure.squeeze:
                spectrum = _spectrum(layer.stats, part, channels, weight, bias, config, ridge)
                rows, u = spectrum.u @ (spectrum.a @ weight), None
                region_bias[channels] = spectrum.bias(bias, len(channels))
            elif rank is None:
                rows, u, region_bias[channels] = weight[channels], None, bias[channels]
            else:
                spectrum = _spectrum(layer.stats, part, channels, weight, bias, config, ridge)
                rows, u = spectrum.a[:rank] @ weight, spectrum.u[:, :rank]
                region_bias[channels] = spectrum.bias(bias, rank)
            region_clusters.append(ClusterFactors(channels, row, u))
            pool.append(rows)
            row += len(rows)
        found.append(RegionFactors(torch.arange(start, start + row), tuple(region_clusters)))
        biases.append(region_bias)
        start += row
    return torch.cat(pool), found, biases


def _fit_shared(layer: LayerPlan, parts, bias: Tensor, ridge: float):
    everything, metric = layer.stats.everything
    within = _within(parts, _sizes(layer.stats, layer.structure))
    rows = factors.shared_rows(within, metric, layer.choice.pool, ridge)
    picked = [
        factors.pick_rows(part, rows, rank, ridge, metric) for part, rank in zip(parts, layer.choice.ranks, strict=True)
    ]
    used = torch.cat([index for index, _ in picked]).unique()
    found, biases = [], []
    for part, (index, u) in zip(parts, picked, strict=True):
        found.append(RegionFactors(torch.searchsorted(used, index), (ClusterFactors(everything, 0, u),)))
        biases.append(part.target_mean + u @ (rows[index] @ (bias - part.mean)))
    return rows[used], found, biases
