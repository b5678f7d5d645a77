from __future__ import annotations

import numpy as np
import pytest
import torch
from hscc.evaluation.outputs import Outputs, collect
from torch import nn

LABELS = torch.tensor([0, 2, 1, 1, 0])


def test_probabilities_are_the_softmax() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    (outputs,) = collect([nn.Identity()], zip(logits.split(2), LABELS.split(2), strict=True), "abc")
    assert outputs.probabilities.dtype == np.float64
    assert outputs.labels.dtype == np.int64
    np.testing.assert_allclose(outputs.probabilities, logits.double().softmax(1).numpy(), rtol=1e-12)
    np.testing.assert_array_equal(outputs.labels, LABELS)
    np.testing.assert_array_equal(outputs.predicted, logits.argmax(1))
    np.testing.assert_array_equal(outputs.correct, logits.argmax(1) == LABELS)
    np.testing.assert_allclose(outputs.confidence, logits.double().softmax(1).max(1).values)
    assert len(outputs) == 5


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_logit_is_a_sigmoid(shape: tuple[int, ...]) -> None:
    logits = torch.tensor([-3.0, 0.1, 20.0, 0.0])
    (outputs,) = collect([nn.Identity()], [(logits.view(shape), torch.zeros(4).long())], "ab")
    np.testing.assert_allclose(outputs.probabilities[:, 1], logits.double().sigmoid(), rtol=1e-12)
    np.testing.assert_array_equal(outputs.predicted, [0, 1, 1, 0])


def test_models_see_the_same_batches_once() -> None:
    """A loader that shuffles gives every model the same order."""
    data = torch.utils.data.TensorDataset(torch.randn(40, 3), torch.arange(40) % 3)
    first, second = collect([nn.Identity(), nn.Identity()], torch.utils.data.DataLoader(data, 7, shuffle=True), "abc")
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    one_shot = ((x, y) for x, y in [(torch.randn(3, 3), LABELS[:3])])
    assert len(collect([nn.Identity()] * 2, one_shot, "abc")) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_outputs_that_are_not_finite(value: float) -> None:
    logits = torch.zeros(5, 3)
    logits[1, 0] = logits[3, 1] = logits[3, 2] = value
    model = nn.Identity().train()
    with pytest.raises(
        ValueError, match=r"^evaluate: got outputs of 2 images that are NaN or infinite, expected finite"
    ):
        collect([model], [(logits, LABELS)], "abc")
    assert model.training


def test_properties_by_hand() -> None:
    outputs = Outputs(np.array([[0.7, 0.3], [0.4, 0.6]]), np.array([0, 0]))
    assert outputs.predicted.tolist() == [0, 1]
    assert outputs.correct.tolist() == [True, False]
    assert outputs.confidence.tolist() == [0.7, 0.6]
