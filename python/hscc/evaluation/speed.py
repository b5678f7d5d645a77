"""How fast models are, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..observe.data import Calibration, evaluation_mode

K = TypeVar("K")
TURNS, TURN = 7, 0.2  # of each model, seconds of one


def latency(
    models: Mapping[str, nn.Module], example: Tensor, seconds: float = 3.0, settle: float = 0.0
) -> dict[str, float]:
    """Median seconds of one forward pass of ``example`` (N, C, H, W); the models take turns, in slices of 50 ms, as a
    machine's speed changes with time and a server calls the same model again and again.

    For ``settle`` seconds each is called untimed before: threads of other runtimes still spin on a core that it needs.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        end = time.perf_counter() + seconds * len(models)
        while time.perf_counter() < end or not all(times.values()):
            for name, model in models.items():
                ready = time.perf_counter() + settle
                model(example)
                while time.perf_counter() < ready:
                    model(example)
                stop = time.perf_counter() + 0.05
                while (start := time.perf_counter()) < stop:
                    model(example)
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def in_turn(
    data: Calibration, places: Mapping[K, Callable[[], AbstractContextManager[nn.Module]]], images: int
) -> dict[K, float]:
    """Median milliseconds of a call of as many images of the first batch, for models that share their modules.

    Args:
        places: give each model for the time of a turn.
    """
    batch = cut(data.first(), images)
    times: dict[K, list[float]] = {name: [] for name in places}
    for _ in range(TURNS):
        for name, place in places.items():
            with place() as model, evaluation_mode(model):
                call = {"": lambda x, model=model: data.forward(model, x)}
                times[name].append(latency(call, batch, TURN)[""])
    return {name: 1e3 * statistics.median(own) for name, own in times.items()}


def cut(batch: Any, count: int) -> Any:
    """The first samples of a batch, where it is clear which they are."""
    if isinstance(batch, Tensor):
        return batch[:count]
    if isinstance(batch, Mapping):
        return {
            key: value[:count] if isinstance(value, Tensor) and value.ndim else value for key, value in batch.items()
        }
    return batch
