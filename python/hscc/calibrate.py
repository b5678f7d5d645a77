"""Runs calibration data through a model and gathers statistics by forward hooks that always come off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from .progress import track
from .regions import RegionMap
from .stats import Moments, Profile


class _Seen(Exception):
    """Ends a forward pass early: all that was asked for has been seen."""


def profile(model: nn.Module, calibration: Iterable, layers: Mapping[str, nn.Module], show: bool) -> dict[str, Profile]:
    """Position-wise moments of each layer's output, in the order in which the layers run.

    Layers that never run are absent. Raises ValueError for an empty loader, NaN or infinite activations and
    outputs whose size changes.
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
    with _watch(layers, see), _inference(model):
        for batch in track(batches(calibration, model), "profiling", show):
            _forward(model, batch)
            passes += 1
    for name, seen in profiles.items():
        seen.calls = calls[name] // passes
    return profiles


def moments(
    model: nn.Module,
    calibration: Iterable,
    layers: Mapping[str, nn.Module],
    empty: Mapping[str, Moments],
    show: bool,
) -> Mapping[str, Moments]:
    """Fills empty moments with the outputs of each layer."""
    with _watch(layers, lambda name, y: empty[name].add(y)), _inference(model):
        for batch in track(batches(calibration, model), "moments", show):
            _forward(model, batch)
    return empty


def paired_moments(
    dense: nn.Module,
    student: nn.Module,
    calibration: Iterable,
    name: str,
    calls: int,
    empty: Moments,
    show: bool,
) -> Moments:
    """Moments of one layer's outputs in the student (computable) against those in the dense model (wanted)."""

    def run(model: nn.Module, batch: Any) -> list[Tensor]:
        outputs: list[Tensor] = []

        def see(_: str, y: Tensor) -> None:
            outputs.append(y)
            if len(outputs) == calls:
                raise _Seen

        with _watch({name: model.get_submodule(name)}, see):
            _forward(model, batch)
        return outputs

    with _inference(dense), _inference(student):
        for batch in track(batches(calibration, dense), f"fitting {name}", show):
            for x, y in zip(run(student, batch), run(dense, batch), strict=True):
                empty.add(x, y)
    return empty


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
            with _inference(model):
                _forward(model, next(iter(batches(calibration, model))))
    finally:
        for handle in handles:
            handle.remove()
    return counts


def empty_moments(profile: Profile, regions: RegionMap) -> Moments:
    """Moments about the profile's region means."""
    labels = regions.labels.reshape(-1).to(profile.total.device)
    sums = torch.zeros(regions.count, profile.total.shape[1], dtype=torch.float64, device=labels.device)
    sums.index_add_(0, labels, profile.mean())
    counts = torch.bincount(labels, minlength=regions.count).clamp_min(1)
    return Moments.empty(labels, sums / counts[:, None])


def batches(calibration: Iterable, model: nn.Module) -> Iterator[Any]:
    """Inputs on the model's device: of each batch a tensor, the first of a tuple or list, or a dict of keywords."""
    if iter(calibration) is calibration:
        raise TypeError(
            f"calibration: got the one-shot iterator {type(calibration).__name__}, expected data that can be read "
            "several times, such as a list of batches or a DataLoader"
        )
    tensor = next((t for t in (*model.parameters(), *model.buffers())), torch.empty(0))
    empty = True
    for batch in calibration:
        empty = False
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        if isinstance(batch, Mapping):
            yield {key: value.to(tensor.device) for key, value in batch.items()}
        elif isinstance(batch, Tensor):
            yield batch.to(tensor.device)
        else:
            raise TypeError(f"calibration: got a batch of {type(batch).__name__}, expected a tensor, tuple or dict")
    if empty:
        raise ValueError("calibration: got no batch, expected at least one")


def _forward(model: nn.Module, batch: Any) -> None:
    with suppress(_Seen):
        model(**batch) if isinstance(batch, Mapping) else model(batch)


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
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
