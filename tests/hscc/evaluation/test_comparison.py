from __future__ import annotations

import json

import hscc
import numpy as np
import pytest
import torch
from hscc.evaluation.comparison import SHOWN, Comparison, compare
from hscc.evaluation.outputs import Outputs
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix
from torch import nn

CLASSES = ("glioma", "meningioma", "notumor")


def choosing(choices: np.ndarray, labels: np.ndarray, seed: int = 0) -> Outputs:
    """Outputs of a model that makes these choices, each with a confidence of its own."""
    sure = np.random.default_rng(seed).uniform(0.5, 1, len(choices))
    probabilities = np.repeat((1 - sure)[:, None] / 2, 3, 1)
    probabilities[np.arange(len(choices)), choices] = sure
    return Outputs(probabilities, labels)


def pair(n: int = 3000, flips: float = 0.02) -> tuple[Outputs, Outputs]:
    """Two models that are right nine times in ten and choose anew in a share of the images."""
    generator = np.random.default_rng(0)
    labels = np.arange(n) % 3
    before = np.where(generator.random(n) < 0.9, labels, generator.integers(3, size=n))
    after = np.where(generator.random(n) < 1 - flips, before, generator.integers(3, size=n))
    return choosing(before, labels), choosing(after, labels, 1)


def test_a_model_against_itself() -> None:
    dense, _ = pair(9000)
    found = Comparison.of(dense, dense, CLASSES)
    assert found.verdict == "equivalent overall, in every class"
    assert found.answer == "equivalent"
    assert found.agreement == (1, 1, 1)
    assert (found.mcnemar.lost, found.mcnemar.won, found.mcnemar.p) == (0, 0, 1)
    assert found.disagreements == ()
    assert all(metric.change == (0, 0, 0) for metric in found.metrics)
    assert all(metric.before == metric.after for metric in found.metrics)


def test_numbers() -> None:
    dense, small = pair()
    found = Comparison.of(dense, small, CLASSES, margin=1.5, confidence=0.9)
    lost, won = (dense.correct & ~small.correct).sum(), (small.correct & ~dense.correct).sum()
    assert (found.mcnemar.lost, found.mcnemar.won) == (lost, won)
    assert found.mcnemar.p == pytest.approx(binomtest(int(lost), int(lost + won)).pvalue)
    assert found.agreement[0] == pytest.approx((dense.predicted == small.predicted).mean())
    np.testing.assert_array_equal(found.confusion_before, confusion_matrix(dense.labels, dense.predicted))
    np.testing.assert_array_equal(found.confusion_after, confusion_matrix(small.labels, small.predicted))
    accuracy = found.metrics[0]
    assert accuracy.name == "accuracy"
    assert accuracy.before[0] == pytest.approx(dense.correct.mean())
    assert accuracy.change[0] == pytest.approx((won - lost) / 3000)
    error = (small.correct.astype(float) - dense.correct).std() / 3000**0.5
    assert np.subtract(accuracy.change[1:], accuracy.change[0]) == pytest.approx(
        [-1.645 * error, 1.645 * error], rel=0.2
    )
    of_class = dense.labels == 1
    recall = found.per_class[1].metrics[1]
    assert (recall.name, found.per_class[1].images) == ("recall", 1000)
    assert recall.after[0] == pytest.approx(small.correct[of_class].mean())
    assert found.verdicts[2].drop == pytest.approx(-100 * recall.change[0])
    assert [one.scope for one in found.verdicts] == ["all", *(f"class {name}" for name in CLASSES)]
    assert {one.margin for one in found.verdicts} == {1.5}


def test_disagreements_begin_with_the_surest() -> None:
    dense, small = pair(flips=0.2)
    found = Comparison.of(dense, small, CLASSES)
    differ = np.flatnonzero(dense.predicted != small.predicted)
    assert sorted(one.index for one in found.disagreements) == differ.tolist()
    sure = [one.confidence for one in found.disagreements]
    assert sure == sorted(sure, reverse=True)
    first = found.disagreements[0]
    assert first.confidence == small.confidence[first.index] == small.confidence[differ].max()
    row = (dense.labels, dense.predicted, small.predicted)
    assert (first.label, first.before, first.after) == tuple(own[first.index] for own in row)
    assert len(found.to_dict()["disagreements"]) == SHOWN < len(differ)


def test_worse_in_one_class_only() -> None:
    """By twice the margin: the class and the sentence say so."""
    labels = np.arange(60_000) % 3
    after = np.where((labels == 0) & (np.random.default_rng(0).random(60_000) < 0.010), 1, labels)
    found = Comparison.of(choosing(labels, labels), choosing(after, labels, 1), CLASSES)
    assert [one.answer for one in found.verdicts] == ["equivalent", "worse", "equivalent", "equivalent"]
    assert found.verdict == "equivalent overall, worse in class glioma"
    assert found.answer == "worse"


def test_groups() -> None:
    """One site loses a twentieth of its images."""
    labels = np.arange(9000) % 3
    sites = np.where(np.arange(9000) < 6000, "A", "B")
    broken = (sites == "B") & (np.random.default_rng(0).random(9000) < 0.05)
    after = choosing(np.where(broken, (labels + 1) % 3, labels), labels, 1)
    found = Comparison.of(choosing(labels, labels), after, CLASSES, groups={"site": sites.tolist()})
    answers = {one.scope: one.answer for one in found.verdicts}
    assert (answers["site = A"], answers["site = B"]) == ("equivalent", "worse")
    assert {one.scope: one.images for one in found.verdicts}["site = B"] == 3000
    assert "site = B" in found.verdict
    unknown = Comparison.of(after, after, CLASSES, groups={"site": [""] * 9000})
    assert unknown.verdicts[-1].scope == "site = (none)"
    with pytest.raises(ValueError, match="groups: got 3 values of 'site', expected one for each of 9000"):
        Comparison.of(after, after, CLASSES, groups={"site": ["A"] * 3})


def test_the_dictionary_is_json() -> None:
    """As reports read it; a class without images has no metrics."""
    labels = np.array([0, 1] * 30)
    outputs = choosing(labels, labels)
    data = Comparison.of(outputs, choosing(1 - labels, labels), CLASSES).to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert list(data) == [
        "images", "classes", "margin", "confidence", "metrics", "per_class", "agreement", "mcnemar", "confusion_before",
        "confusion_after", "verdicts", "disagreements", "verdict",
    ]  # fmt: skip
    names = ["accuracy", "macro F1", "macro precision", "macro recall", "macro AUC", "calibration error"]
    assert [one["name"] for one in data["metrics"]] == names
    assert all(len(one[key]) == 3 for one in data["metrics"] for key in ("before", "after", "change"))
    assert [one["name"] for one in data["per_class"][0]["metrics"]] == ["precision", "recall", "F1", "AUC"]
    assert data["per_class"][2] == {"class": "notumor", "images": 0, "metrics": None}
    empty = data["verdicts"][3]
    assert empty == {
        "scope": "class notumor", "images": 0, "drop": None, "low": None, "high": None, "margin": 0.5,
        "answer": "not enough data", "needed": None,
    }  # fmt: skip
    assert data["verdict"].startswith("worse overall")
    assert data["mcnemar"]["lost"] == 60
    assert list(data["disagreements"][0]) == ["index", "label", "before", "after", "confidence"]


def test_compare_runs_both_once() -> None:
    torch.manual_seed(0)
    dense, batches = nn.Linear(4, 3), [(torch.randn(50, 4), torch.arange(50) % 3) for _ in range(4)]
    found = hscc.compare(dense, dense, iter(batches), CLASSES, margin=2.0, groups={"half": ["a", "b"] * 100})
    assert isinstance(found, hscc.Comparison)
    assert (found.images, found.margin, found.agreement[0]) == (200, 2.0, 1)
    assert [one.scope for one in found.verdicts][-2:] == ["half = a", "half = b"]
    assert dense.training


def test_wrong_input() -> None:
    dense, small = pair(30)

    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError

    with pytest.raises(ValueError, match=r"^margin: got 0, expected points"):
        compare(Never(), Never(), [(torch.zeros(1, 1), torch.zeros(1).long())], CLASSES, margin=0)
    with pytest.raises(ValueError, match=r"^confidence: got 95"):
        Comparison.of(dense, small, CLASSES, confidence=95)
    with pytest.raises(ValueError, match=r"^classes: got 2, expected 3"):
        Comparison.of(dense, small, CLASSES[:2])
    other = Outputs(small.probabilities, small.labels[::-1])
    with pytest.raises(ValueError, match=r"^compare: got 30 and 30 outputs, expected those of the same images"):
        Comparison.of(dense, other, CLASSES)
