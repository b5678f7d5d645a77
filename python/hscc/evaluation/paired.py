"""What the scores of the same images say about two models."""

from __future__ import annotations

import numpy as np


def standard_error(correct: np.ndarray, resamples: int = 2000) -> float:
    """Bootstrap standard error of the mean of ``correct`` (n,), the same each time; 0 with nothing to resample."""
    from scipy.stats import bootstrap

    if len(correct) < 2:
        return 0.0
    options = {"n_resamples": resamples, "batch": 100, "method": "percentile", "random_state": 0}
    return float(bootstrap((correct.astype(np.float32),), np.mean, **options).standard_error)
