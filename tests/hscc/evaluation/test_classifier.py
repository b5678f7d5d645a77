from __future__ import annotations

import numpy as np
import pytest
import torch
from hscc.evaluation.classifier import evaluate
from hscc.evaluation.paired import standard_error
from hscc.evaluation.speed import latency
from torch import nn


class Constant(nn.Module):
    """Answers class 1 whatever it sees."""

    def forward(self, x):
        return torch.tensor([0.0, 1.0, 0.0]).expand(len(x), 3)


def test_numbers_by_hand() -> None:
    labels = torch.tensor([1, 1, 1, 0, 2, 1, 1, 0])
    result = evaluate(Constant(), zip(torch.zeros(8, 1).split(3), labels.split(3), strict=True), ("a", "b", "c"))
    assert result.images == 8
    assert result.accuracy == 5 / 8
    assert result.class_f1 == pytest.approx((0.0, 2 * 5 / (2 * 5 + 3), 0.0))
    assert result.macro_f1 == pytest.approx(sum(result.class_f1) / 3)


def test_standard_error_is_the_binomial_one() -> None:
    correct = np.arange(2000) % 20 != 0
    assert standard_error(correct) == pytest.approx((0.95 * 0.05 / 2000) ** 0.5, rel=0.1)
    assert standard_error(correct) == standard_error(correct)
    assert standard_error(np.array([True])) == 0.0


def test_no_images() -> None:
    with pytest.raises(ValueError, match="evaluate: got no images"):
        evaluate(Constant(), [], ("a",))
    with pytest.raises(ValueError, match="evaluate: got no images"):
        evaluate(Constant(), [(torch.zeros(0, 1), torch.zeros(0).long())], ("a", "b", "c"))


class Gives(nn.Module):
    """Answers the same whatever it sees; has a part that stays in eval mode."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer, self.frozen = answer, nn.BatchNorm1d(1).eval()

    def forward(self, x):
        return self.answer


LABELS = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_logit_for_two_classes(shape: tuple[int, ...]) -> None:
    logits = torch.tensor([-3.0, 0.1, 20.0, 0.0])
    result = evaluate(Gives(logits.view(shape)), [(torch.zeros(4, 1), LABELS)], ("a", "b"))
    assert result.accuracy == 1
    assert result.class_f1 == (1, 1)


@pytest.mark.parametrize(
    ("outputs", "classes", "message"),
    [
        (torch.zeros(4, 3), "ab", r"got 3 outputs, expected 2 \(classes \('a', 'b'\)\)"),
        (torch.zeros(4, 2), "abc", r"got 2 outputs, expected 3 \(classes \('a', 'b', 'c'\)\)"),
        (torch.zeros(4, 1), "abc", r"got 1 outputs, expected 3 \(classes"),
        (torch.zeros(4, 1000), "ab", "got 1000 outputs, expected 2"),
        (
            torch.zeros(4, 2),
            [f"{i}" for i in range(1000)],
            r"got 2 outputs, expected 1000 \(classes \('0', .*\.\.\.\)\)",
        ),
        (torch.zeros(4), "abc", r"got outputs of shape \(4,\) for 4 images, expected 3 \(classes"),
        (torch.zeros(2), "ab", r"got outputs of shape \(2,\) for 4 images"),
        (torch.zeros(()), "ab", r"got outputs of shape \(\) for 4 images"),
        (torch.zeros(1, 2), "ab", r"got outputs of shape \(1, 2\) for 4 images"),
        (torch.zeros(4, 2, 1, 1), "ab", r"got outputs of shape \(4, 2, 1, 1\) for 4 images"),
        ({"logits": torch.zeros(4, 2)}, "ab", r"got dict as outputs, expected 2 \(classes"),
        ((torch.zeros(4, 2), None), "ab", "got tuple as outputs"),
        (None, "ab", "got NoneType as outputs"),
    ],
)
def test_outputs_that_do_not_fit_the_classes(outputs, classes, message: str) -> None:
    model = Gives(outputs).train()
    model.frozen.eval()
    with pytest.raises((ValueError, TypeError), match=f"^evaluate: {message}"):
        evaluate(model, [(torch.zeros(4, 1), LABELS)], [*classes])
    assert model.training
    assert not model.frozen.training


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2, 0]), r"got label 2, expected class indices \(N,\) of \('a', 'b'\)"),
        (torch.tensor([0, -1, 1, 0]), "got label -1, expected"),
        (torch.tensor([0, 300, 1, 0], dtype=torch.uint16), "got label 300, expected"),
        (torch.tensor([0.0, 0.5, 1.0, 0.0]), r"got labels torch.float32 \(4,\), expected"),
        (torch.eye(2)[LABELS], r"got labels torch.float32 \(4, 2\), expected"),
        (LABELS[:, None], r"got labels torch.int64 \(4, 1\), expected"),
        (["a", "b", "b", "a"], "got labels of type list, expected"),
    ],
)
def test_labels_that_are_no_class(labels, message: str) -> None:
    model = Gives(torch.zeros(4, 2)).train()
    with pytest.raises((ValueError, TypeError), match=f"^evaluate: {message}"):
        evaluate(model, [(torch.zeros(4, 1), labels)], ("a", "b"))
    assert model.training


def test_modes_come_back_whatever_happens() -> None:
    model = Gives(torch.zeros(4, 2)).train()
    model.frozen.eval()
    evaluate(model, [(torch.zeros(4, 1), LABELS)], ("a", "b"))
    assert (model.training, model.frozen.training) == (True, False)

    def broken():
        raise RuntimeError("no more images")
        yield

    with pytest.raises(RuntimeError, match="no more images"):
        evaluate(model, broken(), ("a", "b"))
    assert (model.training, model.frozen.training) == (True, False)


def test_latency_takes_every_model() -> None:
    result = latency({"a": Constant(), "b": Constant()}, torch.zeros(1, 1), seconds=0.01)
    assert set(result) == {"a", "b"}
    assert min(result.values()) > 0
