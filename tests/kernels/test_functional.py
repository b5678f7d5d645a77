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


@pytest.mark.parametrize("backend", [name for name, reason in explain(X).items() if reason is None])
@pytest.mark.parametrize(
    "change",
    [
        {"x": X.mT},  # 8 x 10: as many outputs as 10 x 8 gives, but another map
        {"x": X[:, :5]},
        {"x": X.double()},
        {"bias": BIAS[:, 1:]},
        {"bias": BIAS.double()},
        {"activation": "gelu"},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_backend_refuses_by_itself(backend: str, change: dict) -> None:
    """The public call asks no question first, so the op has to."""
    arguments = {"x": X, "bias": BIAS, "activation": "relu"} | change
    x, bias, activation = arguments.values()
    op = getattr(torch.ops.hscc, f"lowrank_conv2d_{backend}")
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"got .*, expected "):
        op(x, bias, *PLAN, activation)
    with pytest.raises((TypeError, ValueError), match=r"got .*, expected "):
        lowrank_conv2d(x, PLAN, bias, activation=activation, backend=backend)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autocast_casts_like_a_convolution(compiled: bool, dtype: torch.dtype) -> None:
    x = X.clone().requires_grad_()
    function = torch.compile(lowrank_conv2d, fullgraph=True) if compiled else lowrank_conv2d
    with torch.autocast("cpu", dtype):
        y = function(x, PLAN, BIAS)
        again = function(y.detach()[:, :16], PLAN, BIAS)  # a half beside float32
    assert y.dtype == again.dtype == dtype
    exact = lowrank_conv2d(x, PLAN, BIAS)
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)
    (grad,) = torch.autograd.grad(y.float().sum(), x)
    (wanted,) = torch.autograd.grad(exact.sum(), x)
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad, wanted, rtol=0.05, atol=0.05)


def test_autocast_leaves_float64_alone() -> None:
    plan = PLAN.to(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert lowrank_conv2d(X.double(), plan, BIAS.double()).dtype == torch.float64
        with pytest.raises(ValueError, match="x: got 9 x 8"):
            lowrank_conv2d(X[:, :, 1:], PLAN, BIAS)
