"""The CPU kernel in int8: every instruction set against the specification, integers bit by bit; damaged plans."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hscc_kernels import Int8Plan, _extension, lowrank_conv2d_int8, testing

pytestmark = pytest.mark.skipif(_extension.WHY_NOT is not None, reason=str(_extension.WHY_NOT))

ISAS = ["avx512bf16", "avx512vnni", "avx512", "avxvnni", "avx2", "portable"]
BY_NAME = {case.name: case for case in testing.CASES}
INT8 = pytest.mark.parametrize("int8", testing.INT8, ids=lambda int8: f"{int8.bits} bits, {int8.zero_point}")
# One process an instruction set: the choice is made once, when the extension is first used.
START = """
import sys, torch
from hscc_kernels import Int8Plan, lowrank_conv2d_int8, reference_int8, testing
assert torch.ops.hscc._build_info() == "cpu: " + sys.argv[1]
"""
CHECK_ALL_CASES = """
for case in testing.CASES + testing.LARGE:
    for seed, int8 in enumerate(testing.INT8):
        x, plan, bias = testing.make_int8_inputs(case, int8, seed)
        got = lowrank_conv2d_int8(x, plan, bias, activation=case.activation, backend="cpu")
        refs = [f(x, plan, bias, case.activation) for f in (testing.plain_int8, testing.exact_int8)]
        ratio = testing.error_ratio(got, *refs)
        assert ratio <= 1, (case.name, int8, ratio)
        in_bytes = reference_int8.quantise(x, plan.scale, plan.zero_point)
        again = lowrank_conv2d_int8(in_bytes, plan, bias, activation=case.activation, backend="cpu")
        assert torch.equal(again, got), (case.name, int8)
"""
# Dense clusters give the sums themselves: all must be equal. V takes every value up to ``most``, x the ends of its
# range, in long runs, so that anything kept in 16 bits would show.
CHECK_INTEGERS = """
generator = torch.Generator().manual_seed(int(sys.argv[2]))
for case in testing.CASES + testing.LARGE[2:]:
    case = case._replace(ranks=tuple((None,) * len(ranks) for ranks in case.ranks), shared=0)
    for most, zero_point in ((128, 0), (128, 77), (65, 255), (64, 0), (64, 200), (63, 1)):
        x, plan, bias = testing.make_int8_inputs(case, testing.Int8(8, zero_point), most)
        v = torch.randint(-most, min(most, 127) + 1, plan.v.shape, generator=generator)
        v[::3] = torch.where(v[::3] < 0, -most, min(most, 127))
        v[1::6] = -most
        plan = plan._replace(v=v.to(torch.int8), v_scale=torch.rand(len(v), generator=generator))
        x = torch.where(torch.rand(x.shape, generator=generator) < 0.7, x.sign() * 1e3, x)
        got = lowrank_conv2d_int8(x, plan, bias, activation=case.activation, backend="cpu")
        expected = testing.plain_int8(x, plan, bias, case.activation)
        assert torch.equal(got, expected), (case.name, most, zero_point)
"""
# y = x' - zero point: ties, values beyond both ends, infinite ones and NaN.
CHECK_ROUNDING = """
from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors
halves = torch.arange(-1200, 1201) / 4
special = torch.tensor([float("nan"), -float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 1e-45, -0.0])
special[0:1].view(torch.int32)[0] |= 0x1234  # a NaN with a payload
values = torch.cat([halves, halves.nextafter(torch.tensor(1e9)), halves.nextafter(torch.tensor(-1e9)), special])
for channels in (1, 21, 64):
    x = values.repeat(channels, 1).view(1, channels, 1, -1).contiguous(memory_format=torch.channels_last)
    dense = RegionFactors(torch.arange(channels), (ClusterFactors(torch.arange(channels), 0, None),))
    labels = torch.zeros(1, values.numel(), dtype=torch.int64)
    plan = PackedPlan.pack(torch.eye(channels), (dense,), labels, Geometry((1, 1)))
    for bits in (7, 8):
        for scale, zero_point in ((1.0, 0), (1.0, 7), (1.0, 255), (0.3, 128), (2.0**-126, 5), (2.0**126, 5)):
            q = Int8Plan.quantised(plan, scale, zero_point, bits)
            q = q._replace(v=(q.v > 0).to(torch.int8) * (2 ** (bits - 1) - 1), v_scale=torch.ones(channels))
            got = lowrank_conv2d_int8(x * scale, q, backend="cpu")
            whole = reference_int8.quantise(x * scale, scale, zero_point).float() - zero_point
            expected = whole * (2 ** (bits - 1) - 1) * scale
            assert torch.equal(got, expected), (channels, bits, scale, zero_point)
"""
# Every tensor ends where a page begins that cannot be read, then starts where one ends. x in 8 bits is read in place.
CHECK_EDGES = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
kept = []
def fenced(tensor, at_end):
    if tensor is None or tensor.numel() == 0:
        return tensor
    layout = tensor.permute(0, 2, 3, 1).contiguous() if tensor.ndim == 4 else tensor.contiguous()
    size, page = layout.numel() * layout.element_size(), mmap.PAGESIZE
    room = -(-size // page) * page
    memory = mmap.mmap(-1, room + 2 * page)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for fence in (start, start + page + room):
        assert libc.mprotect(fence, page, 0) == 0
    offset = page + (room - size if at_end else 0)
    copy = torch.frombuffer(memory, dtype=layout.dtype, count=layout.numel(), offset=offset).view(layout.shape)
    copy.copy_(layout)
    return copy.permute(0, 3, 1, 2) if tensor.ndim == 4 else copy
for case in testing.CASES:
    for int8 in testing.INT8[1:3]:
        x, plan, bias = testing.make_int8_inputs(case, int8)
        expected = testing.plain_int8(x, plan, bias, case.activation)
        for given in (x, reference_int8.quantise(x, plan.scale, plan.zero_point)):
            for at_end in (False, True):
                values = [fenced(p, at_end) if isinstance(p, torch.Tensor) else p for p in plan]
                got = lowrank_conv2d_int8(fenced(given, at_end), Int8Plan(*values), fenced(bias, at_end),
                                          activation=case.activation, backend="cpu")
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
"""
CHECK_NO_CHANNELS = """
from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors
for kernel in (1, 3):
    for rank in (0, 1, 5, 40):
        part = RegionFactors(torch.arange(rank), (ClusterFactors(torch.arange(4), 0, torch.randn(4, rank)),))
        geometry = Geometry((kernel, kernel), padding=(kernel // 2, kernel // 2))
        plan = PackedPlan.pack(torch.randn(rank, 0), (part,), torch.zeros(8, 8, dtype=torch.int64), geometry)
        bias = torch.randn(4)
        got = lowrank_conv2d_int8(torch.randn(2, 0, 8, 8), Int8Plan.quantised(plan, 0.1, 9), bias, backend="cpu")
        assert torch.equal(got, bias.view(1, 4, 1, 1).expand(2, 4, 8, 8)), (kernel, rank)
"""


def run_on(isa: str, code: str, *args: str) -> None:
    command = [sys.executable, "-c", START + code, isa, *args]
    done = subprocess.run(command, env={**os.environ, "HSCC_CPU_ISA": isa}, capture_output=True, text=True, check=False)
    if "does not support" in done.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_meets_the_reference(isa):
    run_on(isa, CHECK_ALL_CASES)


@pytest.mark.parametrize("isa", ISAS)
def test_sums_are_exact(isa):
    run_on(isa, CHECK_INTEGERS, str(int.from_bytes(os.urandom(3), "little")))


@pytest.mark.parametrize("isa", ISAS)
def test_inputs_are_rounded_as_specified(isa):
    run_on(isa, CHECK_ROUNDING)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect of Linux")
@pytest.mark.parametrize("isa", ISAS)
def test_nothing_outside_the_tensors_is_read(isa):
    run_on(isa, CHECK_EDGES)


@pytest.mark.parametrize("isa", ISAS)
def test_images_without_channels_leave_the_bias(isa):
    run_on(isa, CHECK_NO_CHANNELS)


@INT8
@pytest.mark.parametrize("case", testing.CASES + testing.LARGE, ids=lambda case: case.name)
def test_every_element_is_written(case, int8):
    """The output is new memory: an allocation of its size, poisoned and freed, is the likeliest place for it."""
    x, plan, bias = testing.make_int8_inputs(case, int8)
    before = x.clone()
    expected = lowrank_conv2d_int8(x, plan, bias, activation=case.activation, backend="cpu")
    assert expected.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)
    for _ in range(3):
        poison = torch.full_like(expected, float("nan"))
        del poison
        again = lowrank_conv2d_int8(x, plan, bias, activation=case.activation, backend="cpu")
        assert torch.equal(again, expected)


@INT8
@pytest.mark.parametrize("name", ["wide", "odd channels", "short patches", "kernel over image"])
def test_results_do_not_depend_on_threads_or_batch(name, int8):
    """Exactly, as sums of integers have no order."""
    case = BY_NAME[name]._replace(shape=(5, *BY_NAME[name].shape[1:]))
    x, plan, bias = testing.make_int8_inputs(case, int8)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(lowrank_conv2d_int8(x, plan, bias, backend="cpu"))
            results.append(torch.cat([lowrank_conv2d_int8(image[None], plan, bias, backend="cpu") for image in x]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def call(inputs: testing.Int8Inputs, **changes):
    """The op itself, so that no check in Python comes first."""
    x, plan, bias = inputs
    arguments = {"x": x, "bias": bias, **plan._asdict(), "activation": "relu", **changes}
    return torch.ops.hscc.lowrank_conv2d_int8_cpu(*arguments.values())


INPUTS = testing.make_int8_inputs(BY_NAME["clusters"], testing.INT8[1])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"x": INPUTS.x.double()}, "x: got dtype"),
        ({"x": INPUTS.x.bfloat16()}, "x: got dtype"),
        ({"x": INPUTS.x.to(torch.int8)}, "x: got dtype"),
        ({"x": INPUTS.x.mT[:, :, 1:]}, "x: got 6 x 7, which gives an output of 6 x 7, expected one of 7 x 7"),
        ({"v": INPUTS.plan.v.float()}, "v: got dtype"),
        ({"v": INPUTS.plan.v.view(torch.uint8)}, "v: got dtype"),
        ({"v_scale": INPUTS.plan.v_scale[1:]}, "v_scale: got .* scales, expected"),
        ({"v_scale": INPUTS.plan.v_scale.double()}, "v_scale: got dtype"),
        ({"v_scale": INPUTS.plan.v_scale.repeat(2)[::2]}, "v_scale: got .* without gaps"),
        ({"u": INPUTS.plan.u.bfloat16()}, "u: got dtype"),
        ({"bias": INPUTS.bias.double()}, "bias: got dtype"),
        ({"scale": 0.0}, "scale: got 0, expected"),
        ({"scale": float("nan")}, "scale: got nan, expected"),
        ({"scale": 1e39}, "scale: got 1e[+]39, expected"),
        ({"zero_point": -1}, "zero_point: got -1, expected 0..255"),
        ({"zero_point": 256}, "zero_point: got 256, expected 0..255"),
        ({"activation": "gelu"}, "activation: got gelu"),
    ],
)
def test_wrong_arguments_are_errors(changes, text):
    with pytest.raises(RuntimeError, match=text):
        call(INPUTS, **changes)


def test_patches_whose_sums_might_overflow_are_an_error():
    case = BY_NAME["pointwise"]._replace(shape=(1, 65794, 1, 1), ranks=((1,),), bias="none")
    x, plan, _ = testing.make_inputs(case, torch.float32)
    with pytest.raises(ValueError, match="D = 65794, expected at most 65793"):
        Int8Plan.quantised(plan, 0.1, 0)
    inputs = testing.Int8Inputs(x, Int8Plan(plan.v.to(torch.int8), torch.ones(1), *plan[1:], 0.1, 0), None)
    with pytest.raises(RuntimeError, match="D = 65794, expected at most 65793"):
        call(inputs)


def test_the_longest_patch_does_not_overflow():
    case = BY_NAME["pointwise"]._replace(shape=(1, 65793, 1, 1), ranks=((None,),), bias="none", out_channels=2)
    x, plan, _ = testing.make_inputs(case, torch.float32)
    v = torch.full(plan.v.shape, -128, dtype=torch.int8)
    plan = Int8Plan(v, torch.ones(2), *plan[1:], 1.0, 0)
    got = lowrank_conv2d_int8(torch.full_like(x, 255.0), plan, backend="cpu")
    assert torch.equal(got, torch.full_like(got, -65793.0 * 255 * 128))


def test_malformed_plans_never_crash():
    """Random damage to the index tensors: an error or some output, never an access outside the tensors."""
    generator = torch.Generator().manual_seed(0)
    values = [-(2**31), -2, -1, 0, 1, 2, 3, 5, 7, 30, 100, 2**31 - 1]
    errors = 0
    for trial in range(400):
        case = testing.CASES[trial % len(testing.CASES)]
        inputs = testing.make_int8_inputs(case, testing.INT8[trial % len(testing.INT8)])
        damaged = {}
        for name in ("positions", "rows", "channels", "work", "clusters"):
            index = getattr(inputs.plan, name).clone()
            hits = int(torch.randint(0, 3, (), generator=generator))
            for place in torch.randint(0, max(index.numel(), 1), (hits,), generator=generator).tolist():
                if index.numel():
                    index.view(-1)[place] = values[int(torch.randint(len(values), (), generator=generator))]
            damaged[name] = index
        try:
            out = call(inputs, **damaged)
            assert out.shape[:2] == (case.shape[0], case.out_channels)
        except RuntimeError as error:
            errors += "got" in str(error)
    assert errors > 200
