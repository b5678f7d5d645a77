"""Whether a compressed classifier is still the same model: metrics with intervals, tests, verdicts, disagreements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from .metrics import Metrics, interval, measure
from .outputs import Outputs, collect
from .verdict import Answer, Verdict, check, judge_all, sentence, worst

Interval = tuple[float, float, float]  # value, low, high
CONFIDENCE = 0.95
SHOWN = 50  # disagreements in JSON


@dataclass(frozen=True)
class Metric:
    """Shares in 0..1 of both models and the change (after - before), each with a two-sided bootstrap interval."""

    name: str
    before: Interval
    after: Interval
    change: Interval


@dataclass(frozen=True)
class ClassMetrics:
    """``name`` of the class, its number of images, and its metrics; none without images."""

    name: str
    images: int
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class McNemar:
    """Images that only the first model gets right (``lost``), that only the second does (``won``), and the exact
    two-sided p of McNemar's test (1947) that both are as likely."""

    lost: int
    won: int
    p: float


@dataclass(frozen=True)
class Disagreement:
    """An image that the models put into different classes: indices, and how sure the compressed one is (0..1)."""

    index: int
    label: int
    before: int
    after: int
    confidence: float


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images, the dense one before, the compressed one after; :meth:`of` makes one.

    ``margin`` is in points (percent); confusions have a row a label and a column a choice; ``verdicts`` begins with the
    one on all images; ``disagreements`` are sorted by confidence, falling.
    """

    images: int
    classes: tuple[str, ...]
    margin: float
    confidence: float
    metrics: tuple[Metric, ...]
    per_class: tuple[ClassMetrics, ...]
    agreement: Interval
    mcnemar: McNemar
    confusion_before: tuple[tuple[int, ...], ...]
    confusion_after: tuple[tuple[int, ...], ...]
    verdicts: tuple[Verdict, ...]
    disagreements: tuple[Disagreement, ...]

    @staticmethod
    def of(
        dense: Outputs,
        outputs: Outputs,
        classes: Sequence[str],
        margin: float = 0.5,
        confidence: float = CONFIDENCE,
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> Comparison:
        """Compares outputs for the same n images, in k ``classes``.

        Args:
            margin: loss of accuracy that counts as none, in points.
            confidence: of the two-sided intervals, and of the verdicts' one-sided bounds.
            groups: columns of values, such as the site of each image, n each: every value gets a verdict.

        Raises ValueError for outputs of different images, numbers that do not fit, or groups of another length.
        """
        if dense.probabilities.shape != outputs.probabilities.shape or (dense.labels != outputs.labels).any():
            raise ValueError(f"compare: got {len(dense)} and {len(outputs)} outputs, expected those of the same images")
        if dense.probabilities.shape[1] != len(classes):
            raise ValueError(f"classes: got {len(classes)}, expected {dense.probabilities.shape[1]}")
        check(margin, confidence)
        measured = measure(dense, outputs)
        before, after = measured.before, measured.after
        counts = np.bincount(dense.labels, minlength=len(classes))
        per_class = tuple(
            ClassMetrics(name, int(count), _of_class(before, after, index, confidence) if count else ())
            for index, (name, count) in enumerate(zip(classes, counts, strict=True))
        )
        scopes = _scopes(dense.labels, classes, groups or {})
        return Comparison(
            images=len(dense),
            classes=tuple(classes),
            margin=margin,
            confidence=confidence,
            metrics=_changes(before.overall, after.overall, confidence),
            per_class=per_class,
            agreement=interval(measured.agreement, confidence),
            mcnemar=_mcnemar(dense.correct, outputs.correct),
            confusion_before=_confusion(dense),
            confusion_after=_confusion(outputs),
            verdicts=judge_all(dense.correct, outputs.correct, scopes, margin, confidence),
            disagreements=_disagreements(dense, outputs),
        )

    @property
    def verdict(self) -> str:
        """One sentence; no scope that is worse is left out."""
        return sentence(self.verdicts)

    @property
    def answer(self) -> Answer:
        """The worst of all verdicts: "equivalent" only where each is."""
        return worst(self.verdicts)

    def to_dict(self) -> dict:
        """Plain data for JSON; null for what does not exist, the first 50 disagreements."""
        per_class = [
            {"class": one.name, "images": one.images, "metrics": [asdict(m) for m in one.metrics] or None}
            for one in self.per_class
        ]
        shown = [asdict(one) for one in self.disagreements[:SHOWN]]
        return _plain({**asdict(self), "per_class": per_class, "verdict": self.verdict, "disagreements": shown})


def compare(
    dense: nn.Module,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: Sequence[str],
    *,
    margin: float = 0.5,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Comparison:
    """Runs both models over labelled (images, labels) batches, once, and compares them with a confidence of 0.95.

    Args:
        batches: images as the models want them, labels as class indices (N,).
        classes: names in the order of the outputs.
        margin, groups: as in :meth:`Comparison.of`.

    Raises what :func:`hscc.evaluation.outputs.collect` and :meth:`Comparison.of` raise.
    """
    check(margin, CONFIDENCE)
    return Comparison.of(*collect([dense, model], batches, classes), classes, margin, groups=groups)


def _changes(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], confidence: float
) -> tuple[Metric, ...]:
    def metric(name: str) -> Metric:
        values = (before[name], after[name], after[name] - before[name])
        return Metric(name, *(interval(one, confidence) for one in values))

    return tuple(map(metric, before))


def _of_class(before: Metrics, after: Metrics, index: int, confidence: float) -> tuple[Metric, ...]:
    own = ({name: values[index] for name, values in metrics.per_class.items()} for metrics in (before, after))
    return _changes(*own, confidence)


def _scopes(labels: np.ndarray, classes: Sequence[str], groups: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Which images (n,) each part is about: every class, then every value of the groups."""
    scopes = {f"class {name}": labels == index for index, name in enumerate(classes)}
    for column, values in groups.items():
        if len(values) != len(labels):
            raise ValueError(f"groups: got {len(values)} values of {column!r}, expected one for each of {len(labels)}")
        own = np.asarray(values, str)
        scopes |= {f"{column} = {value or '(none)'}": own == value for value in np.unique(own)}
    return scopes


def _mcnemar(before: np.ndarray, after: np.ndarray) -> McNemar:
    from scipy.stats import binomtest

    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    return McNemar(lost, won, float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0)


def _confusion(outputs: Outputs) -> tuple[tuple[int, ...], ...]:
    from sklearn.metrics import confusion_matrix

    classes = range(outputs.probabilities.shape[1])
    return tuple(map(tuple, confusion_matrix(outputs.labels, outputs.predicted, labels=classes).tolist()))


def _disagreements(dense: Outputs, outputs: Outputs) -> tuple[Disagreement, ...]:
    (differ,) = np.nonzero(dense.predicted != outputs.predicted)
    order = differ[np.argsort(-outputs.confidence[differ], kind="stable")]
    columns = (order, dense.labels[order], dense.predicted[order], outputs.predicted[order], outputs.confidence[order])
    return tuple(Disagreement(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def _plain(value: Any) -> Any:
    """Dicts, lists and scalars; NaN is None, as JSON has none."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
