"""What the factors of a layer may look like: regions, clusters, shared rows, a squeeze."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..config import Config
from ..maths import clusters, regions
from ..maths.moments import RegionMoments, pooled
from ..maths.regions import RegionMap
from .squeeze import Squeeze
from .stats import LayerStats

CLUSTERS_PAY = 0.25  # share of U in a rank's FLOPs below which clusters, which split only U, cannot win


@dataclass(frozen=True)
class Structure:
    """members: cells of each region; clusters: channels (n,) of each cluster of each region."""

    regions: RegionMap
    members: tuple[tuple[int, ...], ...]
    clusters: tuple[tuple[Tensor, ...], ...]
    shared: bool
    squeeze: Squeeze | None = None

    @property
    def clustered(self) -> bool:
        """Whether some region has more than one cluster."""
        return any(len(split) > 1 for split in self.clusters)

    def conv(self, stats: LayerStats) -> nn.Conv2d:
        """The convolution that the rows replace."""
        return self.squeeze.conv if self.squeeze else stats.conv


def counts(stats: LayerStats, config: Config) -> list[int]:
    """The numbers of regions that a layer may have; one, the number given, where nothing is searched."""
    several = [2**i for i in range(6) if 2**i < stats.cells.count] + [stats.cells.count]
    return several if config.searches else several[-1:]


def structures(stats: LayerStats, config: Config, several: Sequence[int], clustered: bool) -> list[Structure]:
    """With these numbers of regions, without squeeze; ``clustered`` where clusters are worth a look."""
    everything = stats.channels
    second_stage = stats.conv.out_channels / (stats.conv.weight[0].numel() + stats.conv.out_channels)
    most = config.clusters if clustered and second_stage >= CLUSTERS_PAY else 1
    found = []
    for count in several:
        merged, members = regions.merge(stats.cells, stats.profile, count)
        for number in range(1, most + 1) if config.searches else [config.clusters]:
            split = ((everything,),) * merged.count
            if number > 1:
                parts = union(stats.cell_moments(stats.moments.total()), members)
                split = tuple(
                    clusters.split(stats.frame.outputs(part).covariance, number, config.seed) for part in parts
                )
            found.append(Structure(merged, members, split, False))
        if config.sharing and config.searches and merged.count > 1:
            found.append(Structure(merged, members, ((everything,),) * merged.count, True))
    return found


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


def within(parts: list[RegionMoments], shares: list[tuple[int, float]]) -> RegionMoments:
    """Moments about each region's own mean, pooled by the weights of :func:`sizes`: what shared rows must explain."""
    total = sum(w for _, w in shares)
    share = [w / max(total, 1e-30) for _, w in shares]

    def mean(name: str) -> Tensor:
        return sum(w * getattr(part, name) for w, part in zip(share, parts, strict=True))

    return RegionMoments(total, mean("mean"), mean("covariance"), mean("target_mean"), mean("cross"))
