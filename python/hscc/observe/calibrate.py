"""Statistics of layers on calibration data, gathered by hooks that always come off.

Where ``torch.distributed`` is initialised, each rank reads its own part of the data and the statistics are those of
all parts; the model must be the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple
from zlib import crc32

import torch
from torch import Tensor, nn

from ..maths.frame import project
from ..maths.moments import Moments, Outer, Profile, SplitMoments
from . import distributed
from .data import Calibration, evaluation, images, watch


class Call(NamedTuple):
    """Sizes of one call for one sample: (C, ...) of its input, (O, ...) of its output; channels last where linear."""

    x: tuple[int, ...]
    y: tuple[int, ...]

    def positions(self, conv: nn.Module) -> int:
        """Of one sample: every weight meets each of them once."""
        if isinstance(conv, nn.Linear):
            return torch.Size(self.x[:-1]).numel()
        return torch.Size((self.x if conv.transposed else self.y)[1:]).numel()


def profile(model: nn.Module, calibration: Calibration, layers: Mapping[str, nn.Module]) -> dict[str, Profile]:
    """Position-wise moments of each layer's output, in the order in which the layers run.

    Layers that never run are absent; of one that runs at several sizes all positions are one. Raises ValueError for an
    empty loader, wrong channels, NaN or infinite activations, and TypeError for a wrong dtype.
    """
    profiles: dict[str, Profile] = {}
    calls: dict[str, int] = {}

    def check(name: str, x: Tensor) -> None:
        """Inputs that a layer cannot take are refused by its name, before it runs."""
        conv = layers[name]
        if x.ndim not in (3, 4) or x.shape[-3] != conv.in_channels:
            raise ValueError(
                f"layer {name!r}: got an input of shape {tuple(x.shape)}, expected (N, {conv.in_channels}, H, W)"
            )
        if x.dtype != conv.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"layer {name!r}: got an input of {x.dtype}, expected {conv.weight.dtype}")

    def see(name: str, x: Tensor, y: Tensor) -> None:
        y = images(y)
        if not torch.isfinite(y).all():
            raise ValueError(f"layer {name!r}: got NaN or infinite activations in calibration, expected finite ones")
        if name not in profiles:
            profiles[name] = Profile.empty(y.shape[1], tuple(y.shape[2:]), y.device)
        profiles[name].add(y)
        calls[name] = calls.get(name, 0) + 1

    with evaluation(model), watch(layers, see, check):
        passes = calibration.run(model, "profile")
    return _joined(profiles, calls, passes, calibration.device)


def second_moments(
    model: nn.Module,
    calibration: Calibration,
    layers: Mapping[str, nn.Module],
    about: Mapping[str, tuple[Tensor, Tensor]],
) -> tuple[dict[str, Outer], dict[str, Tensor]]:
    """Of each layer those of its inputs, and the sum (O, O) of those of its outputs, about a mean (O,) and with a
    weight of each position (P,)."""
    inputs = {name: Outer.empty(layer.in_channels, layer.weight.device) for name, layer in layers.items()}
    outputs = {name: Outer.empty(layer.out_channels, layer.weight.device) for name, layer in layers.items()}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        mean, weights = about[name]
        inputs[name].add(x)
        weights = weights.expand(y.shape[2:].numel()).view(y.shape[2:])  # one may be that of all positions
        outputs[name].add((y.float() - mean[:, None, None].float()) * weights.sqrt().float())

    visit(model, calibration, layers, see, "second moments")
    distributed.sum_(*(seen.outer for seen in (*inputs.values(), *outputs.values())))
    everywhere = distributed.gather({name: seen.positions for name, seen in inputs.items()})
    for name, seen in inputs.items():  # a rank may not have run a layer
        seen.positions = max(positions[name] for positions in everywhere)
    return inputs, {name: seen.outer for name, seen in outputs.items()}


def moments(
    model: nn.Module,
    calibration: Calibration,
    layers: Mapping[str, nn.Module],
    empty: Mapping[str, SplitMoments],
    into: Mapping[str, Tensor],
) -> None:
    """Fills empty moments with the outputs of each layer in other coordinates, ``into`` (m, O)."""

    def see(name: str, x: Tensor, y: Tensor) -> None:
        empty[name].add(project(y, into[name]))

    visit(model, calibration, layers, see, "moments")
    sum_(empty)


def visit(
    model: nn.Module,
    calibration: Calibration,
    layers: Mapping[str, nn.Module],
    see: Callable[[str, Tensor, Tensor], None],
    stage: str,
) -> None:
    """One pass that calls ``see`` with the name, the input and the output of each layer, both (N, C, H, W)."""
    with evaluation(model), watch(layers, lambda name, x, y: see(name, images(x), images(y))):
        calibration.run(model, stage)


def calls(model: nn.Module, calibration: Calibration, layers: Mapping[str, nn.Module]) -> dict[str, list[Call]]:
    """The calls of each convolution in a forward pass of the first batch; none where it does not run."""
    found: dict[str, list[Call]] = {name: [] for name in layers}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        weight = getattr(layers[name], "weight", None)  # a grouped convolution may have its parts' alone
        dims = x.ndim - 1 if weight is None or isinstance(layers[name], nn.Linear) else weight.ndim - 1
        found[name].append(Call(*(tuple(t.shape[t.ndim - dims :]) for t in (x, y))))

    if layers:
        with evaluation(model), watch(layers, see):
            calibration.forward(model, calibration.first())
    return distributed.gather(found)[0]


def sum_(moments: Mapping[str, Moments]) -> None:
    """Adds up what the ranks saw of the same regions."""
    marks = {name: [crc32(t.cpu().numpy()) for t in (m.labels, m.target_shift)] for name, m in moments.items()}
    for rank, other in enumerate(distributed.gather(marks)):
        if other != marks:
            raise ValueError(
                f"moments: got other regions on rank {rank}, expected the same on all: same seed and kind of machine"
            )
    for part in moments.values():
        distributed.sum_(*part.sums)


def _joined(profiles: dict[str, Profile], calls: Mapping[str, int], passes: int, device) -> dict[str, Profile]:
    """Sums over the ranks, which may have seen different layers; ``calls`` are those of all passes."""
    seen = {name: (p.total.shape[1], p.size, calls[name]) for name, p in profiles.items()}
    ranks = distributed.gather((passes, seen))
    joined: dict[str, Profile] = {}
    for name, (channels, size, _) in (item for _, seen in ranks for item in seen.items()):
        if name not in joined:
            joined[name] = profiles.get(name) or Profile.empty(channels, size, device)
        if joined[name].size != size:
            joined[name].pool_()
    counts = distributed.gather({name: (profile.images, profile.rows) for name, profile in joined.items()})
    for name, profile in joined.items():
        profile.images, profile.rows = (sum(of_rank[name][i] for of_rank in counts) for i in range(2))
        count = sum(seen[name][-1] for _, seen in ranks if name in seen)
        profile.calls = -(-count // sum(passes for passes, _ in ranks))  # at least 1
        distributed.sum_(profile.total, profile.square)
    return joined
