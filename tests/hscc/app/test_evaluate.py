from __future__ import annotations

import numpy as np
import pytest
import torch
from hscc.app.evaluate import evaluate, latency, standard_error
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


def test_latency_takes_every_model() -> None:
    result = latency({"a": Constant(), "b": Constant()}, torch.zeros(1, 1), seconds=0.01)
    assert set(result) == {"a", "b"}
    assert min(result.values()) > 0
