"""project: our kernel where it may run, PyTorch's product elsewhere, the same numbers from both."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hscc_kernels import _extension, project, testing

HAS_CPU = _extension.WHY_NOT is None
SHAPES = [
    (2, 64, 7, 9, 32), (3, 5, 4, 4, 1), (1, 1, 3, 3, 7), (2, 130, 13, 13, 100), (0, 4, 3, 3, 2), (2, 0, 3, 3, 2),
    (2, 4, 3, 3, 0), (1, 300, 1, 1, 65), (5, 16, 10, 20, 16), (2, 3, 7, 9, 1),
]  # fmt: skip
CHECK_SHAPES = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from test_projection import SHAPES, check
assert torch.ops.hscc._build_info() == "cpu: " + sys.argv[1]
for shape in SHAPES:
    for layout in (torch.channels_last, torch.contiguous_format):
        check(*shape, torch.float32, layout)
"""


def check(n: int, channels: int, height: int, width: int, fewer: int, dtype: torch.dtype, layout) -> None:
    x = torch.randn(n, channels, height, width, dtype=dtype).contiguous(memory_format=layout)
    matrix = torch.randn(channels, fewer, dtype=dtype)
    exact = torch.einsum("nchw,cd->ndhw", x.double(), matrix.double())
    plain = torch.einsum("nchw,cd->ndhw", x, matrix)
    poison = torch.full((n, fewer, height, width), float("nan"), dtype=dtype)
    del poison  # its memory is the likeliest place for the output
    y = project(x, matrix)
    assert y.shape == (n, fewer, height, width)
    assert channels < 2 or y.numel() == 0 or y.is_contiguous(memory_format=layout)  # one channel has both layouts
    if dtype == torch.float64:
        torch.testing.assert_close(y, exact)
    else:
        assert testing.error_ratio(y, plain, exact) <= 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_projection_meets_the_exact_one(shape: tuple[int, ...], dtype: torch.dtype, layout) -> None:
    check(*shape, dtype, layout)


@pytest.mark.skipif(not HAS_CPU, reason=str(_extension.WHY_NOT))
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_every_instruction_set_meets_the_exact_one(isa: str) -> None:
    command = [sys.executable, "-c", CHECK_SHAPES, isa, os.path.dirname(__file__)]
    done = subprocess.run(command, env={**os.environ, "HSCC_CPU_ISA": isa}, capture_output=True, text=True, check=False)
    if "does not support" in done.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert done.returncode == 0, done.stderr


def test_one_image_and_gradients() -> None:
    x = torch.randn(2, 6, 5, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    matrix = torch.randn(6, 3, requires_grad=True)
    wanted = torch.einsum("nchw,cd->ndhw", x, matrix)
    got = project(x, matrix)
    weights = torch.randn_like(wanted)
    mine = torch.autograd.grad((got * weights).sum(), (x, matrix))
    torch.testing.assert_close(mine, torch.autograd.grad((wanted * weights).sum(), (x, matrix)))
    with torch.no_grad():
        torch.testing.assert_close(project(x, matrix), got)
        torch.testing.assert_close(project(x[0], matrix), got[0])


@pytest.mark.skipif(not HAS_CPU, reason=str(_extension.WHY_NOT))
def test_results_do_not_depend_on_threads() -> None:
    x, matrix = torch.randn(3, 40, 11, 13).contiguous(memory_format=torch.channels_last), torch.randn(40, 24)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(project(x, matrix))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_autocast_and_compile() -> None:
    x, matrix = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last), torch.randn(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert project(x, matrix).dtype == torch.bfloat16
    compiled = torch.compile(lambda x: project(x + 1, matrix).relu(), fullgraph=True)
    torch.testing.assert_close(compiled(x), project(x + 1, matrix).relu())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_what_does_not_fit_is_refused(layout) -> None:
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=layout)
    for matrix in (torch.randn(7, 4), torch.randn(8), torch.randn(8, 4, 2)):
        with pytest.raises(ValueError, match=r"x, matrix: got .* expected \(N, C, H, W\) or \(C, H, W\) and \(C, c\)"):
            project(x, matrix)
    with pytest.raises(ValueError, match="x, matrix"):
        project(x[0, 0], torch.randn(8, 4))
    with pytest.raises(RuntimeError, match=r"dtype|scalar type"):
        project(x, torch.randn(8, 4, dtype=torch.float64))


@pytest.mark.skipif(not HAS_CPU, reason=str(_extension.WHY_NOT))
def test_the_op_refuses_what_it_cannot_read() -> None:
    op = torch.ops.hscc.project_cpu
    x, matrix = torch.randn(2, 8, 5, 5), torch.randn(8, 4)
    torch.testing.assert_close(op(x, matrix.T.contiguous().T), torch.einsum("nchw,cd->ndhw", x, matrix))
    with pytest.raises(RuntimeError, match=r"expected \(N, C, H, W\) and \(C, c\)"):
        op(x, matrix[:7])
    with pytest.raises(RuntimeError, match="got dtype"):
        op(x.double(), matrix.double())
