"""A projection of a layer's input channels before its factors: fewer channels make every row cheaper."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import calibrate, distributed
from .factors import Metric
from .ranks import Cost
from .regions import RegionMap
from .stats import Profile, SplitMoments

SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)  # of the input channels, at most; fewer where the inputs have fewer directions
LOSSLESS = 1e-7  # share of energy below which a direction of the inputs does not exist


@dataclass(frozen=True)
class Squeeze:
    """A layer's weight W (O, C, kh, kw) as ``core`` W' (O, c, kh, kw) on projected inputs P x.

    ``moments`` are of the outputs of W' P x (computable) against the dense layer's (wanted); ``cost`` is of P.
    """

    projection: Tensor  # [c, C]
    core: nn.Conv2d
    moments: SplitMoments
    cost: Cost

    def module(self) -> nn.Sequential:
        """What the dense layer becomes when only its inputs are projected."""
        stage = nn.Conv2d(self.projection.shape[1], len(self.projection), 1, bias=False)
        stage.weight = nn.Parameter(self.projection[..., None, None].to(self.core.weight))
        return nn.Sequential(stage, self.core)


def look(
    model: nn.Module,
    calibration: Iterable,
    layers: Mapping[str, nn.Conv2d],
    profiles: Mapping[str, Profile],
    cells: Mapping[str, RegionMap],
    grams: Mapping[str, Tensor],
    show: bool,
) -> dict[str, list[Squeeze]]:
    """The squeezes that each layer may have."""
    second: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        rows = x.transpose(0, 1).flatten(1).float()
        if name not in second:
            second[name] = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=x.device)
            sizes[name] = x.shape[2:].numel()
        second[name] += (rows @ rows.T).double()

    calibrate.visit(model, calibration, layers, see, "inputs", show)
    for total in second.values():
        distributed.sum_(total)
    found = {
        name: list(_squeezes(layer, profiles[name], cells[name], second[name], sizes[name], grams[name]))
        for name, layer in layers.items()
    }
    stages = {name: [squeeze.module() for squeeze in several] for name, several in found.items()}

    def fill(name: str, x: Tensor, y: Tensor) -> None:
        for squeeze, stage in zip(found[name], stages[name], strict=True):
            squeeze.moments.add(stage(x), y)

    calibrate.visit(model, calibration, layers, fill, "squeezes", show)
    for several in found.values():
        for squeeze in several:
            distributed.sum_(*squeeze.moments.sums)
    return found


def _squeezes(conv, profile, cells, second, size, gram):
    channels = conv.in_channels
    everything = torch.arange(conv.out_channels)
    metric = Metric.of(gram, everything).root
    weight = conv.weight.detach().double()  # [O, C, kh, kw]
    through = torch.einsum("ocij,op,pdij->cd", weight, metric @ metric, weight)
    values, vectors = torch.linalg.eigh(through)
    values = values.clamp_min(1e-9 * values[-1])
    root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T
    energy, u = torch.linalg.eigh(root @ second @ root)
    energy, u = energy.flip(0).clamp_min(0), u.flip(1)
    directions = int((energy > LOSSLESS * energy.sum()).sum())
    counts = {max(1, round(channels * share)) for share in SHARES}
    counts = {c for c in counts if c < directions} | ({directions} if directions < channels else set())
    for c in sorted(counts):
        projection, back = u[:, :c].T @ root, inverse @ u[:, :c]
        core = copy.deepcopy(conv)
        core.in_channels = c
        core.weight = nn.Parameter(torch.einsum("ocij,cd->odij", weight, back).to(conv.weight))
        moments = SplitMoments(tuple(calibrate.empty_moments(profile, cells) for _ in range(2)))
        core.weight.requires_grad_(conv.weight.requires_grad)
        yield Squeeze(projection, core, moments, Cost(2 * profile.calls * size * c * channels, c * channels))
