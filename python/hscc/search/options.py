"""What structures gain and cost at every rank, on samples that the factors have not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..config import Config
from ..maths import factors
from ..maths.factors import Metric, Ridge, Spectrum
from ..maths.moments import Moments, RegionMoments, SplitMoments, pooled
from ..nn.conv2d import dense_bias, weight_rows
from ..observe.data import Calibration
from . import squeeze
from .cost import Cost
from .ranks import Faster, Group, Own, Shared
from .stats import LayerStats
from .structure import Structure, sizes, structures, union, within
from .work import Work

Option = tuple[Structure, Own | Shared | Faster]


def find(
    model: nn.Module, calibration: Calibration, stats: Mapping[str, LayerStats], config: Config
) -> dict[str, list[Option]]:
    """What each layer may become, with and without squeeze."""
    several = {name: structures(layer, config) for name, layer in stats.items()}
    listed = calibration.track(list(stats.items()), "structures")
    found = {name: options(layer, several[name], config) for name, layer in listed}
    if not (config.squeeze and config.search and config.factorization == "activation") or config.budget.energy:
        return found
    squeezes = {
        name: squeeze.candidates(layer.conv, layer.inputs, layer.everything[1].root) for name, layer in stats.items()
    }
    for group in squeeze.groups(squeezes, {name: layer.cells.count for name, layer in stats.items()}):
        chosen = {name: squeezes[name] for name in group}
        behind = {name: [stats[name].halves(paired=True) for _ in chosen[name]] for name in group}
        squeeze.moments(model, calibration, {name: stats[name].conv for name in group}, chosen, behind)
        for name in calibration.track(group, "squeezed structures"):
            for own, moments in zip(chosen[name], behind[name], strict=True):
                squeezed = [replace(plain, squeeze=own) for plain in several[name]]
                found[name] += options(stats[name], squeezed, config, moments)
    return found


def options(
    stats: LayerStats, several: Sequence[Structure], config: Config, squeezed: SplitMoments | None = None
) -> list[Option]:
    """What structures gain and cost at every rank; ``squeezed`` are the moments behind the squeeze that all have."""
    split = config.budget.energy is None and min(half.count.min().item() for half in stats.moments.halves) > 0

    def halves(moments: SplitMoments) -> tuple[Moments, Moments]:
        return moments.halves if split else (moments.total(),) * 2

    plain = [stats.cell_moments(m) for m in halves(stats.moments)]
    behind = [stats.cell_moments(m) for m in halves(squeezed)] if squeezed else plain
    total, found = pooled(plain[0]), []
    for structure in several:
        base = _base(stats, structure, *(union(cells, structure.members) for cells in plain), total)
        evidence = _Evidence(*(union(cells, structure.members) for cells in behind), *base)
        option = (_shared if structure.shared else _own)(stats, structure, evidence, config)
        found.append((structure, Faster(option, stats.dense) if stats.machine else option))
    return found


def spectrum(
    stats: LayerStats,
    structure: Structure,
    part: RegionMoments,
    channels: Tensor,
    config: Config,
    ridge: Ridge | None,
) -> Spectrum:
    """All directions of a cluster; ``ridge`` None: computable and wanted outputs are the same."""
    if config.factorization == "weight":
        conv = structure.conv(stats)
        return factors.from_weight(weight_rows(conv).double(), dense_bias(conv).double(), channels)
    metric = stats.metric(channels)
    if ridge is None:
        return factors.from_activations(part, channels, metric)
    return factors.from_regression(part, channels, metric, ridge)


class _Evidence(NamedTuple):
    """Moments of each region that factors are made from and tested on.

    ``energy`` is that of the outputs about one mean for all positions, ``base`` the share of it that region means
    alone explain.
    """

    fitted: list[RegionMoments]
    tested: list[RegionMoments]
    energy: float
    base: float


def _energy(fitted: RegionMoments, tested: RegionMoments, channels: Tensor, metric: Metric) -> float:
    """Per unit of weight, the energy of tested data about the fitted mean."""
    shift = (tested.mean - fitted.mean)[channels]
    covariance = tested.covariance[channels][:, channels]
    return ((metric.root @ metric.root) * (covariance + torch.outer(shift, shift))).sum().item()


def _base(stats, structure, fitted, tested, total: RegionMoments) -> tuple[float, float]:
    """``energy`` and ``base`` of :class:`_Evidence`."""
    shares = [w for _, w in sizes(stats, structure)]
    energy = sum(w * _energy(total, part, *stats.everything) for w, part in zip(shares, tested, strict=True))
    left = sum(w * _energy(f, t, *stats.everything) for w, f, t in zip(shares, fitted, tested, strict=True))
    energy = max(energy, 1e-30)
    return energy, (energy - left) / energy if left > 0 else 1.0


def _own(stats: LayerStats, structure: Structure, evidence: _Evidence, config: Config) -> Own:
    fitted, tested, energy, base = evidence
    patch, weights = structure.conv(stats).weight[0].numel(), config.factorization == "weight"
    if weights:
        energy, base = stats.positions * weight_rows(stats.conv).double().square().sum().item(), 0.0
    groups, ridge = [], Ridge(config.ridge) if structure.squeeze else None
    for (size, share), old, new, split in zip(sizes(stats, structure), fitted, tested, structure.clusters, strict=True):
        for channels in split:
            found = spectrum(stats, structure, old, channels, config, ridge)
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


def _shared(stats: LayerStats, structure: Structure, evidence: _Evidence, config: Config) -> Shared:
    patch, outputs = structure.conv(stats).weight[0].numel(), stats.conv.out_channels
    everything, metric = stats.everything
    shares, ridge = sizes(stats, structure), Ridge(config.ridge) if structure.squeeze else None
    found = spectrum(stats, structure, within(evidence.fitted, shares), everything, config, ridge)
    gains = [
        factors.held_out_gains(
            found._replace(mean=old.mean, target_mean=old.target_mean), metric, new, everything, falling=False
        )
        for old, new in zip(evidence.fitted, evidence.tested, strict=True)
    ]
    weights = torch.tensor([[w] for _, w in shares], dtype=torch.float64)
    return Shared(
        (torch.stack(gains).cpu() * weights / evidence.energy).numpy().astype(np.float64),
        [
            stats.cost(Work(first=size * patch, values=size, second=size * outputs, numbers=outputs, indices=1))
            for size, _ in shares
        ],
        stats.cost(Work(numbers=patch)),
        evidence.base,
        _fixed(stats, structure),
    )


def _fixed(stats: LayerStats, structure: Structure) -> Cost:
    """What a structure costs at rank 0."""
    split = [(size, len(parts)) for (size, _), parts in zip(sizes(stats, structure), structure.clusters, strict=True)]
    cost = stats.cost(Work.without_ranks(structure.conv(stats), split))
    return cost.plus(stats.cost(structure.squeeze.work)) if structure.squeeze else cost
