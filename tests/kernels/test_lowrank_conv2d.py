"""Every backend that runs here x case x dtype: outputs and all gradients within the two-times rule, on poison."""

from __future__ import annotations

import pytest
import torch

from hscc_kernels import explain, lowrank_conv2d
from hscc_kernels.dispatch import BACKENDS
from hscc_kernels.testing import CASES, error_ratio, exact, make_inputs, plain

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
RUNS = [
    pytest.param(b.name, dtype, id=f"{b.name}-{str(dtype)[6:]}")
    for b in BACKENDS
    for dtype in DTYPES
    if explain(torch.empty(0, dtype=dtype))[b.name] is None
]


def with_leaves(inputs, dtype):
    """x, plan and bias in dtype, with gradients asked for, and the list of leaves."""
    x, plan, bias = inputs
    x = x.to(dtype).detach().requires_grad_()
    plan = plan.to(dtype)
    plan = plan._replace(v=plan.v.detach().requires_grad_(), u=plan.u.detach().requires_grad_())
    bias = None if bias is None else bias.to(dtype).detach().requires_grad_()
    return (x, plan, bias), [t for t in (x, plan.v, plan.u, bias) if t is not None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(("backend", "dtype"), RUNS)
def test_output(backend: str, dtype: torch.dtype, case, poison) -> None:
    for seed in range(3):
        x, plan, bias = make_inputs(case, dtype, seed)
        before = x.clone()
        got = lowrank_conv2d(x, plan, bias, activation=case.activation, backend=backend)
        ratio = error_ratio(got, plain(x, plan, bias, case.activation), exact(x, plan, bias, case.activation))
        assert ratio <= 1, f"seed {seed}"
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x, before)


def gradient_ratios(case, backend: str, dtype: torch.dtype, seed: int = 7, device: str = "cpu") -> dict[str, float]:
    """The error ratio of the gradient of each of x, v, u and bias.

    Where rounding may decide on which side of ReLU's corner an output lies, the incoming gradient is 0.
    """
    inputs = [None if part is None else part.to(device) for part in make_inputs(case, dtype, seed)]
    (x, plan, bias), leaves = with_leaves(inputs, dtype)
    y = lowrank_conv2d(x, plan, bias, activation=case.activation, backend=backend)
    before = exact(*inputs, "none")
    corner = before.abs() < 4 * torch.finfo(dtype).eps * before.abs().amax() if before.numel() else before.bool()
    grad = torch.randn(y.shape).bfloat16().to(device, dtype).masked_fill(corner, 0)
    got = torch.autograd.grad(y, leaves, grad)
    results = []
    for kind in (dtype, torch.float64):
        (x, plan, bias), leaves = with_leaves(inputs, kind)
        y = plain(x, plan, bias, case.activation)
        grads = torch.autograd.grad(y, leaves, grad.to(kind), allow_unused=True)
        results.append([torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves, strict=True)])
    names = zip(("x", "v", "u", "bias"), got, *results, strict=False)
    return {name: error_ratio(mine, low, high) for name, mine, low, high in names}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(("backend", "dtype"), RUNS)
def test_gradients(backend: str, dtype: torch.dtype, case, poison) -> None:
    ratios = gradient_ratios(case, backend, dtype)
    assert max(ratios.values()) <= 1, ratios


def test_case_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
