"""Where time goes: each convolution alone, dense and compressed, on the input that it gets in the dense network."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...report import Report

SECONDS, LEAST = 2.0, 5  # of all layers together; calls of each


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of all calls of a layer in one pass, and how many times fewer FLOPs it has."""

    name: str
    dense_ms: float
    ms: float
    reduction: float

    @property
    def speedup(self) -> float:
        return self.dense_ms / self.ms

    @property
    def eta(self) -> float:
        """Speed-up over FLOP reduction."""
        return self.speedup / self.reduction


def measure(dense: nn.Module, model: nn.Module, report: Report, x: Tensor, seconds: float) -> tuple[LayerTime, ...]:
    """Times the layers of the report one by one on what reaches them when the dense model gets ``x`` (N, C, H, W).

    The two take turns until the layer has had its share of ``seconds``, at least five times each; medians. ReLUs that
    a kernel applies itself are in its time. Layers that no pass reaches are left out; parts of a layer of another form
    count together.
    """
    there, sums = dict(dense.named_modules()), {}
    for layer in report.layers:
        name = layer.name
        while name not in there:
            name = name.rpartition(".")[0]
        before, after = sums.get(name, (0, 0))
        sums[name] = before + layer.dense_flops, after + layer.flops
    reductions = {name: before / max(after, 1) for name, (before, after) in sums.items()}
    inputs, calls = _inputs(dense, [*reductions], x.to(next(dense.parameters()).device))
    found = []
    for name, own in inputs.items():
        pair = dense.get_submodule(name), model.get_submodule(name)
        before, after = _medians(*pair, own, seconds / len(inputs))
        found.append(LayerTime(name, 1e3 * calls[name] * before, 1e3 * calls[name] * after, reductions[name]))
    return tuple(found)


def _inputs(model: nn.Module, names: list[str], x: Tensor) -> tuple[dict[str, Tensor], Counter[str]]:
    """What each layer gets first, in the order of the pass, and how often it is called."""
    inputs: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def before(name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            calls[name] += 1
            if args:
                inputs.setdefault(name, args[0])

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(before(name)) for name in names]
    try:
        with torch.inference_mode():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, calls


def _medians(dense: nn.Module, other: nn.Module, x: Tensor, seconds: float) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for module in (dense, other):
            module.forward(x)  # without hooks of the user's
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times[1]) < LEAST:
            for module, own in zip((dense, other), times, strict=True):
                start = time.perf_counter()
                module.forward(x)
                if x.is_cuda:
                    torch.cuda.synchronize()
                own.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])
