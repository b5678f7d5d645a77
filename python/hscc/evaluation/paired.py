"""What the scores of the same images say about two models."""

from __future__ import annotations

import numpy as np

RESAMPLES = 10_000


def standard_error(correct: np.ndarray, resamples: int = 2000) -> float:
    """Bootstrap standard error of the mean of ``correct`` (n,), the same each time; 0 with nothing to resample."""
    from scipy.stats import bootstrap

    if len(correct) < 2:
        return 0.0
    options = {"n_resamples": resamples, "batch": 100, "method": "percentile", "random_state": 0}
    return float(bootstrap((correct.astype(np.float32),), np.mean, **options).standard_error)


def bounds(before: np.ndarray, after: np.ndarray, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper bound, each at ``confidence``, of the mean drop ``before - after`` of scores (n,).

    A paired bootstrap, the same each time, smoothed as Agresti and Coull (1998) smooth Wald's interval: two images more
    are lost and two more are won. Without them ten images that agree would prove that no image ever differs; with them
    the bound of n images of 0 and 1 without any difference is near 3/n, the exact one. They count fully for scores of 0
    and 1, else as much as the largest difference seen. How often the bounds fail is in ``docs/math.md``.
    """
    lost = np.asarray(before, float) - np.asarray(after, float)
    binary = np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all()
    reach = 1.0 if binary or not lost.any() else float(np.abs(lost).max())
    values, counts = np.unique(np.append(lost, (reach, reach, -reach, -reach)), return_counts=True)
    n = len(lost) + 4
    if len(values) < 50:  # as with scores of 0 and 1: how often each value is drawn is enough
        means = np.random.default_rng(0).multinomial(n, counts / n, RESAMPLES) @ values / n
    else:
        means = _means(np.repeat(values, counts))
    low, high = np.quantile(means, (1 - confidence, confidence))
    return float(low), float(high)


def _means(values: np.ndarray, at_a_time: int = 100) -> np.ndarray:
    """Of each resample of ``values`` (n,)."""
    generator, n = np.random.default_rng(0), len(values)
    draws = (values[generator.integers(n, size=(at_a_time, n))].mean(1) for _ in range(RESAMPLES // at_a_time))
    return np.concatenate([*draws])
