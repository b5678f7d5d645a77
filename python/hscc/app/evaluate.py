"""How good and how fast a classifier is: accuracy with its standard error, F1, and latency side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..progress import track


@dataclass(frozen=True)
class Evaluation:
    """Shares in 0..1; ``standard_error`` is the bootstrap's, ``class_f1`` in the order of the outputs."""

    images: int
    accuracy: float
    standard_error: float
    macro_f1: float
    class_f1: tuple[float, ...]


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: Sequence[str],
    *,
    description: str = "evaluating",
    show_progress: bool = False,
) -> Evaluation:
    """Runs (images, labels) batches through a classifier; raises ValueError when there is none."""
    from sklearn.metrics import f1_score

    predicted, wanted = [], []
    training = model.training
    model.eval()
    with torch.inference_mode():
        for images, labels in track(batches, description, show_progress):
            predicted.append(model(images).argmax(1))
            wanted.append(labels)
    model.train(training)
    if not predicted:
        raise ValueError("evaluate: got no images, expected at least one batch")
    predicted, wanted = torch.cat(predicted).numpy(), torch.cat(wanted).numpy()
    correct = predicted == wanted
    f1 = f1_score(wanted, predicted, labels=range(len(classes)), average=None, zero_division=0)
    return Evaluation(
        len(correct), float(correct.mean()), standard_error(correct), float(f1.mean()), tuple(map(float, f1))
    )


def standard_error(correct: np.ndarray, resamples: int = 2000) -> float:
    """Bootstrap standard error of the mean of ``correct`` (n,), the same each time; 0 with nothing to resample."""
    from scipy.stats import bootstrap

    if len(correct) < 2:
        return 0.0
    options = {"n_resamples": resamples, "batch": 100, "method": "percentile", "random_state": 0}
    return float(bootstrap((correct.astype(np.float32),), np.mean, **options).standard_error)


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
