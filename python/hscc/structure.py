"""One layer, from statistics to what it may become: its possible structures, their gains and their costs.

Errors are measured in the layer's metric: channels by the sensitivity of the network's output (``Metric``), positions
by the weight of their cell. Without sensitivity both are plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from hscc_kernels import PackedPlan

from . import clusters, factors, ranks, regions
from .config import Config
from .factors import Metric, Spectrum
from .latency import Machine
from .layer import dense_bias, weight_rows
from .ranks import Choice, Cost, Faster, Group, Own, Shared
from .regions import RegionMap
from .squeeze import Squeeze
from .stats import Inputs, Moments, Profile, RegionMoments, SplitMoments, pooled
from .work import Work

CLUSTERS_PAY = 0.25  # share of U in a rank's FLOPs below which clusters, which split only U, cannot win


@dataclass(frozen=True)
class LayerStats:
    """All that calibration says of a layer: gram (O, O) sensitivity, weights (cells,) of a position of each cell.

    Where the machine's speed counts, it is ``machine``, and ``dense_seconds`` what the dense layer takes on it.
    """

    name: str
    conv: nn.Conv2d
    profile: Profile
    cells: RegionMap
    moments: SplitMoments
    gram: Tensor
    weights: Tensor
    inputs: Inputs
    machine: Machine | None = None
    dense_seconds: float = 0.0

    @property
    def positions(self) -> int:
        return self.cells.labels.numel()

    @property
    def dense(self) -> Cost:
        flops = 2 * self.profile.calls * self.positions * self.conv.weight.numel()
        numbers = sum(p.numel() for p in self.conv.parameters())
        return Cost(flops, numbers, numbers * self.conv.weight.element_size(), self.dense_seconds)

    def cost(self, work: Work) -> Cost:
        """Of a part of the factored layer that does this for one image in one call."""
        return Cost(
            2 * self.profile.calls * (work.first + work.second + work.pointwise_macs),
            work.numbers,
            work.numbers * self.conv.weight.element_size() + 4 * work.indices,
            self.profile.calls * self.machine.seconds(work) if self.machine else 0,
        )

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

    def conv(self, stats: LayerStats) -> nn.Conv2d:
        """The convolution that the rows replace."""
        return self.squeeze.conv if self.squeeze else stats.conv


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of a layer: its structure and the ranks that it gets."""

    stats: LayerStats
    structure: Structure
    choice: Choice

    @property
    def stays_dense(self) -> bool:
        return self.choice.stays

    def cost(self, plan: PackedPlan) -> Cost:
        """Of the factors as they are packed; no row is kept that no region uses."""
        cost, squeeze = self.stats.cost(Work.of(plan)), self.structure.squeeze
        return cost.plus(self.stats.cost(squeeze.work)) if squeeze else cost

    @property
    def region_ranks(self) -> tuple[tuple[int | None, ...], ...]:
        """Ranks by region, then cluster; None is a dense cluster."""
        flat = iter(None if rank == ranks.DENSE else rank for rank in self.choice.ranks)
        return tuple(tuple(next(flat) for _ in split) for split in self.structure.clusters)

    @property
    def error(self) -> float:
        """Share of the output energy that is predicted to be missed."""
        return min(max(1 - self.choice.gain, 0.0), 1.0)


def structures(stats: LayerStats, config: Config) -> list[Structure]:
    """The structures that a layer may have, without squeeze."""
    everything, _ = stats.everything
    fixed = not config.search or config.factorization == "weight" or config.budget.energy is not None
    second_stage = stats.conv.out_channels / (stats.conv.weight[0].numel() + stats.conv.out_channels)
    most = config.clusters if second_stage >= CLUSTERS_PAY else 1
    counts = [2**i for i in range(6) if 2**i < stats.cells.count] + [stats.cells.count]
    found = []
    for count in counts[-1:] if fixed else counts:
        merged, members = regions.merge(stats.cells, stats.profile, count)
        for number in [config.clusters] if fixed else range(1, most + 1):
            split = ((everything,),) * merged.count
            if number > 1:
                parts = union(cell_moments(stats.moments.total(), stats), members)
                split = tuple(clusters.split(part.covariance, number, config.seed) for part in parts)
            found.append(Structure(merged, members, split, False))
        if config.sharing and not fixed and merged.count > 1:
            found.append(Structure(merged, members, ((everything,),) * merged.count, True))
    return found


def options(
    stats: LayerStats, several: Sequence[Structure], config: Config, squeezed: SplitMoments | None = None
) -> list[tuple[Structure, Own | Shared | Faster]]:
    """What structures gain and cost at every rank; ``squeezed`` are the moments behind the squeeze that all have."""
    split = config.budget.energy is None and min(half.count.min().item() for half in stats.moments.halves) > 0

    def halves(moments: SplitMoments) -> tuple[Moments, Moments]:
        return moments.halves if split else (moments.total(),) * 2

    plain = [cell_moments(m, stats) for m in halves(stats.moments)]
    behind = [cell_moments(m, stats) for m in halves(squeezed)] if squeezed else plain
    total, found = pooled(plain[0]), []
    for structure in several:
        base = _base(stats, structure, *(union(cells, structure.members) for cells in plain), total)
        fitted, tested = (union(cells, structure.members) for cells in behind)
        price = _shared if structure.shared else _own
        option = price(stats, structure, fitted, tested, *base, config)
        found.append((structure, Faster(option, stats.dense) if stats.machine else option))
    return found


def spectrum(
    stats: LayerStats,
    structure: Structure,
    part: RegionMoments,
    channels: Tensor,
    config: Config,
    ridge: float | None,
    dense: Tensor | None = None,
) -> Spectrum:
    """All directions of a cluster; ``ridge`` None: computable and wanted outputs are the same.

    ``dense``: as for :func:`factors.from_regression`.
    """
    if config.factorization == "weight":
        conv = structure.conv(stats)
        return factors.from_weight(weight_rows(conv).double(), dense_bias(conv).double(), channels)
    metric = stats.metric(channels)
    if ridge is None:
        return factors.from_activations(part, channels, metric)
    return factors.from_regression(part, channels, metric, ridge, dense)


def cell_moments(moments: Moments, stats: LayerStats) -> list[RegionMoments]:
    """Moments of each cell, each position counted by its weight."""
    parts = [moments.region(cell) for cell in range(stats.cells.count)]
    return [p._replace(count=p.count * weight) for p, weight in zip(parts, stats.weights.tolist(), strict=True)]


def union(cells: Sequence[RegionMoments], members: tuple[tuple[int, ...], ...]) -> list[RegionMoments]:
    """Moments of unions of cells."""
    return [cells[group[0]] if len(group) == 1 else pooled([cells[c] for c in group]) for group in members]


def sizes(stats: LayerStats, structure: Structure) -> list[tuple[int, float]]:
    """(positions, weight of all positions) of each region."""
    cells_of = stats.cells.sizes()
    return [
        (sum(cells_of[c] for c in cells), sum(cells_of[c] * stats.weights[c].item() for c in cells))
        for cells in structure.members
    ]


def _energy(fitted: RegionMoments, tested: RegionMoments, channels: Tensor, metric: Metric) -> float:
    """Per unit of weight, the energy of tested data about the fitted mean."""
    shift = (tested.mean - fitted.mean)[channels]
    covariance = tested.covariance[channels][:, channels]
    return ((metric.root @ metric.root) * (covariance + torch.outer(shift, shift))).sum().item()


def _base(stats, structure, fitted, tested, total: RegionMoments) -> tuple[float, float]:
    """(energy about one mean for all positions, the share of it that region means alone explain)."""
    shares = [w for _, w in sizes(stats, structure)]
    energy = sum(w * _energy(total, part, *stats.everything) for w, part in zip(shares, tested, strict=True))
    left = sum(w * _energy(f, t, *stats.everything) for w, f, t in zip(shares, fitted, tested, strict=True))
    energy = max(energy, 1e-30)
    return energy, (energy - left) / energy if left > 0 else 1.0


def _own(stats, structure, fitted, tested, energy, base, config: Config) -> Own:
    patch, weights = structure.conv(stats).weight[0].numel(), config.factorization == "weight"
    if weights:
        energy, base = stats.positions * weight_rows(stats.conv).double().square().sum().item(), 0.0
    groups = []
    for (size, share), old, new, split in zip(sizes(stats, structure), fitted, tested, structure.clusters, strict=True):
        for channels in split:
            found = spectrum(stats, structure, old, channels, config, config.ridge if structure.squeeze else None)
            gains, rest, scale = found.gains, 0.0, (size if weights else share) / energy
            if not weights:
                metric = stats.metric(channels)
                gains = factors.held_out_gains(found, metric, new, channels)
                if not structure.squeeze:  # a dense cluster is exact
                    rest = max(_energy(old, new, channels, metric) - gains.sum().item(), 0.0)
            count = len(channels)
            row = Work(first=size * patch, values=size, numbers=patch, indices=1)
            groups.append(
                Group(
                    gains.cpu().numpy() * scale,
                    rest * scale,
                    stats.cost(row._replace(second=size * count, numbers=patch + count)),
                    stats.cost(row).times(count),
                )
            )
    return Own(groups, base, _fixed(stats, structure), config.rank_multiple, None if structure.squeeze else stats.dense)


def _shared(stats, structure, fitted, tested, energy, base, config: Config) -> Shared:
    patch, outputs = structure.conv(stats).weight[0].numel(), stats.conv.out_channels
    everything, metric = stats.everything
    shares = sizes(stats, structure)
    pooled_part, ridge = within(fitted, shares), config.ridge if structure.squeeze else None
    found = spectrum(stats, structure, pooled_part, everything, config, ridge)
    gains = [
        factors.held_out_gains(
            found._replace(mean=old.mean, target_mean=old.target_mean), metric, new, everything, falling=False
        )
        for old, new in zip(fitted, tested, strict=True)
    ]
    weights = torch.tensor([[w] for _, w in shares], dtype=torch.float64)
    return Shared(
        (torch.stack(gains).cpu() * weights / energy).numpy().astype(np.float64),
        [
            stats.cost(Work(first=size * patch, values=size, second=size * outputs, numbers=outputs, indices=1))
            for size, _ in shares
        ],
        stats.cost(Work(numbers=patch)),
        base,
        _fixed(stats, structure),
    )


def _fixed(stats: LayerStats, structure: Structure) -> Cost:
    """What a structure costs at rank 0."""
    split = [(size, len(parts)) for (size, _), parts in zip(sizes(stats, structure), structure.clusters, strict=True)]
    cost = stats.cost(Work.without_ranks(structure.conv(stats), split))
    return cost.plus(stats.cost(structure.squeeze.work)) if structure.squeeze else cost


def within(parts: list[RegionMoments], shares: list[tuple[int, float]]) -> RegionMoments:
    """Moments about each region's own mean, pooled by the weights of :func:`sizes`: what shared rows must explain."""
    total = sum(w for _, w in shares)
    share = [w / max(total, 1e-30) for _, w in shares]

    def mean(name: str) -> Tensor:
        return sum(w * getattr(part, name) for w, part in zip(share, parts, strict=True))

    return RegionMoments(total, mean("mean"), mean("covariance"), mean("target_mean"), mean("cross"))
