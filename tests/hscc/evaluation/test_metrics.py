"""Metrics against scikit-learn, on the images and on resamples of them; how often the intervals are right."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hscc.evaluation import metrics
from hscc.evaluation.metrics import BINS, OVERALL, PER_CLASS, interval, measure
from hscc.evaluation.outputs import Outputs
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score


def made(n: int, classes: int = 3, seed: int = 0, noise: float = 0.5) -> tuple[Outputs, Outputs]:
    """Two models that are right about nine times in ten and differ a little; some scores are tied."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(classes, n, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    logits = generator.normal(size=(n, classes)) + 2.5 * np.eye(classes)[labels]
    return tuple(
        Outputs(np.exp(one) / np.exp(one).sum(1, keepdims=True), labels)
        for one in (logits.round(1), logits + noise * generator.normal(size=(n, classes)))
    )


def picked(outputs: Outputs, images: np.ndarray) -> Outputs:
    return Outputs(outputs.probabilities[images], outputs.labels[images])


def calibration_error(outputs: Outputs) -> float:
    """As Guo et al. (2017) write it, bin by bin."""
    found = 0.0
    for i in range(BINS):
        chosen = (outputs.confidence > i / BINS) & (outputs.confidence <= (i + 1) / BINS)
        if chosen.any():
            found += chosen.mean() * abs(outputs.correct[chosen].mean() - outputs.confidence[chosen].mean())
    return found


def by_sklearn(outputs: Outputs) -> tuple[list[float], np.ndarray]:
    """In the order of OVERALL, and of PER_CLASS (4, k)."""
    classes = range(outputs.probabilities.shape[1])
    precision, recall, f1, _ = precision_recall_fscore_support(
        outputs.labels, outputs.predicted, labels=classes, zero_division=0
    )
    auc = np.array([roc_auc_score(outputs.labels == i, outputs.probabilities[:, i]) for i in classes])
    accuracy = accuracy_score(outputs.labels, outputs.predicted)
    overall = [accuracy, f1.mean(), precision.mean(), recall.mean(), auc.mean(), calibration_error(outputs)]
    return overall, np.array([precision, recall, f1, auc])


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_values_are_scikit_learns(classes: int) -> None:
    for outputs, found in zip(made(500, classes), ("before", "after"), strict=True):
        own = getattr(measure(*made(500, classes), resamples=2), found)
        overall, per_class = by_sklearn(outputs)
        np.testing.assert_allclose([own.overall[name][0] for name in OVERALL], overall, rtol=1e-12)
        np.testing.assert_allclose([own.per_class[name][:, 0] for name in PER_CLASS], per_class, rtol=1e-12)


def test_resamples_are_those_of_the_images() -> None:
    """Each number of a resample is scikit-learn's on the images drawn; the AUC's is its first order."""
    before, after = made(400)
    measured = measure(before, after, resamples=5)
    drawn = np.random.default_rng(0).integers(400, size=(5, 400))
    for i, images in enumerate(drawn, 1):
        for outputs, own in ((before, measured.before), (after, measured.after)):
            overall, per_class = by_sklearn(picked(outputs, images))
            np.testing.assert_allclose(
                [own.overall[name][i] for name in OVERALL if "AUC" not in name], overall[:4] + overall[5:], rtol=1e-10
            )
            for name, expected in zip(PER_CLASS, per_class, strict=True):
                np.testing.assert_allclose(own.per_class[name][:, i], expected, rtol=2e-3 if name == "AUC" else 1e-10)
        same = before.predicted[images] == after.predicted[images]
        assert measured.agreement[i] == pytest.approx(same.mean())


def test_how_many_at_a_time_changes_nothing_but_the_draws(monkeypatch) -> None:
    before, after = made(300)
    at_once = measure(before, after, 50).after.overall["accuracy"]
    monkeypatch.setattr(metrics._sums, "__defaults__", (1000,))
    in_parts = measure(before, after, 50).after.overall["accuracy"]
    assert at_once.shape == in_parts.shape == (51,)
    assert at_once[0] == in_parts[0]
    assert at_once.std() == pytest.approx(in_parts.std(), rel=0.5)


def test_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    outputs = Outputs(probabilities, np.array([0, 0, 1, 1]))
    own = measure(outputs, outputs, 1).before
    np.testing.assert_allclose(own.per_class["precision"][:, 0], [2 / 3, 1])
    np.testing.assert_allclose(own.per_class["recall"][:, 0], [1, 1 / 2])
    np.testing.assert_allclose(own.per_class["F1"][:, 0], [4 / 5, 2 / 3])
    np.testing.assert_allclose(own.per_class["AUC"][:, 0], [3 / 4, 3 / 4])  # of four pairs one is the wrong way round
    assert own.overall["accuracy"][0] == 3 / 4
    assert own.overall["calibration error"][0] == pytest.approx((0.1 + 0.4 + 0.2 + 0.7) / 4)


def test_a_class_without_images_and_one_that_is_rarely_drawn() -> None:
    """Of four classes one has no image, one a single one."""
    labels = np.array([0] * 20 + [1] * 20 + [2])
    logits = np.random.default_rng(0).normal(size=(41, 4)) + 2 * np.eye(4)[labels]
    outputs = Outputs(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = measure(outputs, outputs, 200).before
        spans = {name: interval(own.per_class[name][2], 0.95) for name in PER_CLASS}
        nothing = interval(own.per_class["recall"][3], 0.95)
    for name in PER_CLASS:
        assert np.isnan(own.per_class[name][3]).all()
        assert 0.2 < np.isnan(own.per_class[name][2]).mean() < 0.5  # 1/e of the resamples
        assert np.isfinite(own.overall[f"macro {name}"]).all()
        assert np.isfinite(spans[name]).all()
    assert np.isnan(nothing).all()
    three = np.nanmean(own.per_class["recall"][:, 0])
    assert own.overall["macro recall"][0] == pytest.approx(three)


def test_one_class_alone_has_no_auc() -> None:
    outputs = Outputs(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 0]))
    own = measure(outputs, outputs, 5).before
    assert np.isnan(own.overall["macro AUC"]).all()
    assert own.overall["macro recall"][0] == 1


def test_intervals_cover_as_often_as_they_say() -> None:
    """Of a population of 100,000 images, 300 samples of 400; 0.95 of 300 has a standard error of 0.0126."""
    everything = made(100_000, seed=1)
    true = measure(*everything, resamples=1)
    names = ("accuracy", "macro F1", "macro AUC")
    covered = {(name, change): 0 for name in names for change in (False, True)}
    generator = np.random.default_rng(2)
    for _ in range(300):
        images = generator.integers(100_000, size=400)
        sample = measure(*(picked(one, images) for one in everything), resamples=400)
        for name, change in covered:
            low, high = interval(_values(sample, name, change), 0.95)[1:]
            covered[name, change] += low <= _values(true, name, change)[0] <= high
    for key, count in covered.items():
        assert 0.91 <= count / 300 <= 0.985, (key, count)


def _values(measured, name: str, change: bool) -> np.ndarray:
    return measured.after.overall[name] - (measured.before.overall[name] if change else 0)


def test_the_interval_is_around_the_value() -> None:
    """The calibration error of resamples lies above that of the images: percentiles alone would leave it out."""
    generator = np.random.default_rng(0)
    sure = generator.uniform(0.5, 1, 300)
    outputs = Outputs(np.stack([sure, 1 - sure], 1), (generator.random(300) > sure).astype(int))  # well calibrated
    values = measure(outputs, outputs).before.overall["calibration error"]
    value, low, high = interval(values, 0.95)
    assert np.mean(values[1:] > value) > 0.65
    assert low <= value <= high <= np.quantile(values[1:], 0.9)
    assert interval(np.zeros(2001), 0.95) == (0, 0, 0)
