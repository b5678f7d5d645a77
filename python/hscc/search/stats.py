"""All that calibration says of a layer.

Errors are measured in the layer's metric: channels by the sensitivity of the network's output (``Metric``), positions
by the weight of their cell. Without sensitivity both are plain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..config import Config
from ..maths import regions
from ..maths.factors import Metric
from ..maths.frame import Frame
from ..maths.moments import Inputs, Moments, Profile, RegionMoments, SplitMoments, pooled
from ..maths.regions import RegionMap
from ..observe import calibrate, sensitivity
from ..observe.data import Calibration
from .cost import Cost
from .latency import Machine
from .work import Work


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
        return Cost.dense(self.conv, self.profile.calls * self.positions, self.dense_seconds)

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

    @cached_property
    def frame(self) -> Frame:
        """The directions of the outputs in which structures are compared; as many ranks as can pay."""
        outputs, patch = self.conv.out_channels, self.conv.weight[0].numel()
        most = max(min(outputs, patch, -(-outputs * patch // (outputs + patch))), 1)
        return Frame.of(self.everything[1], pooled(self.cell_moments(self.moments.total())), most)

    def split_cells(self, moments: SplitMoments, config: Config) -> list[list[RegionMoments]]:
        """Moments of each cell, of two halves of the samples; both of all where ranks keep energy, or a half has none
        of a cell."""
        split = config.budget.energy is None and min(half.count.min().item() for half in self.moments.halves) > 0
        return [self.cell_moments(half) for half in (moments.halves if split else (moments.total(),) * 2)]

    def cell_moments(self, moments: Moments) -> list[RegionMoments]:
        """Moments of each cell, each position counted by its weight."""
        parts = [moments.region(cell) for cell in range(self.cells.count)]
        return [p._replace(count=p.count * weight) for p, weight in zip(parts, self.weights.tolist(), strict=True)]

    def behind(self) -> SplitMoments:
        """Empty moments of two halves of the samples, cell by cell, of pairs of values in the layer's frame."""
        shift = self.moments.target_shift @ self.frame.into.T
        return SplitMoments(tuple(Moments.empty(self.moments.labels, shift, paired=True) for _ in range(2)))


def look(
    model: nn.Module,
    calibration: Calibration,
    layers: Mapping[str, nn.Conv2d],
    profiles: Mapping[str, Profile],
    config: Config,
) -> tuple[dict[str, LayerStats], list[str]]:
    """Statistics of every profiled layer, in the order in which they run; and warnings."""
    watched = {name: layers[name] for name in profiles}
    cells = {
        name: regions.split(profile, config.region_method, config.regions, config.seed)
        for name, profile in profiles.items()
    }
    moments = {
        name: SplitMoments(tuple(calibrate.empty_moments(profile, cells[name], False) for _ in range(2)))
        for name, profile in profiles.items()
    }
    inputs = calibrate.moments(model, calibration, watched, moments)
    metrics, warnings = {name: sensitivity.plain(layer, cells[name]) for name, layer in watched.items()}, []
    if config.sensitivity and config.factorization == "activation" and config.budget.energy is None:
        try:
            metrics = sensitivity.measure(model, calibration, watched, cells)
        except sensitivity.NotDifferentiable as error:
            warnings.append(f"sensitivity: {error}, so that all errors count the same")
    stats = {
        name: LayerStats(name, layers[name], profile, cells[name], moments[name], *metrics[name], inputs[name])
        for name, profile in profiles.items()
    }
    return stats, warnings
