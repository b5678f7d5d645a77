"""Metrics of two classifiers on the same images, for the images as they are and for bootstrap resamples of them.

Every metric is made of sums over images: counts, gaps between confidence and correctness, placements. One matrix
product gives these sums for many resamples at once, the same ones for both models and all metrics. 10,000 images in 10
classes and 2,000 resamples take 0.4 s on one core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, vstack
from scipy.stats import norm, rankdata

from .outputs import Outputs

RESAMPLES = 2000
BINS = 15
OVERALL = ("accuracy", "macro F1", "macro precision", "macro recall", "macro AUC", "calibration error")
PER_CLASS = ("precision", "recall", "F1", "AUC")


@dataclass(frozen=True)
class Metrics:
    """Shares in 0..1, float64; [..., 0] is of the images as they are, each further one of a resample.

    ``overall`` by :data:`OVERALL`, each (1 + r,); ``per_class`` by :data:`PER_CLASS`, each (k, 1 + r). NaN where a
    metric does not exist: of a class none of whose images was drawn, the AUC where all were. Macro is the mean over
    the classes that have a value. A class that is never predicted has precision 0.
    """

    overall: dict[str, np.ndarray]
    per_class: dict[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """Two models on the same resamples; ``agreement`` (1 + r,) is the share of images where they choose the same."""

    before: Metrics
    after: Metrics
    agreement: np.ndarray


def measure(before: Outputs, after: Outputs, resamples: int = RESAMPLES) -> Measured:
    """All metrics of both; the same numbers each time."""
    same = csr_array(np.atleast_2d(before.predicted == after.predicted).astype(float))
    sparse, dense = zip(_tables(before), _tables(after), strict=True)
    rows, classes = sparse[0].shape[0], before.probabilities.shape[1]
    counts, placed = _sums([vstack([*sparse, same], "csr"), np.concatenate(dense)], resamples)
    of_model = [
        _metrics(counts[i * rows : (i + 1) * rows], placed[i * classes : (i + 1) * classes], len(before))
        for i in range(2)
    ]
    return Measured(*of_model, counts[-1] / len(before))


def interval(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Value, low and high of (1 + r,) values: the two-sided bias-corrected percentile interval (Efron, 1981).

    The correction matters to the calibration error, which is larger on resamples than on the images they come from.
    NaN where the value does not exist; resamples without one are left out.
    """
    values = values.round(12) + 0.0  # sums in another order; no negative zero
    value, resampled = float(values[0]), values[1:][np.isfinite(values[1:])]
    if np.isnan(value) or not len(resampled):
        return value, float("nan"), float("nan")
    below = np.mean(resampled < value) + np.mean(resampled == value) / 2
    bias = norm.ppf(np.clip(below, 0.5 / len(resampled), 1 - 0.5 / len(resampled)))
    levels = norm.cdf(2 * bias + norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2]))
    low, high = np.quantile(resampled, levels)
    return value, float(low), float(high)


def _tables(outputs: Outputs) -> tuple[csr_array, np.ndarray]:
    """What of each of n images is summed.

    Sparse (4 k + BINS, n): is of the class, is taken for it, both, the placement of an image of the class; then the
    gap between correctness and confidence in the bin of its confidence. Dense (k, n): the :func:`_placements`.
    """
    n, classes = outputs.probabilities.shape
    images, placements = np.arange(n), _placements(outputs)
    bins = np.clip(np.ceil(outputs.confidence * BINS).astype(int) - 1, 0, BINS - 1)  # (0, 1/15], (1/15, 2/15], ...

    def rows(index: np.ndarray, values: np.ndarray, number: int = classes) -> csr_array:
        return csr_array((values, (index, images)), (number, n))

    table = [
        rows(outputs.labels, np.ones(n)),
        rows(outputs.predicted, np.ones(n)),
        rows(outputs.labels, outputs.correct.astype(float)),
        rows(outputs.labels, placements[outputs.labels, images]),
        rows(bins, outputs.correct - outputs.confidence, BINS),
    ]
    return vstack(table, "csr"), placements


def _placements(outputs: Outputs) -> np.ndarray:
    """Of each image among those of the other kind, for each class against the rest, float64 (k, n) in 0..1.

    For an image of the class: the share of the rest that has a smaller probability of it; for one of the rest: the
    share of the class that has a larger one; a tie is half. Their mean over either kind is the AUC (DeLong, DeLong and
    Clarke-Pearson, 1988).
    """
    placed = np.zeros(outputs.probabilities.T.shape)
    for index, scores in enumerate(outputs.probabilities.T):
        own, ranks = outputs.labels == index, rankdata(scores)
        rest = ~own
        placed[index, own] = (ranks[own] - rankdata(scores[own])) / max(rest.sum(), 1)
        placed[index, rest] = 1 - (ranks[rest] - rankdata(scores[rest])) / max(own.sum(), 1)
    return placed


def _sums(tables: list, resamples: int, at_a_time: int = 2**20) -> list[np.ndarray]:
    """Each table (rows, n) summed over the images: (rows, 1 + resamples), the first without resampling."""
    n, generator = tables[0].shape[1], np.random.default_rng(0)
    found = [[table @ np.ones((n, 1))] for table in tables]
    step = max(at_a_time // n, 1)
    for start in range(0, resamples, step):
        number = min(step, resamples - start)
        draws = generator.integers(n, size=(number, n)) * number + np.arange(number)[:, None]
        times = np.bincount(draws.ravel(), minlength=n * number).reshape(n, number).astype(float)
        for own, table in zip(found, tables, strict=True):
            own.append(table @ times)
    return [np.concatenate(own, 1) for own in found]


def _metrics(counts: np.ndarray, placed: np.ndarray, n: int) -> Metrics:
    """From the sums (4 k + BINS, 1 + r) and (k, 1 + r) of :func:`_tables`.

    The AUC of a resample is its first order, the mean placements of both kinds around the AUC of all: what is left out
    falls with 1/n, and nothing has to be ranked again.
    """
    images, taken, hits, own, gaps = np.split(counts, [len(placed) * i for i in range(1, 5)])
    with np.errstate(invalid="ignore", divide="ignore"):
        there = np.where(images > 0, 1.0, np.nan)
        auc = own[:, :1] / images[:, :1]
        per_class = {
            "precision": there * hits / np.maximum(taken, 1),
            "recall": hits / images,
            "F1": there * 2 * hits / (images + taken),
            "AUC": (own / images + (placed - own) / (n - images) - auc).clip(0, 1),
        }
    macro = {f"macro {name}": _mean(values) for name, values in per_class.items()}
    overall = {"accuracy": hits.sum(0) / n, **macro, "calibration error": np.abs(gaps).sum(0) / n}
    return Metrics({name: overall[name] for name in OVERALL}, per_class)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the classes (k, 1 + r) that have a value; NaN where none has."""
    there = np.isfinite(values)
    number = there.sum(0)
    return np.where(number > 0, np.where(there, values, 0).sum(0) / np.maximum(number, 1), np.nan)
