"""What structures gain and cost at every rank, on samples that the factors have not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..config import Config
from ..maths import factors, frame
from ..maths.frame import Directions, Seen
from ..maths.moments import SplitMoments
from ..nn.conv2d import dense_bias, weight_rows
from ..observe import memory
from ..observe.data import Calibration
from . import squeeze
from .cost import Cost, total
from .ranks import Faster, Group, Own, Shared
from .squeeze import Squeeze
from .stats import LayerStats
from .structure import Structure, counts, sizes, structures, within
from .work import Work

Option = tuple[Structure, Own | Shared | Faster]
SMALL = 0.005  # of what the budget leaves of the FLOPs: a layer with less gets one region and no squeeze
FEW_GROUPS = 4  # that may have a squeeze, behind which each takes calls of its own
PRICES = np.logspace(-3, 3, 25)  # of the dense layer in shares of its energy: what wins at none is passed over


class Evidence(NamedTuple):
    """Moments of each cell of a layer, of the half that factors are made from and of the half they are tested on."""

    fitted: list[Seen]
    tested: list[Seen]

    @classmethod
    def of(cls, stats: LayerStats, config: Config) -> Evidence:
        return cls(*([*map(stats.frame.seen, cells)] for cells in stats.split_cells(stats.moments, config)))

    def behind(self, stats: LayerStats, config: Config, moments: SplitMoments) -> Evidence:
        """Of the outputs behind a squeeze against the same ones, both in the layer's frame."""
        halves = zip(self, stats.split_cells(moments, config), strict=True)
        return Evidence(
            *([one._replace(part=frame.single(p)) for one, p in zip(*both, strict=True)] for both in halves)
        )

    def united(self, structure: Structure) -> Evidence:
        """Of each region."""
        return Evidence(*([frame.union([cells[c] for c in group]) for group in structure.members] for cells in self))


def find(
    model: nn.Module, calibration: Calibration, stats: Mapping[str, LayerStats], config: Config
) -> dict[str, list[Option]]:
    """What each layer may become, with and without squeeze.

    Squeezes are compared in one region first; those that win at some price are looked at in several.
    """
    found: dict[str, list[Option]] = {}
    if not config.searches:
        for name, layer in calibration.track(list(stats.items()), "structures"):
            found[name] = options(layer, structures(layer, config, counts(layer, config), True), config)
        return found
    share = 0 if config.effort == "thorough" else SMALL
    small = share * total(layer.dense for layer in stats.values()).flops / config.budget.furthest
    squeezes: dict[str, list[Squeeze]] = {
        name: squeeze.candidates(layer.conv, layer.inputs, layer.gram)
        if config.squeeze and layer.dense.flops >= small and layer.groups <= FEW_GROUPS and squeeze.pays(layer.conv)
        else []
        for name, layer in calibration.track(stats.items(), "projections")
    }
    held = sum(layer.nbytes for layer in stats.values())
    for group in squeeze.groups(squeezes, stats, memory.room(config.memory, held, calibration.device) // 2):
        behind = squeeze.moments(model, calibration, {name: stats[name] for name in group}, squeezes)
        for name in calibration.track(group, "structures", of=len(stats)):
            layer = stats[name]
            plain, pairs = Evidence.of(layer, config), zip(squeezes[name], behind[name], strict=True)
            ways = [(None, plain), *((own, plain.behind(layer, config, sums)) for own, sums in pairs)]
            found[name] = _of_layer(layer, ways, config, layer.dense.flops < small)
    return {name: found[name] for name in stats}


def _of_layer(
    layer: LayerStats, ways: Sequence[tuple[Squeeze | None, Evidence]], config: Config, small: bool
) -> list[Option]:
    """Of a layer behind none or each squeeze; a ``small`` one has one region.

    Clusters are looked at where they win in one region, with the numbers of regions that win without them.
    """

    def those(index: int, several: Sequence[int], clustered: bool | None) -> list[tuple[int, Structure, Any]]:
        """With and without clusters (None), with them alone, or without."""
        own, evidence = ways[index]
        made = structures(layer, config, several, clustered is not False and own is None)
        kept = [replace(one, squeeze=own) for one in made if one.clustered or not clustered]
        return [(index, *option) for option in options(layer, kept, config, evidence)]

    one, *more = counts(layer, config)
    found = [option for index in range(len(ways)) for option in those(index, [one], None)]
    if more and not small:
        wins = _every if config.effort == "thorough" else _wins
        won = wins(layer, found)
        for index in sorted({index for index, _ in won}):
            found += those(index, more, False)
        if any(structure.clustered for _, structure in won):
            several = {structure.regions.count for _, structure in wins(layer, found)} - {1}
            found += those(0, sorted(several), True)
    return [option for _, *option in found]


def _wins(layer: LayerStats, found: Sequence[tuple[int, Structure, Any]]) -> list[tuple[int, Structure]]:
    """(number of a way, structure) of all that are worth most at some price of work and storage."""
    wins = {}
    for level in PRICES / layer.dense.flops:
        for storage in (4.0, layer.dense.flops / layer.dense.parameters):
            price = Cost(level, storage * level)
            values = [option.at(price).value(price) for *_, option in found]
            best = values.index(max(values))
            wins[best] = found[best][:2]
    return [*wins.values()]


def _every(layer: LayerStats, found: Sequence[tuple[int, Structure, Any]]) -> list[tuple[int, Structure]]:
    """As :func:`_wins`, where nothing is passed over."""
    return [option[:2] for option in found]


def options(
    stats: LayerStats, several: Sequence[Structure], config: Config, evidence: Evidence | None = None
) -> list[Option]:
    """What structures gain and cost at every rank; ``evidence`` is behind the squeeze that all have."""
    evidence, found = evidence or Evidence.of(stats, config), []
    everything = frame.union(evidence.fitted)
    for structure in several:
        seen = _Regions.of(stats, structure, evidence, everything)
        option = (_shared if structure.shared else _own)(stats, structure, seen, config)
        found.append((structure, Faster(option, stats.dense) if stats.machine else option))
    return found


class _Regions(NamedTuple):
    """Moments of each region that factors are made from and tested on.

    ``energy`` is that of the outputs about one mean for all positions, ``base`` the share of it that region means
    alone explain.
    """

    fitted: list[Seen]
    tested: list[Seen]
    energy: float
    base: float

    @classmethod
    def of(cls, stats: LayerStats, structure: Structure, evidence: Evidence, everything: Seen) -> _Regions:
        """``everything``: of the whole map, of the half that factors are made from."""
        fitted, tested = evidence.united(structure)
        shares = [w for _, w in sizes(stats, structure)]
        energy = sum(w * part.energy_about(everything) for w, part in zip(shares, tested, strict=True))
        left = sum(w * new.energy_about(old) for w, old, new in zip(shares, fitted, tested, strict=True))
        energy = max(energy, 1e-30)
        return cls(fitted, tested, energy, (energy - left) / energy if left > 0 else 1.0)


def _own(stats: LayerStats, structure: Structure, seen: _Regions, config: Config) -> Own:
    patch, weights = structure.conv(stats).weight[0].numel(), config.factorization == "weight"
    energy, base = seen.energy, seen.base
    if weights:
        energy, base = stats.positions * weight_rows(stats.conv).double().square().sum().item(), 0.0
    groups = []
    for index, ((size, share), split) in enumerate(zip(sizes(stats, structure), structure.clusters, strict=True)):
        for channels in split:
            scale = (size if weights else share) / energy
            old, new = seen.fitted[index], seen.tested[index]
            if weights:
                rows, bias = weight_rows(stats.conv).double(), dense_bias(stats.conv).double()
                gains, rest = factors.from_weight(rows, bias, channels).gains, 0.0
            elif structure.clustered:
                gains, whole = frame.of_cluster(old.part, new.part, stats.inside(channels))
                gains, rest = gains[: len(channels)], whole - gains.sum().item()
            else:
                gains = Directions.of(old.part, config.ridge if structure.squeeze else None).gains(new.part)
                rest = 0.0 if structure.squeeze else new.energy_about(old) - gains.sum().item()  # dense is exact
            count = len(channels)
            row = Work(first=size * patch, values=size, numbers=patch, indices=1)
            groups.append(
                Group(
                    gains.double().cpu().numpy() * scale,
                    max(rest, 0.0) * scale,
                    stats.cost(row._replace(second=size * count, numbers=patch + count)),
                    stats.cost(row).times(count),
                )
            )
    multiple = config.multiple_of(max(len(group.gains) for group in groups))
    return Own(groups, base, _fixed(stats, structure), multiple, None if structure.squeeze else stats.dense)


def _shared(stats: LayerStats, structure: Structure, seen: _Regions, config: Config) -> Shared:
    patch, outputs = structure.conv(stats).weight[0].numel(), stats.conv.out_channels
    shares = sizes(stats, structure)
    found = Directions.of(
        within([one.part for one in seen.fitted], shares), config.ridge if structure.squeeze else None
    )
    gains = [
        found._replace(mean=old.part.mean, target_mean=old.part.target_mean).gains(new.part, falling=False)
        for old, new in zip(seen.fitted, seen.tested, strict=True)
    ]
    weights = torch.tensor([[w] for _, w in shares], dtype=torch.float64)
    return Shared(
        (torch.stack(gains).double().cpu() * weights / seen.energy).numpy(),
        [
            stats.cost(Work(first=size * patch, values=size, second=size * outputs, numbers=outputs, indices=1))
            for size, _ in shares
        ],
        stats.cost(Work(numbers=patch)),
        seen.base,
        _fixed(stats, structure),
    )


def _fixed(stats: LayerStats, structure: Structure) -> Cost:
    """What a structure costs at rank 0."""
    split = [(size, len(parts)) for (size, _), parts in zip(sizes(stats, structure), structure.clusters, strict=True)]
    cost = stats.cost(Work.without_ranks(structure.conv(stats), split))
    return cost.plus(stats.cost(structure.squeeze.work)) if structure.squeeze else cost
