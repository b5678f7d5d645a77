"""Arguments that do not fit: one clear error with got and expected, before any kernel runs; the choice of backend."""

from __future__ import annotations

import pytest
import torch

from hscc_kernels import BackendUnavailable, dispatch, explain, lowrank_conv2d
from hscc_kernels.testing import CASES, make_inputs, plain

X, PLAN, BIAS = make_inputs(CASES[1], torch.float32)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": [1.0]}, TypeError, "x: got list, expected a torch.Tensor"),
        ({"plan": None}, TypeError, "plan: got NoneType, expected a PackedPlan"),
        ({"x": X[0]}, ValueError, r"x: got shape \(16, 10, 8\), expected \(N, 16, H, W\)"),
        ({"x": X[:, :5]}, ValueError, r"x: got shape \(3, 5, 10, 8\), expected \(N, 16, H, W\)"),
        ({"x": X.double()}, TypeError, "x: got torch.float64, expected torch.float32"),
        ({"x": X.long()}, TypeError, "x: got torch.int64, expected torch.float32"),
        ({"x": X.to("meta")}, ValueError, "x: got device meta, expected cpu"),
        ({"x": X[:, :, 1:]}, ValueError, "x: got 9 x 8, which gives an output of 9 x 8, expected one of 10 x 8"),
        ({"bias": BIAS[:, 1:]}, ValueError, r"bias: got shape \(3, 23\), expected \(24,\) or \(3, 24\)"),
        ({"bias": BIAS.double()}, TypeError, "bias: got torch.float64 on cpu, expected torch.float32 on cpu"),
        ({"activation": "gelu"}, ValueError, r"activation: got 'gelu', expected one of \['none', 'relu'\]"),
        ({"backend": "fast"}, ValueError, "backend: got 'fast', expected one of"),
    ],
)
def test_bad_arguments(change: dict, error: type, match: str) -> None:
    arguments = {"x": X, "plan": PLAN, "bias": BIAS} | change
    with pytest.raises(error, match=match):
        lowrank_conv2d(**arguments)


def test_explicit_backend_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = {"cpu": dispatch.Backend("cpu", lambda x: "it is not here")}
    monkeypatch.setattr(dispatch, "_BY_NAME", dispatch._BY_NAME | backends)
    monkeypatch.setattr(dispatch, "_RESOLVED", {})
    with pytest.raises(BackendUnavailable, match="backend 'cpu' cannot run: it is not here"):
        lowrank_conv2d(X, PLAN, BIAS, backend="cpu")


def test_reference_takes_what_kernels_refuse() -> None:
    reasons = explain(X.double())
    assert reasons["reference"] is None
    assert all(isinstance(reason, str) for name, reason in reasons.items() if name != "reference")
    y = lowrank_conv2d(X.double(), PLAN.to(torch.float64), BIAS.double())
    torch.testing.assert_close(y, plain(X.double(), PLAN.to(torch.float64), BIAS.double(), "none"))


def test_autocast_casts_like_a_convolution() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = lowrank_conv2d(X, PLAN, BIAS)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), lowrank_conv2d(X, PLAN, BIAS), rtol=0.05, atol=0.05)
