"""What only the CPU kernel has: instruction sets, checks of raw plan tensors, fixed shares of the threads."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys

import pytest
import torch

from hscc_kernels import _extension, lowrank_conv2d, testing

pytestmark = pytest.mark.skipif(_extension.WHY_NOT is not None, reason=str(_extension.WHY_NOT))

BY_NAME = {case.name: case for case in testing.CASES}
# One process an instruction set: the choice is made once, when the extension is first used.
CHECK_ALL_CASES = """
import sys, torch
from hscc_kernels import lowrank_conv2d, testing
assert torch.ops.hscc._build_info() == "cpu: " + sys.argv[1]
for case in testing.CASES + testing.LARGE:
    for dtype in (torch.float32, torch.bfloat16):
        x, plan, bias = testing.make_inputs(case, dtype)
        got = lowrank_conv2d(x, plan, bias, activation=case.activation, backend="cpu")
        refs = [f(x, plan, bias, case.activation) for f in (testing.plain, testing.exact)]
        ratio = testing.error_ratio(got, *refs)
        assert ratio <= 1, (case.name, dtype, ratio)
"""
# y = x + b, which bfloat16 cannot hold: rounded once, as PyTorch's cast of the float32 sum.
CHECK_ROUNDING = """
import sys, torch
from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors, lowrank_conv2d
every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
x = torch.where(every.isfinite(), every, 0).view(1, 1, 256, 256).contiguous(memory_format=torch.channels_last)
for channels in (torch.arange(1), torch.arange(21)):  # without and with whole vectors
    dense = RegionFactors(channels, (ClusterFactors(channels, 0, None),))
    v = torch.ones(len(channels), 1).bfloat16()
    plan = PackedPlan.pack(v, (dense,), torch.zeros(256, 256, dtype=torch.int64), Geometry((1, 1)))
    bias = torch.tensor([0.0, 0.3, 1.7]).bfloat16().repeat(7)[: len(channels)]
    got = lowrank_conv2d(x, plan, bias, backend="cpu")
    denormal = x.abs() < torch.finfo(torch.bfloat16).tiny  # zero to AVX512-BF16
    values = [x.float(), torch.where(denormal, 0, x.float())][: 2 if sys.argv[1] == "avx512bf16" else 1]
    expected = [(value + bias.float()[:, None, None]).bfloat16() for value in values]
    assert torch.where(got == expected[0], True, got == expected[-1]).all()
    assert lowrank_conv2d(torch.full_like(x, float("nan")), plan, bias, backend="cpu").isnan().all()
"""
# Images without channels leave the bias; a process of its own, as a division by their number would end it.
CHECK_NO_CHANNELS = """
import torch
from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors, lowrank_conv2d
for kernel in (1, 3):
    for rank in (0, 1, 5, 40):
        part = RegionFactors(torch.arange(rank), (ClusterFactors(torch.arange(4), 0, torch.randn(4, rank)),))
        geometry = Geometry((kernel, kernel), padding=(kernel // 2, kernel // 2))
        plan = PackedPlan.pack(torch.randn(rank, 0), (part,), torch.zeros(8, 8, dtype=torch.int64), geometry)
        bias = torch.randn(4)
        got = lowrank_conv2d(torch.randn(2, 0, 8, 8), plan, bias, backend="cpu")
        assert torch.equal(got, bias.view(1, 4, 1, 1).expand(2, 4, 8, 8)), (kernel, rank)
"""


def run_python(code: str, *args: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *args], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("isa", ["avx512bf16", "avx512", "avx2", "portable"])
def test_every_instruction_set_meets_the_reference(isa):
    done = run_python(CHECK_ALL_CASES, isa, HSCC_CPU_ISA=isa)
    if "does not support" in done.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert done.returncode == 0, done.stderr


def test_images_without_channels_leave_the_bias():
    done = run_python(CHECK_NO_CHANNELS)
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_unknown_instruction_set_is_an_error():
    done = run_python("import torch, hscc_kernels; torch.ops.hscc._build_info()", HSCC_CPU_ISA="avx1024")
    assert done.returncode != 0
    assert "got avx1024, expected avx512bf16, avx512vnni, avx512, avxvnni, avx2 or portable" in done.stderr


def call(inputs: testing.Inputs, **changes):
    """The op itself, so that no check in Python comes first."""
    x, plan, bias = inputs
    arguments = {"x": x, "bias": bias, **plan._asdict(), "activation": "relu", **changes}
    return torch.ops.hscc.lowrank_conv2d_cpu(*arguments.values())


@pytest.mark.parametrize("isa", ["avx512bf16", "avx512", "avx2", "portable"])
def test_bfloat16_is_rounded_as_pytorch_does(isa):
    """Every finite bfloat16 plus a bias is rounded once, ties to even; NaN stays NaN."""
    done = run_python(CHECK_ROUNDING, isa, HSCC_CPU_ISA=isa)
    if "does not support" in done.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", testing.CASES + testing.LARGE, ids=lambda case: case.name)
def test_every_element_is_written(case, dtype):
    """The output is new memory: an allocation of its size, poisoned and freed, is the likeliest place for it."""
    x, plan, bias = testing.make_inputs(case, dtype)
    expected = lowrank_conv2d(x, plan, bias, activation=case.activation, backend="cpu")
    for _ in range(3):
        poison = torch.full_like(expected, float("nan"))
        del poison
        again = lowrank_conv2d(x, plan, bias, activation=case.activation, backend="cpu")
        assert torch.equal(again, expected)


def test_results_do_not_depend_on_threads_or_batch():
    """Exactly, where channels fill vectors; elsewhere a patch on a tile of border patches is summed tap by tap."""
    case = BY_NAME["wide"]._replace(shape=(5, *BY_NAME["wide"].shape[1:]))
    x, plan, bias = testing.make_inputs(case, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(lowrank_conv2d(x, plan, bias, backend="cpu"))
            results.append(torch.cat([lowrank_conv2d(image[None], plan, bias, backend="cpu") for image in x]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


class MallocInfo(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in (*"aoshmuf", "in_use", "free", "top")]


@torch.inference_mode()
def test_calls_leave_no_memory_behind():
    """torch's headers once left 48 bytes a call, and the heap never found room for an output between two of those."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("needs glibc 2.33")
    libc.mallinfo2.restype = MallocInfo
    inputs, calls = testing.make_inputs(BY_NAME["clusters"], torch.float32), 300
    for changes in ({}, {"activation": "gelu"}):
        used = []
        for _ in range(3):
            for _ in range(calls):
                with contextlib.suppress(RuntimeError):
                    call(inputs, **changes)
            used.append(libc.mallinfo2().in_use)
        assert used[2] - used[1] < 24 * calls, (changes, used)


BAD = {
    "positions": [-1, 10**6],
    "rows": [-1, 10**6],
    "channels": [-1, 10**6],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_index_out_of_range_is_an_error(name, value):
    inputs = testing.make_inputs(BY_NAME["shared rows"], torch.float32)
    index = getattr(inputs.plan, name).clone()
    index.view(-1)[index.numel() // 2] = value
    with pytest.raises(RuntimeError, match=rf"{name}: got .*{value}.*, expected 0\.\."):
        call(inputs, **{name: index})


@pytest.mark.parametrize("name", ["v", "u", "positions", "rows", "channels", "work", "clusters"])
def test_wrong_shape_or_dtype_is_an_error(name):
    inputs = testing.make_inputs(BY_NAME["clusters"], torch.float32)
    tensor = getattr(inputs.plan, name)
    for bad in (tensor[..., None], tensor.double(), tensor[:0]):
        with pytest.raises(RuntimeError, match="got "):
            call(inputs, **{name: bad})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sizes": [3, 3, 1, 1, 1, 1, 1, 7, 7]}, "sizes: got 9 ints"),
        ({"sizes": [3, 3, 0, 1, 1, 1, 1, 1, 7, 7]}, "sizes: got 0 at 2"),
        ({"sizes": [3, 3, 1, 1, 2, 1, 1, 1, 9, 7]}, "positions: got 49, expected 9 x 7"),
        ({"sizes": [3, 3, 1, 1, 1, 1, 1, 1, 1, 49]}, "x: got 7 x 7, .*, expected one of 1 x 49"),
        ({"sizes": [3, 2, 1, 1, 1, 1, 1, 1, 7, 6]}, "v: got D = 144"),
        ({"activation": "gelu"}, "activation: got gelu"),
        ({"bias": torch.zeros(2, 7)}, "bias: got 2 x 7"),
        ({"bias": torch.zeros(7)}, "bias: got 1 x 7"),
        ({"x": torch.zeros(1).expand(1, 8, 2**30, 1)}, "x: got images of 1073741824 x 1 x 8, expected sides below"),
        ({"x": torch.zeros(1).expand(1, 8, 1, 2**28)}, "x: got images of .*, expected .* rows of fewer than 2147"),
    ],
)
def test_wrong_arguments_are_errors(changes, text):
    inputs = testing.make_inputs(BY_NAME["clusters"], torch.float32)
    with pytest.raises(RuntimeError, match=text):
        call(inputs, **changes)


def test_malformed_plans_never_crash():
    """Random damage to the index tensors: an error or some output, never an access outside the tensors."""
    generator = torch.Generator().manual_seed(0)
    values = [-(2**31), -2, -1, 0, 1, 2, 3, 5, 7, 30, 100, 2**31 - 1]
    errors = 0
    for trial in range(400):
        case = testing.CASES[trial % len(testing.CASES)]
        inputs = testing.make_inputs(case, torch.float32)
        damaged = {}
        for name in ("positions", "rows", "channels", "work", "clusters"):
            index = getattr(inputs.plan, name).clone()
            hits = int(torch.randint(0, 3, (), generator=generator))
            for place in torch.randint(0, max(index.numel(), 1), (hits,), generator=generator).tolist():
                if index.numel():
                    choice = values[int(torch.randint(len(values), (), generator=generator))]
                    index.view(-1)[place] = choice
            damaged[name] = index
        try:
            out = call(inputs, **damaged)
            assert out.shape[:2] == (case.shape[0], case.out_channels)
        except RuntimeError as error:
            errors += "got" in str(error)
    assert errors > 200
