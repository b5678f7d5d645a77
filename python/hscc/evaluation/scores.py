"""A score in 0..1 of each sample, for any model of the same task: how the user says it, or agreement with dense."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..observe.data import Calibration, evaluation_mode
from ..observe.values import kind, tensors
from ..progress import track

Evaluate: TypeAlias = Callable[[nn.Module], Any] | Iterable
STAGE = "evaluating"


@dataclass
class Scores:
    """Asked of the dense model first, then of others in its place: their scores are of the same samples.

    Args:
        evaluate: a function that gives a model's scores; or batches, as for calibration. A tuple or list of two, whose
            second item is a tensor of class indices (N,) or (N, H, W), is scored by the share that is named right;
            other batches by the share of the dense model's answers that stays.
        data: says how the model is called.
    """

    evaluate: Evaluate
    data: Calibration
    answers: list[Tensor] = field(default_factory=list, init=False)  # of the dense model
    seen: list[tuple] = field(default_factory=list, init=False)  # what tells the batches apart
    count: int | None = field(default=None, init=False)

    def of(self, model: nn.Module) -> np.ndarray:
        """float64 (n,). Raises TypeError or ValueError for what are no scores of the samples seen first."""
        with evaluation_mode(model):
            if callable(self.evaluate):
                (scores,) = track([self.evaluate], STAGE, self.data.show)  # counted as a stage
                found = _scores(scores(model))
            else:
                found = self._of_batches(model)
        if self.count not in (None, len(found)):
            raise ValueError(f"evaluate: got {len(found)} scores, expected {self.count} as of the dense model")
        self.count = len(found)
        return found

    def _of_batches(self, model: nn.Module) -> np.ndarray:
        source = replace(self.data, data=self.evaluate, argument="evaluate")
        found, first = [], not self.seen
        with torch.no_grad():
            for index, batch in enumerate(source.track(source.readable(), STAGE)):
                labels = _labels(batch)
                x = source.inputs(batch)
                mark = tuple(float(t.double().sum()) for t in tensors((x, labels)))
                if first:
                    self.seen.append(mark)
                elif index >= len(self.seen) or not np.allclose(mark, self.seen[index], rtol=1e-9, equal_nan=True):
                    raise ValueError(
                        "evaluate: got other batches in a second pass, expected the same ones each time: a loader that "
                        "neither shuffles nor augments"
                    )
                answers = _answers(source.forward(model, x)).cpu()
                if labels is None and first:
                    self.answers.append(answers)
                wanted = self.answers[index] if labels is None else labels.cpu()
                if wanted.shape != answers.shape:
                    raise ValueError(f"evaluate: got labels {tuple(wanted.shape)} for answers {tuple(answers.shape)}")
                found.append((answers == wanted).double().reshape(len(answers), -1).mean(1))
        if not found:
            raise ValueError("evaluate: got no batch, expected at least one")
        return torch.cat(found).numpy()


def _labels(batch: Any) -> Tensor | None:
    """Of a batch (inputs, labels)."""
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor)
    return batch[1] if pair and not batch[1].is_floating_point() else None


def _answers(outputs: Any) -> Tensor:
    """The class of each sample, or of each position: int64 (N,) or (N, ...)."""
    if isinstance(outputs, Mapping) and len(outputs) == 1:
        (outputs,) = outputs.values()
    if not isinstance(outputs, Tensor) or outputs.ndim < 1:
        raise TypeError(
            f"evaluate: got outputs that are {kind(outputs)}, expected a tensor (N, classes, ...), or for evaluate a "
            "function that gives the scores"
        )
    if outputs.ndim == 1:
        return (outputs > 0).long()
    return (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(1)


def _scores(given: Any) -> np.ndarray:
    """What a function gave, as float64 (n,)."""
    expected = "expected the score of each sample, (n,) in 0..1"
    try:
        scores = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"evaluate: got {kind(given)}, {expected}") from error
    if scores.ndim != 1 or len(scores) < 2:
        raise ValueError(f"evaluate: got scores of shape {scores.shape}, {expected}, of at least two")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"evaluate: got scores from {scores.min():g} to {scores.max():g}, {expected}")
    return scores
