"""How fast models are, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def latency(models: Mapping[str, nn.Module], example: Tensor, seconds: float = 3.0) -> dict[str, float]:
    """Median seconds of one forward pass of ``example`` (N, C, H, W); the models take turns, in slices of 50 ms, as a
    machine's speed changes with time and a server calls the same model again and again."""
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        end = time.perf_counter() + seconds * len(models)
        while time.perf_counter() < end:
            for name, model in models.items():
                model(example)
                stop = time.perf_counter() + 0.05
                while (start := time.perf_counter()) < stop:
                    model(example)
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
