"""A projection of a layer's input channels before its factors: with fewer channels every row costs less."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..maths.frame import project
from ..maths.moments import Outer, SplitMoments
from ..nn.chain import stage
from ..nn.conv2d import trainable
from ..nn.projection import Projection
from ..observe import calibrate, distributed
from ..observe.data import Calibration
from .stats import LayerStats
from .work import Work

SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)  # of the input channels
MULTIPLE = 8  # channels a kernel likes to read together
LOSSLESS = 1e-7  # of the energy: a direction below it does not exist


@dataclass(frozen=True)
class Squeeze:
    """A layer's W x as W' P x: ``projection`` P (c, C), W' (O, c, kh, kw) the weight of ``conv``, ``work`` of P."""

    projection: Tensor
    conv: nn.Conv2d
    work: Work

    def layer(self) -> Projection:
        """P as a layer, as trainable as ``conv``."""
        weight = self.conv.weight
        return Projection(self.projection.T.to(weight).contiguous()).requires_grad_(weight.requires_grad)

    def inside(self, into: Tensor) -> tuple[Projection, nn.Conv2d]:
        """What the dense layer becomes when only its inputs are projected, with outputs in other coordinates, ``into``
        (m, O), and float32 at least."""
        conv = copy.deepcopy(self.conv).to(torch.promote_types(self.conv.weight.dtype, torch.float32))
        coordinates = stage(conv, torch.einsum("mo,ocij->mcij", into, conv.weight.to(into)), (True, True))
        if conv.bias is not None:
            coordinates.bias = nn.Parameter((into @ conv.bias.to(into)).to(conv.bias))
        return self.layer(), coordinates.to(memory_format=torch.channels_last)


def pays(conv: nn.Conv2d) -> bool:
    """Whether it can: rows of one tap each cost no less behind a projection to as many channels as there are rows."""
    return conv.weight[0, 0].numel() > 1


def candidates(conv: nn.Conv2d, inputs: Outer, metric: Tensor) -> list[Squeeze]:
    """The projections that a layer may have, fewest channels first; derivation in ``docs/math.md``.

    Args:
        metric: (O, O) of squares of errors of its outputs.
    """
    dtype = torch.promote_types(conv.weight.dtype, torch.float32)  # rounding chooses other projections, not worse ones
    weight = conv.weight.detach().to(dtype)
    weighted = (metric.to(dtype) @ weight.flatten(1)).view_as(weight)
    values, vectors = torch.linalg.eigh(torch.einsum("ocij,odij->cd", weight, weighted).double())
    values = values.clamp_min(1e-9 * values[-1].clamp_min(1e-30))
    there, back = (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T
    energy, u = torch.linalg.eigh(there @ inputs.outer @ there)
    energy, u = energy.flip(0), u.flip(1)
    directions = max(1, int((energy > LOSSLESS * energy.sum()).sum()))
    channels = conv.in_channels
    counts = {c for c in map(_rounded, (channels * share for share in SHARES)) if c < directions}
    found, counts = [], sorted(counts | ({directions} - {channels}))
    cores = torch.einsum("ocij,cd->odij", weight, (back @ u[:, : max(counts, default=0)]).to(dtype))
    for c in counts:
        core = stage(conv, cores[:, :c], (True, True))
        core.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach())
        core.requires_grad_(trainable(conv)).train(conv.training)
        found.append(Squeeze(u[:, :c].T @ there, core, Work.of_pointwise(inputs.positions, channels, c)))
    return found


def groups(
    squeezes: Mapping[str, Sequence[Squeeze]], stats: Mapping[str, LayerStats], memory: int
) -> Iterator[list[str]]:
    """Layers whose moments, of so many bytes, are gathered in one pass over the data."""
    group, size = [], 0
    for name, several in squeezes.items():
        needed = 4 * 4 * len(several) * stats[name].cells.count * len(stats[name].frame.into) ** 2
        if group and size + needed > memory:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    if group:
        yield group


def moments(
    model: nn.Module,
    calibration: Calibration,
    stats: Mapping[str, LayerStats],
    squeezes: Mapping[str, Sequence[Squeeze]],
) -> dict[str, list[SplitMoments]]:
    """Of each layer and each of its squeezes: outputs behind it (computable) against the dense layer's (wanted).

    Both in the layer's frame.
    """
    found = {
        name: [SplitMoments(tuple(layer.empty(layer.frame).single() for _ in range(2))) for _ in squeezes[name]]
        for name, layer in stats.items()
    }
    modules = {name: [squeeze.inside(layer.frame.into) for squeeze in squeezes[name]] for name, layer in stats.items()}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        wanted = found[name][0].wanted(project(y, stats[name].frame.into))
        for (squeeze, conv), sums in zip(modules[name], found[name], strict=True):
            sums.add(conv(squeeze(x).to(conv.weight.dtype)), wanted)

    watched = {name: layer.conv for name, layer in stats.items() if found[name]}
    if watched:
        calibrate.visit(model, calibration, watched, see, "squeezes")
    for several in found.values():
        for sums in several:
            distributed.sum_(*sums.sums)
    return found


def _rounded(channels: float) -> int:
    return max(1, round(channels)) if channels < MULTIPLE else MULTIPLE * round(channels / MULTIPLE)
