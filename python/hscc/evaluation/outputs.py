"""What classifiers answer to labelled images: the one pass that all of this room's numbers come from."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..observe.data import evaluation_mode
from ..progress import track


@dataclass(frozen=True)
class Outputs:
    """Answers to n images in k classes: ``probabilities`` float64 (n, k), rows add up to 1; ``labels`` int64 (n,)."""

    probabilities: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> np.ndarray:
        """The class of the largest output, int64 (n,)."""
        return self.probabilities.argmax(1)

    @property
    def correct(self) -> np.ndarray:
        """bool (n,)."""
        return self.predicted == self.labels

    @property
    def confidence(self) -> np.ndarray:
        """The largest probability, float64 (n,)."""
        return self.probabilities.max(1)


def collect(
    models: Sequence[nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: Sequence[str],
    *,
    description: str = "evaluating",
    show_progress: bool = False,
) -> tuple[Outputs, ...]:
    """Runs (images, labels) batches through classifiers, which keep their modes of training; of each its outputs.

    Every model gets the same batch before the next is read, so a shuffled or augmented loader leaves them comparable.
    The largest of the outputs (N, classes), logits, wins. Two classes may have one output (N, 1) or (N,), a logit:
    above 0 is the second class. Labels are class indices (N,).

    Raises:
        ValueError: no images, another number of outputs or other labels than ``classes`` has, or outputs that are NaN
            or infinite.
        TypeError: outputs or labels that are no tensor.
    """
    labels: list[Tensor] = []
    found: list[list[Tensor]] = [[] for _ in models]
    with evaluation_mode(*models), torch.inference_mode():
        for images, wanted in track(batches, description, show_progress):
            labels.append(_indices(wanted, classes))
            for model, own in zip(models, found, strict=True):
                own.append(_probabilities(model(images), len(wanted), classes))
    if not sum(map(len, labels)):
        raise ValueError("evaluate: got no images, expected at least one batch")
    true = torch.cat(labels).numpy()
    return tuple(Outputs(torch.cat(own).numpy(), true) for own in found)


def _indices(labels: Tensor, classes: Sequence[str]) -> Tensor:
    """The labels as int64, when each is the index of a class."""
    expected = f"expected class indices (N,) of {reprlib.repr(tuple(classes))}"
    if not isinstance(labels, Tensor):
        raise TypeError(f"evaluate: got labels of type {type(labels).__name__}, {expected}")
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"evaluate: got labels {labels.dtype} {tuple(labels.shape)}, {expected}")
    labels = labels.long().cpu()
    wrong = labels[(labels < 0) | (labels >= len(classes))]
    if len(wrong):
        raise ValueError(f"evaluate: got label {wrong[0].item()}, {expected}")
    return labels


def _probabilities(outputs: Tensor, n: int, classes: Sequence[str]) -> Tensor:
    """Of each of ``n`` images as float64 (n, classes)."""
    expected = f"expected {len(classes)} (classes {reprlib.repr(tuple(classes))})"
    if not isinstance(outputs, Tensor):
        raise TypeError(f"evaluate: got {type(outputs).__name__} as outputs, {expected} an image, in one tensor")
    if len(classes) == 2 and outputs.shape in ((n,), (n, 1)):
        outputs = nn.functional.pad(outputs.reshape(n, 1), (1, 0))  # the softmax of (0, x) is the sigmoid of x
    if outputs.ndim != 2 or len(outputs) != n:
        raise ValueError(f"evaluate: got outputs of shape {tuple(outputs.shape)} for {n} images, {expected} an image")
    if outputs.shape[1] != len(classes):
        raise ValueError(f"evaluate: got {outputs.shape[1]} outputs, {expected}")
    broken = int((~outputs.isfinite()).any(1).sum())
    if broken:
        raise ValueError(f"evaluate: got outputs of {broken} images that are NaN or infinite, expected finite ones")
    return outputs.cpu().double().softmax(1)
