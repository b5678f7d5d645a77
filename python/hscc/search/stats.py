"""All that calibration says of a layer.

Errors are measured in the layer's metric: channels by the sensitivity of the network's output (``Metric``), positions
by the weight of their cell. Without sensitivity both are plain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..config import Config
from ..maths import regions
from ..maths.factors import Metric, floored
from ..maths.frame import Frame
from ..maths.moments import Moments, Outer, Profile, RegionMoments, SplitMoments
from ..maths.regions import RegionMap
from ..observe import calibrate, memory, readers, sensitivity
from ..observe.data import Calibration
from ..observe.readers import Reader
from ..observe.sensitivity import Sensitivity
from .cost import Cost
from .latency import Machine
from .work import Work

WEIGHT_FLOOR = 0.01  # of the mean: a position that looks irrelevant on few images still counts a little
UNIT_FLOOR = 1e-4  # of the largest: a batch norm may have closed a channel
SAMPLES = 2  # of a cell, for each direction that can pay: with fewer its moments say nothing


@dataclass(frozen=True)
class LayerStats:
    """All that calibration says of a layer: gram (O, O) sensitivity, weights (cells,) of a position of each cell, what
    reads it, where one thing alone does.

    ``moments`` are in the coordinates of ``frame``; ``inputs`` are there for a search. Where the machine's speed
    counts, it is ``machine``, and ``dense_seconds`` what the dense layer takes on it. A layer that is one of several
    ``groups`` shares its calls with the others.
    """

    name: str
    conv: nn.Conv2d
    profile: Profile
    cells: RegionMap
    gram: Tensor
    weights: Tensor
    reader: Reader | None = None
    frame: Frame | None = None
    moments: SplitMoments | None = None
    inputs: Outer | None = None
    machine: Machine | None = None
    dense_seconds: float = 0.0
    groups: int = 1

    @classmethod
    def begun(
        cls, name: str, conv: nn.Conv2d, profile: Profile, seen: Sensitivity | None, config: Config
    ) -> LayerStats:
        """Without moments yet; ``seen`` None: all channels and positions count the same."""
        cells = regions.split(profile, config.region_method, _most_cells(conv, profile, config), config.seed)
        gram, weights = torch.eye(conv.out_channels).to(profile.total), torch.ones(cells.count).to(profile.total)
        if seen is not None and seen.energy.any():
            scale = 4.0 ** -round(math.log(seen.gram.diagonal().mean(), 4))  # so that factors are of the weights' size
            gram, weights = scale * seen.gram, _weights(seen.energy, cells)
        return cls(name, conv, profile, cells, gram, weights)

    @property
    def positions(self) -> int:
        return self.cells.labels.numel()

    @property
    def dense(self) -> Cost:
        return Cost.dense(self.conv, self.profile.positions, self.dense_seconds)

    def cost(self, work: Work) -> Cost:
        """Of a part of the factored layer that does this for one image in one call."""
        work = work.repeated(self.profile.repeats)
        shared = work._replace(calls=work.calls / self.groups)
        return Cost(
            2 * self.profile.calls * (work.first + work.second + work.pointwise_macs),
            work.numbers,
            work.numbers * self.conv.weight.element_size() + 4 * work.indices,
            self.profile.calls * self.machine.seconds(shared) if self.machine else 0,
        )

    def lean(self) -> LayerStats:
        """Without what a fit does not need that reads the data again."""
        return replace(self, moments=None, inputs=None)

    @property
    def nbytes(self) -> int:
        """Of its tensors, roughly."""
        return _bytes(self.conv, self.cells.count if self.moments else 0, len(self.frame.into))

    @property
    def channels(self) -> Tensor:
        """All of them (O,)."""
        return torch.arange(self.conv.out_channels, device=self.gram.device)

    def metric_of(self, channels: Tensor) -> Metric:
        return Metric.of(self.gram[channels][:, channels])

    def inside(self, channels: Tensor) -> Tensor:
        """(m, m) float32: the metric of some channels in the coordinates of the frame."""
        back = self.frame.back[channels]
        return (back.T @ self.gram[channels][:, channels] @ back).float()

    @property
    def about(self) -> tuple[Tensor, Tensor]:
        """The weighted mean of the outputs (O,), and the weight of each position (P,)."""
        weights = self.weights[self.cells.of_positions(self.weights.device)]
        return weights @ self.profile.mean() / weights.sum(), weights

    def framed(self, outer: Tensor | None) -> Frame:
        """The directions in which structures are compared, from moments (O, O) of the outputs :attr:`about` their mean;
        None: all of them."""
        if outer is None:
            return Frame.whole(Metric.of(self.gram))
        mean, weights = self.about
        return Frame.of(self.gram, mean, outer / (self.profile.rows * weights.sum()), _most_ranks(self.conv))

    def empty(self, frame: Frame, paired: bool = True, width: int | None = None) -> Moments:
        """Moments of each cell, wanted values in that frame; ``paired`` and ``width`` as for ``Moments.empty``."""
        labels = self.cells.of_positions(self.weights.device)
        return Moments.empty(labels, self.cells.means(self.profile) @ frame.into.T, paired, width)

    def mean_of(self, cells: Sequence[int]) -> Tensor:
        """(O,) of the outputs in some cells."""
        cells = list(cells)
        shares = (torch.tensor(self.cells.sizes()).to(self.weights) * self.weights)[cells]
        return shares @ self.cells.means(self.profile)[cells] / shares.sum()

    def split_cells(self, moments: SplitMoments, config: Config) -> list[list[RegionMoments]]:
        """Moments of each cell, of two halves of the samples; both of all where ranks keep energy, or a half has none
        of a cell."""
        split = config.budget.energy is None and min(half.count.min().item() for half in self.moments.halves) > 0
        return [self.cell_moments(half) for half in (moments.halves if split else (moments.total(),) * 2)]

    def cell_moments(self, moments: Moments) -> list[RegionMoments]:
        """Moments of each cell, each position counted by its weight."""
        parts = [moments.region(cell) for cell in range(self.cells.count)]
        return [p._replace(count=p.count * weight) for p, weight in zip(parts, self.weights.tolist(), strict=True)]


def look(
    model: nn.Module,
    calibration: Calibration,
    layers: Mapping[str, nn.Conv2d],
    profiles: Mapping[str, Profile],
    config: Config,
) -> tuple[dict[str, LayerStats], list[str]]:
    """Statistics of every profiled layer, in the order in which they run; and warnings."""
    convs, inputs, outers = {name: layers[name] for name in profiles}, {}, {}
    _check_memory(convs, profiles, config, calibration.device)
    read = readers.find(model, calibration, convs)
    seen, warnings = _sensitivities(model, calibration, convs, profiles, config)
    seen = {name: one._replace(gram=floored(one.gram, _units(read.get(name), one.gram))) for name, one in seen.items()}
    begun = {
        name: LayerStats.begun(name, convs[name], profile, seen.get(name), config)
        for name, profile in calibration.track(profiles.items(), "cells")
    }
    if config.searches:
        about = {name: layer.about for name, layer in begun.items()}
        inputs, outers = calibrate.second_moments(model, calibration, convs, about)
        for name in (name for name, profile in profiles.items() if profile.pooled):
            inputs[name].positions = math.prod(convs[name].stride)  # for each of the outputs
    frames = {name: layer.framed(outers.get(name)) for name, layer in calibration.track(begun.items(), "directions")}
    moments = {
        name: SplitMoments(tuple(layer.empty(frames[name], paired=False) for _ in range(2)))
        for name, layer in begun.items()
    }
    calibrate.moments(model, calibration, convs, moments, {name: frame.into for name, frame in frames.items()})
    stats = {
        name: replace(layer, frame=frames[name], moments=moments[name], inputs=inputs.get(name), reader=read.get(name))
        for name, layer in begun.items()
    }
    return stats, warnings


def _check_memory(
    layers: Mapping[str, nn.Conv2d], profiles: Mapping[str, Profile], config: Config, device: torch.device
) -> None:
    def frame(conv: nn.Conv2d) -> int:
        return _most_ranks(conv) if config.searches else conv.out_channels

    needed = sum(_bytes(conv, _most_cells(conv, profiles[name], config), frame(conv)) for name, conv in layers.items())
    if needed > (there := memory.room(config.memory, 0, device)):
        raise ValueError(
            f"memory: got {there / 2**30:.3g} GiB, expected at least {needed / 2**30:.3g} GiB, which the statistics of "
            f"{len(layers)} layers take in {config.regions} regions; fewer regions take less"
        )


def _bytes(conv: nn.Conv2d, cells: int, directions: int) -> int:
    """Of gram, moments of outputs and inputs, frame, and of two halves of the moments of cells, where there are any."""
    outputs, inputs = conv.out_channels, conv.in_channels
    there = outputs**2 + inputs**2 + 2 * cells * directions**2 if cells else 0
    return 8 * (outputs**2 + 2 * outputs * directions + there)


def _sensitivities(
    model: nn.Module,
    calibration: Calibration,
    layers: Mapping[str, nn.Conv2d],
    profiles: Mapping[str, Profile],
    config: Config,
) -> tuple[dict[str, Sensitivity], list[str]]:
    """None where they do not count or cannot be measured; warnings."""
    if not config.sensitivity or config.factorization != "activation" or config.budget.energy is not None:
        return {}, []
    positions = {name: len(profile.total) for name, profile in profiles.items()}
    try:
        return sensitivity.measure(model, calibration, layers, positions), []
    except sensitivity.NotDifferentiable as error:
        return {}, [f"sensitivity: {error}, so that all errors count the same"]


def _most_ranks(conv: nn.Conv2d) -> int:
    """That can pay."""
    outputs, patch = conv.out_channels, conv.weight[0].numel()
    return max(min(outputs, patch, -(-outputs * patch // (outputs + patch))), 1)


def _most_cells(conv: nn.Conv2d, profile: Profile, config: Config) -> int:
    """As many as the samples carry, where they are not given."""
    samples = profile.rows * len(profile.total)
    return min(config.regions, max(samples // (SAMPLES * _most_ranks(conv)), 1)) if config.searches else config.regions


def _units(reader: Reader | None, gram: Tensor) -> Tensor:
    """(O,) in which channels are alike: what a batch norm makes of one."""
    if reader is None:
        return torch.ones(len(gram)).to(gram)
    scale = reader.scale.flatten().abs().to(gram)
    return scale.clamp_min(UNIT_FLOOR * scale.max()).clamp_min(torch.finfo(torch.float32).tiny)


def _weights(energy: Tensor, cells: RegionMap) -> Tensor:
    """(cells,) of a position of each cell, 1 on average, from the energy (P,) of gradients."""
    sizes = torch.tensor(cells.sizes()).to(energy)
    of_cells = energy.new_zeros(cells.count).index_add_(0, cells.of_positions(energy.device), energy)
    weights = (of_cells / sizes).clamp_min(WEIGHT_FLOOR * energy.mean())
    return weights * sizes.sum() / (weights * sizes).sum()
