"""Runs calibration data through a model and gathers statistics by forward hooks that always come off.

Where ``torch.distributed`` is initialised, each rank reads its own part of the data and the statistics are those of
all parts; the model must be the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from . import distributed
from .progress import track
from .regions import RegionMap
from .stats import Inputs, Moments, Profile


class _Seen(Exception):
    """Ends a forward pass early: all that was asked for has been seen."""


def profile(model: nn.Module, calibration: Iterable, layers: Mapping[str, nn.Module], show: bool) -> dict[str, Profile]:
    """Position-wise moments of each layer's output, in the order in which the layers run.

    Layers that never run are absent. Raises ValueError for an empty loader, wrong channels, NaN or infinite
    activations and outputs whose size changes, and TypeError for a wrong dtype.
    """
    profiles: dict[str, Profile] = {}
    calls: dict[str, int] = {}

    def see(name: str, y: Tensor) -> None:
        if not torch.isfinite(y).all():
            raise ValueError(f"layer {name!r}: got NaN or infinite activations in calibration, expected finite ones")
        if name not in profiles:
            profiles[name] = Profile.empty(y.shape[1], tuple(y.shape[2:]), y.device)
        if profiles[name].size != tuple(y.shape[2:]):
            raise ValueError(
                f"layer {name!r}: got outputs of {profiles[name].size} and {tuple(y.shape[2:])} in calibration, "
                "expected one size; calibrate with images of one size"
            )
        profiles[name].add(y)
        calls[name] = calls.get(name, 0) + 1

    passes = 0
    with distributed.together(), _watch(layers, see), _checked(layers), _inference(model):
        for batch in batches(calibration, model, "profiling", show):
            forward(model, batch)
            passes += 1
    return _joined(profiles, calls, passes, _device(model))


def moments(
    model: nn.Module,
    calibration: Iterable,
    layers: Mapping[str, nn.Module],
    empty: Mapping[str, Moments],
    show: bool,
) -> tuple[Mapping[str, Moments], dict[str, Inputs]]:
    """Fills empty moments with the outputs of each layer; also the moments of its inputs."""
    inputs = {name: Inputs.empty(layer.in_channels, layer.weight.device) for name, layer in layers.items()}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        empty[name].add(y)
        inputs[name].add(x)

    visit(model, calibration, layers, see, "moments", show)
    sum_(empty)
    distributed.sum_(*(seen.outer for seen in inputs.values()))
    everywhere = distributed.gather({name: seen.positions for name, seen in inputs.items()})
    for name, seen in inputs.items():  # a rank may not have run a layer
        seen.positions = max(positions[name] for positions in everywhere)
    return empty, inputs


def visit(
    model: nn.Module,
    calibration: Iterable,
    layers: Mapping[str, nn.Module],
    see: Callable[[str, Tensor, Tensor], None],
    description: str,
    show: bool,
) -> None:
    """Calls ``see`` with the name, the input and the output of each layer, both (N, C, H, W)."""

    def hook(name: str) -> Callable:
        return lambda module, args, y: see(name, *(t if t.ndim == 4 else t.unsqueeze(0) for t in (args[0], y)))

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        with distributed.together(), _inference(model):
            for batch in batches(calibration, model, description, show):
                forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()


def visit_pairs(
    dense: nn.Module,
    student: nn.Module,
    calibration: Iterable,
    name: str,
    calls: int,
    see: Callable[[Tensor, Tensor], None],
    show: bool,
) -> None:
    """Calls ``see`` with the input of one layer in the student and its output in the dense model, call by call."""

    def run(model: nn.Module, batch: Any, inputs: bool) -> list[Tensor]:
        seen: list[Tensor] = []

        def keep(t: Tensor) -> None:
            t = t if t.ndim == 4 else t.unsqueeze(0)
            seen.append(t.clone() if calls > 1 else t)  # what follows may work in place
            if len(seen) == calls:
                raise _Seen

        layer = model.get_submodule(name)
        if inputs:
            handle = layer.register_forward_pre_hook(lambda module, args: keep(args[0]))
        else:
            handle = layer.register_forward_hook(lambda module, args, y: keep(y))
        try:
            with suppress(_Seen):
                forward(model, batch)
        finally:
            handle.remove()
        return seen

    with distributed.together(), _inference(dense), _inference(student):
        for batch in batches(calibration, dense, f"fitting {name}", show):
            for x, y in zip(run(student, batch, True), run(dense, batch, False), strict=True):
                see(x, y)


def count_flops(model: nn.Module, calibration: Iterable, layers: Mapping[str, nn.Module]) -> dict[str, int]:
    """FLOPs of each convolution for one sample, by a forward pass of the first batch; 0 where it does not run."""
    counts = dict.fromkeys(layers, 0)

    def hook(name: str) -> Callable:
        def count(conv: nn.Module, args: tuple, y: Tensor) -> None:
            grid = args[0] if conv.transposed else y  # every weight meets every position of this tensor once
            spatial = conv.weight.ndim - 2
            counts[name] += 2 * conv.weight.numel() * grid.shape[-spatial:].numel()

        return count

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        if layers:
            with distributed.together(), _inference(model):
                forward(model, next(batches(calibration, model)))
    finally:
        for handle in handles:
            handle.remove()
    return distributed.gather(counts)[0]


def input_sizes(
    model: nn.Module, calibration: Iterable, layers: Mapping[str, nn.Module]
) -> dict[str, list[tuple[int, ...]]]:
    """(C, ...) of the input of each layer's calls for one sample, by a forward pass of the first batch."""
    sizes: dict[str, list[tuple[int, ...]]] = {name: [] for name in layers}

    def hook(name: str) -> Callable:
        return lambda module, args: sizes[name].append(tuple(args[0].shape[1 - module.weight.ndim :]))

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        with distributed.together(), _inference(model):
            forward(model, next(batches(calibration, model)))
    finally:
        for handle in handles:
            handle.remove()
    return distributed.gather(sizes)[0]


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


def empty_moments(profile: Profile, regions: RegionMap, paired: bool = True, width: int | None = None) -> Moments:
    """Moments about the profile's region means; ``paired`` and ``width`` as for ``Moments.empty``."""
    labels = regions.labels.reshape(-1).to(profile.total.device)
    sums = torch.zeros(regions.count, profile.total.shape[1], dtype=torch.float64, device=labels.device)
    sums.index_add_(0, labels, profile.mean())
    counts = torch.bincount(labels, minlength=regions.count).clamp_min(1)
    return Moments.empty(labels, sums / counts[:, None], paired, width)


def batches(
    data: Iterable, model: nn.Module, description: str = "", show: bool = False, argument: str = "calibration"
) -> Iterator[Any]:
    """Inputs on the model's device: of each batch a tensor, the first of a tuple or list, or a dict of keywords."""
    if isinstance(data, Iterator):
        raise TypeError(
            f"{argument}: got the one-shot iterator {type(data).__name__}, expected data that can be read "
            "several times, such as a list of batches or a DataLoader"
        )
    device = _device(model)
    empty = True
    for batch in track(data, description, show):
        empty = False
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        if isinstance(batch, Mapping):
            yield {key: value.to(device) for key, value in batch.items()}
        elif isinstance(batch, Tensor):
            yield batch.to(device)
        else:
            raise TypeError(f"{argument}: got a batch of {type(batch).__name__}, expected a tensor, tuple or dict")
    if empty:
        raise ValueError(f"{argument}: got no batch, expected at least one")


def forward(model: nn.Module, batch: Any) -> Any:
    """What the model makes of one of the :func:`batches`."""
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _joined(profiles: dict[str, Profile], calls: Mapping[str, int], passes: int, device) -> dict[str, Profile]:
    """Sums over the ranks, which may have seen different layers; ``calls`` are those of all passes."""
    seen = {name: (p.total.shape[1], p.size, p.images, calls[name]) for name, p in profiles.items()}
    ranks = distributed.gather((passes, seen))
    joined: dict[str, Profile] = {}
    for name, (channels, size, *_) in (item for _, seen in ranks for item in seen.items()):
        if name not in joined:
            joined[name] = profiles.get(name) or Profile.empty(channels, size, device)
        if joined[name].size != size:
            raise ValueError(
                f"layer {name!r}: got outputs of {joined[name].size} and {size} on different ranks, expected one size; "
                "calibrate with images of one size"
            )
    for name, profile in joined.items():
        parts = [seen[name] for _, seen in ranks if name in seen]
        profile.images = sum(images for *_, images, _ in parts)
        profile.calls = -(-sum(count for *_, count in parts) // sum(passes for passes, _ in ranks))  # at least 1
        distributed.sum_(profile.total, profile.square)
    return joined


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


@contextmanager
def _watch(layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Callable:
        return lambda module, args, y: see(name, y if y.ndim == 4 else y.unsqueeze(0))

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _checked(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inputs that a layer cannot take are refused by its name, before it runs."""

    def hook(name: str) -> Callable:
        def check(conv: nn.Conv2d, args: tuple) -> None:
            x, weight = args[0], conv.weight
            if x.ndim not in (3, 4) or x.shape[-3] != conv.in_channels:
                raise ValueError(
                    f"layer {name!r}: got an input of shape {tuple(x.shape)}, expected (N, {conv.in_channels}, H, W)"
                )
            if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
                raise TypeError(f"layer {name!r}: got an input of {x.dtype}, expected {weight.dtype}")

        return check

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients."""
    with evaluation_mode(model), torch.no_grad():
        yield
