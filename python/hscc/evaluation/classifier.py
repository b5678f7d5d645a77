"""How good a classifier is: accuracy with its standard error, and F1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .outputs import Outputs, collect
from .paired import standard_error


@dataclass(frozen=True)
class Evaluation:
    """Shares in 0..1; ``standard_error`` is the bootstrap's, ``class_f1`` in the order of the outputs."""

    images: int
    accuracy: float
    standard_error: float
    macro_f1: float
    class_f1: tuple[float, ...]

    @classmethod
    def of(cls, outputs: Outputs) -> Evaluation:
        from sklearn.metrics import f1_score

        classes, correct = range(outputs.probabilities.shape[1]), outputs.correct
        f1 = f1_score(outputs.labels, outputs.predicted, labels=classes, average=None, zero_division=0)
        error = standard_error(correct)
        return cls(len(outputs), float(correct.mean()), error, float(f1.mean()), tuple(map(float, f1)))


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: Sequence[str],
    *,
    description: str = "evaluating",
    show_progress: bool = False,
) -> Evaluation:
    """Runs (images, labels) batches through a classifier; takes and raises what :func:`outputs.collect` does."""
    return Evaluation.of(*collect([model], batches, classes, description=description, show_progress=show_progress))
