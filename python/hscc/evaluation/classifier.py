"""How good a classifier is: accuracy with its standard error, and F1."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..progress import track
from .paired import standard_error


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
    """Runs (images, labels) batches through a classifier, which keeps its modes of training.

    The largest of the outputs (N, classes) wins. Two classes may have one output (N, 1) or (N,), a logit: above 0 is
    the second class. Labels are class indices (N,).

    Raises:
        ValueError: no images, or another number of outputs or other labels than ``classes`` has.
        TypeError: outputs or labels that are no tensor.
    """
    from sklearn.metrics import f1_score

    predicted, wanted = [], []
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.inference_mode():
            for images, labels in track(batches, description, show_progress):
                wanted.append(_indices(labels, classes))
                predicted.append(_winners(model(images), len(labels), classes))
    finally:
        for module, training in modes:
            module.training = training
    if not sum(map(len, predicted)):
        raise ValueError("evaluate: got no images, expected at least one batch")
    predicted, wanted = torch.cat(predicted).numpy(), torch.cat(wanted).numpy()
    correct = predicted == wanted
    f1 = f1_score(wanted, predicted, labels=range(len(classes)), average=None, zero_division=0)
    return Evaluation(
        len(correct), float(correct.mean()), standard_error(correct), float(f1.mean()), tuple(map(float, f1))
    )


def _indices(labels: Tensor, classes: Sequence[str]) -> Tensor:
    """The labels as int64, when each is the index of a class."""
    expected = f"expected class indices (N,) of {reprlib.repr(tuple(classes))}"
    if not isinstance(labels, Tensor):
        raise TypeError(f"evaluate: got labels of type {type(labels).__name__}, {expected}")
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"evaluate: got labels {labels.dtype} {tuple(labels.shape)}, {expected}")
    labels = labels.long()
    wrong = labels[(labels < 0) | (labels >= len(classes))]
    if len(wrong):
        raise ValueError(f"evaluate: got label {wrong[0].item()}, {expected}")
    return labels


def _winners(outputs: Tensor, n: int, classes: Sequence[str]) -> Tensor:
    """The class of each of ``n`` images as int64 (n,)."""
    expected = f"expected {len(classes)} (classes {reprlib.repr(tuple(classes))})"
    if not isinstance(outputs, Tensor):
        raise TypeError(f"evaluate: got {type(outputs).__name__} as outputs, {expected} an image, in one tensor")
    if len(classes) == 2 and outputs.shape in ((n,), (n, 1)):
        return (outputs.reshape(n) > 0).long()
    if outputs.ndim != 2 or len(outputs) != n:
        raise ValueError(f"evaluate: got outputs of shape {tuple(outputs.shape)} for {n} images, {expected} an image")
    if outputs.shape[1] != len(classes):
        raise ValueError(f"evaluate: got {outputs.shape[1]} outputs, {expected}")
    return outputs.argmax(1)
