"""Every op of namespace ``hscc``, found by enumeration: opcheck, FLOPs, compile, export, double backward."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import flop_registry

import hscc_kernels  # noqa: F401  (registers the ops)
from hscc_kernels import explain, lowrank_conv2d
from hscc_kernels.dispatch import BACKENDS
from hscc_kernels.testing import CASES, INT8, make_inputs, make_int8_inputs, plain

CHOSEN = [case for case in CASES if case.name in ("clusters", "dense", "no bias", "one bias", "batch 0", "all rank 0")]
AVAILABLE = {b.name for b in BACKENDS if explain(torch.empty(0))[b.name] is None}


def all_ops() -> list[str]:
    schemas = torch._C._jit_get_all_schemas()
    return sorted({s.name.removeprefix("hscc::") for s in schemas if s.name.startswith("hscc::")})


def samples(op: str):
    """Arguments for each op; an op without samples fails the test."""
    if op == "project_cpu":
        for layout in (torch.contiguous_format, torch.channels_last):
            yield torch.randn(2, 8, 5, 4).contiguous(memory_format=layout), torch.randn(8, 3)
        return
    for case in CHOSEN:
        x, plan, bias = make_inputs(case, torch.float32)
        if op == "lowrank_conv2d_backward":
            y = plain(x, plan, bias, case.activation)
            yield (y, y, x, *plan, case.activation, [True, True, False, True])
        elif op.startswith("lowrank_conv2d_int8_"):
            x, plan, bias = make_int8_inputs(case, INT8[1])
            yield (x, bias, *plan, case.activation)
            yield (x.abs().to(torch.uint8), bias, *plan, case.activation)
        elif op.startswith("lowrank_conv2d_"):
            yield (x, bias, *plan, case.activation)
            x, v, u = (t.clone().requires_grad_() for t in (x, plan.v, plan.u))
            yield (x, bias, *plan._replace(v=v, u=u), case.activation)
        elif op == "resized":
            yield plan.positions, plan.work, plan.sizes, plan.v.shape[1], 5, 7
        elif op == "_build_info":
            yield ()
            return
        else:
            raise AssertionError(f"op hscc::{op} has no samples here")


@pytest.mark.parametrize("op", all_ops())
def test_opcheck(op: str) -> None:
    backend = op.removeprefix("lowrank_conv2d_").removeprefix("int8_").removeprefix("project_")
    if backend in {b.name for b in BACKENDS} - AVAILABLE:
        pytest.skip(f"backend {backend} cannot run here: {explain(torch.empty(0))[backend]}")
    options = {"test_utils": "test_schema"} if op == "_build_info" else {}  # a text: there are no tensors to compare
    for arguments in samples(op):
        torch.library.opcheck(getattr(torch.ops.hscc, op).default, arguments, **options)


@pytest.mark.parametrize("op", [op for op in all_ops() if op != "_build_info"])  # which takes no tensor
def test_flops_can_be_counted(op: str) -> None:
    assert getattr(torch.ops.hscc, op) in flop_registry, "a new op needs flops.register in ops.py"


def test_enumeration_finds_every_backend() -> None:
    assert {f"lowrank_conv2d_{b.name}" for b in BACKENDS} | {"lowrank_conv2d_backward"} <= set(all_ops())


@pytest.mark.parametrize("backend", sorted(AVAILABLE))
def test_compile_fullgraph(backend: str) -> None:
    x, plan, bias = make_inputs(CASES[1], torch.float32)
    x, factor = x.requires_grad_(), plan.v.requires_grad_()

    def function(x):
        return lowrank_conv2d(x * 2, plan, bias, backend=backend).sin()

    compiled = torch.compile(function, fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x))
    for mine, eager in zip(
        torch.autograd.grad(compiled(x).sum(), (x, factor)),
        torch.autograd.grad(function(x).sum(), (x, factor)),
        strict=True,
    ):
        torch.testing.assert_close(mine, eager, rtol=1e-4, atol=1e-4)  # sums in another order


def test_a_resized_plan_checks_its_regions() -> None:
    plan = make_inputs(CASES[1], torch.float32)[1]
    for region in (-1, len(plan.work), 2**30):
        work = plan.work.clone()
        work[0, 0] = region
        with pytest.raises(ValueError, match=rf"work: got region {region}, expected 0\.\.{len(work) - 1}"):
            torch.ops.hscc.resized(plan.positions, work, plan.sizes, plan.v.shape[1], 5, 7)


def test_double_backward_is_refused_in_words() -> None:
    x, plan, bias = make_inputs(CASES[0], torch.float64)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(lowrank_conv2d(x, plan, bias).sum(), x, create_graph=True)
    if grad.requires_grad:
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            torch.autograd.grad(grad.sum(), x)
    else:
        pytest.fail("a gradient that silently forgets its own graph")


@pytest.mark.parametrize("backend", sorted(AVAILABLE))
def test_no_grad(backend: str) -> None:
    """There the op is called below autograd; whatever lies above it, autocast and vmap, still has its turn."""
    x, plan, bias = make_inputs(CASES[1], torch.float32)
    x.requires_grad_()

    def function(x):
        return lowrank_conv2d(x, plan, bias, backend=backend)

    expected = function(x)
    assert expected.requires_grad
    with torch.no_grad():
        got = function(x)
        assert not got.requires_grad
        assert torch.equal(got, expected)
        torch.testing.assert_close(torch.func.vmap(function)(x[:, None])[:, 0], expected)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            assert function(x).dtype == torch.bfloat16
    assert function(x).requires_grad


@pytest.mark.parametrize("backend", sorted(AVAILABLE))
def test_function_transforms(backend: str) -> None:
    """vmap is right; grad, which torch.library's autograd cannot give, is refused and never wrong."""
    x, plan, bias = make_inputs(CASES[1], torch.float32)

    def function(x):
        return lowrank_conv2d(x, plan, bias, backend=backend)

    torch.testing.assert_close(torch.func.vmap(function)(x[:, None])[:, 0], function(x))
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: function(x).sum())(x)
