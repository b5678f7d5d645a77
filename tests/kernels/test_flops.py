"""What ``FlopCounterMode`` counts: ``PackedPlan.flops()`` an image, a backward's matrix products, each once."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor.fx_utils import count_flops_fx
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from hscc_kernels import backward, explain, lowrank_conv2d, project
from hscc_kernels.dispatch import BACKENDS
from hscc_kernels.testing import CASES, make_inputs, plain

AVAILABLE = [b.name for b in BACKENDS if explain(torch.empty(0))[b.name] is None]
CASE = next(case for case in CASES if case.name == "short patches")  # dense clusters beside low-rank ones
MODES = (nullcontext, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16))


def count(function, *args) -> dict[str, int]:
    """By op."""
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return {str(op): flops for op, flops in counter.get_flop_counts().get("Global", {}).items()}


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forward(case, backend: str) -> None:
    """The reference's own products are not counted besides: they run below the counter."""
    x, plan, bias = make_inputs(case, torch.float32)
    got = count(lambda: lowrank_conv2d(x, plan, bias, activation=case.activation, backend=backend))
    assert got == {f"hscc.lowrank_conv2d_{backend}": len(x) * plan.flops()}


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_modes_batches_and_sizes(mode, images: int) -> None:
    _, plan, bias = make_inputs(CASE, torch.float32)
    x, labels = torch.randn(images, 3, 9, 21), torch.arange(9 * 21).view(9, 21) % plan.regions
    other = plan.mapped(labels)
    assert other.flops() != plan.flops()
    other = other._replace(v=plan.v.requires_grad_())
    with mode():
        assert sum(count(lowrank_conv2d, x, other, bias).values()) == images * other.flops()


@pytest.mark.parametrize("needs", [needs for needs in product([False, True], repeat=4) if any(needs)], ids=str)
def test_backward_counts_its_products(needs) -> None:
    x, plan, bias = make_inputs(CASE, torch.float32)
    y = plain(x, plan, bias, CASE.activation)
    arguments = (y, y, x, *plan, CASE.activation, needs)
    got = count(torch.ops.hscc.lowrank_conv2d_backward, *arguments)
    assert [*got] == ["hscc.lowrank_conv2d_backward"]
    assert sum(got.values()) == sum(count(backward.lowrank_conv2d_backward, *arguments).values())


@pytest.mark.parametrize("backend", AVAILABLE)
def test_forward_and_backward(backend: str) -> None:
    """Twice the forward for the gradients of both factors and x, and the first stage again, for that of u."""
    x, plan, bias = make_inputs(CASE, torch.float32)
    x, v, u = (t.requires_grad_() for t in (x, plan.v, plan.u))
    first = 2 * sum(item.position_count * item.row_count * v.shape[1] for item in plan.work_items())
    got = count(lambda: lowrank_conv2d(x, plan._replace(v=v, u=u), bias, backend=backend).sum().backward())
    assert got == {
        f"hscc.lowrank_conv2d_{backend}": len(x) * plan.flops(),
        "hscc.lowrank_conv2d_backward": len(x) * (2 * plan.flops() + first),
    }


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 5, 4, 3), (1, 8, 5, 4, 1), (0, 8, 5, 4, 3)], ids=str)
def test_projection(shape: tuple[int, ...], layout, grad: bool) -> None:
    """By our op or by PyTorch's product, and with fake tensors: only shapes count."""
    n, channels, height, width, fewer = shape
    x = torch.randn(n, channels, height, width).contiguous(memory_format=layout)
    matrix = torch.randn(channels, fewer, requires_grad=grad)
    expected = 2 * n * height * width * channels * fewer
    assert sum(count(project, x, matrix).values()) == expected
    with FakeTensorMode() as fake:
        assert sum(count(project, fake.from_tensor(x), fake.from_tensor(matrix)).values()) == expected


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_tensors_without_values_are_refused(kind: str) -> None:
    x, plan, bias = make_inputs(CASE, torch.float32)
    move = FakeTensorMode().from_tensor if kind == "fake" else lambda t: t.to("meta")
    x, bias, *fields = (move(t) if isinstance(t, torch.Tensor) else t for t in (x, bias, *plan))
    with pytest.raises(ValueError, match="work: got a meta or fake tensor, expected one with values"):
        count(lowrank_conv2d, x, plan._make(fields), bias)


def test_a_compiler_may_ask() -> None:
    """It asks with fake tensors, for what it may overlap or recompute; an error would end the compilation."""
    x, plan, bias = make_inputs(CASE, torch.float32)
    plan, estimates = plan._replace(v=plan.v.requires_grad_()), {}

    def ask(graph, inputs):
        ours = [node for node in graph.graph.nodes if "hscc" in str(node.target)]
        estimates.update((str(node.target), count_flops_fx(node)) for node in ours)
        return make_boxed_func(graph.forward)

    compiled = torch.compile(lambda x: lowrank_conv2d(x, plan, bias), backend=aot_autograd(fw_compiler=ask))
    compiled(x).sum().backward()
    assert set(estimates.values()) == {0}
    assert len(estimates) == 2


@pytest.mark.parametrize("first", ["hscc_kernels", "torch.utils.flop_counter"])
def test_imports_in_any_order(first: str) -> None:
    """And the counter, which loads Triton, is not loaded by us."""
    code = (
        f"import sys, {first}; print('torch.utils.flop_counter' in sys.modules)\n"
        "import torch.utils.flop_counter as counter, hscc_kernels, torch\n"
        "print(torch.ops.hscc.project_cpu in counter.flop_registry)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == [str(first != "hscc_kernels"), "True"]
