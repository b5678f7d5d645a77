"""The Triton kernel under the interpreter; ``test_triton.py`` runs this file in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors, lowrank_conv2d, testing
from hscc_kernels.triton_kernels import autotune, configs
from hscc_kernels.triton_kernels import lowrank_conv2d as module
from hscc_kernels.triton_kernels.configs import Config
from tests.kernels import triton_interpreter
from tests.kernels.test_lowrank_conv2d import gradient_ratios
from tests.kernels.test_registration import samples

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGE = Config(256, 128, 64, 128, 4, 1)  # few steps: the interpreter takes some milliseconds for each
CASES = {case.name: case for case in testing.CASES}


@triton.jit
def _product(a, b, c, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def _round(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i).to(tl.bfloat16))


@triton.jit
def _keep_positive(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    values = tl.load(x + i)
    tl.store(y + i, tl.where(values.to(tl.float32) > 0, values, 1.5))


@triton.jit
def _count(out, n):
    total = 0
    for i in range(0, n):
        total += i
    tl.store(out, total)


def product_is_right() -> bool:
    a, b = (torch.randn(16, 16).bfloat16() for _ in range(2))
    c = torch.empty(16, 16)
    _product[(1,)](a, b, c, 16)
    return torch.allclose(c, a.float() @ b.float(), atol=1e-5)


def rounding_is_right() -> bool:
    x, y = torch.randn(64), torch.empty(64, dtype=torch.bfloat16)
    _round[(1,)](x, y, 64)
    return torch.equal(y, x.bfloat16())


def constant_is_right() -> bool:
    x, y = torch.tensor([-1.0, 2.0]).bfloat16(), torch.empty(2, dtype=torch.bfloat16)
    _keep_positive[(1,)](x, y, 2)
    return y.tolist() == [1.5, 2.0]


def loop_is_right() -> bool:
    out = torch.zeros(1, dtype=torch.int32)
    _count[(1,)](out, 5)
    return out.item() == 10


FAULTS = {f.__name__: f for f in (product_is_right, rounding_is_right, constant_is_right, loop_is_right)}
NUMPY_NEEDS_INDEX = tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4) and triton.__version__.startswith("3.6")


def holds(check) -> bool:
    try:
        return check()
    except Exception:  # the interpreter wraps whatever goes wrong in it
        return False


# Before install(), so that the faults show.
BEFORE = {name: holds(check) for name, check in FAULTS.items()}
triton_interpreter.install()


@pytest.mark.parametrize("name", FAULTS)
def test_fault_shows_and_is_mended(name: str) -> None:
    if name != "loop_is_right" or NUMPY_NEEDS_INDEX:
        assert not BEFORE[name], f"{triton.__version__} has mended this: drop the correction"
    assert FAULTS[name]()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one at each launch of any kernel."""
    seen: list[object] = []
    run = interpreter.GridExecutor.__call__

    def counted(self, *args, **kwargs):
        seen.append(self.fn)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
    return seen


def ratio(case, dtype: torch.dtype, seed: int = 0, config: Config | None = None) -> float:
    x, plan, bias = testing.make_inputs(case, dtype, seed)
    got = module.lowrank_conv2d(x, bias, *plan, case.activation, config)
    arguments = (x, plan, bias, case.activation)
    return testing.error_ratio(got, testing.plain(*arguments), testing.exact(*arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", testing.CASES, ids=lambda case: case.name)
def test_cases(case, dtype: torch.dtype, launches, poison) -> None:
    assert ratio(case, dtype, config=LARGE) <= 1
    assert len(launches) == (0 if case.shape[0] == 0 else 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", testing.CASES, ids=lambda case: case.name)
def test_gradients(case, dtype: torch.dtype, poison) -> None:
    ratios = gradient_ratios(case, "triton", dtype)
    assert max(ratios.values()) <= 1, ratios


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_kept_in_16_bits_are_seen(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    dot, kept = interpreter.InterpreterBuilder.create_dot, torch.float16 if dtype == torch.float16 else torch.bfloat16

    def create_dot(self, *operands):
        sums = torch.from_numpy(dot(self, *operands).data).to(kept).float()
        return interpreter.TensorHandle(sums.numpy(), tl.float32)

    assert ratio(CASES["first layer"], dtype, config=LARGE._replace(BK=16)) <= 1
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    assert ratio(CASES["first layer"], dtype, config=LARGE._replace(BK=16)) > 1


def test_dropped_bits_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the interpreter rounds to bfloat16 before its correction."""
    assert ratio(CASES["no bias"], torch.bfloat16, config=LARGE) <= 1
    monkeypatch.setattr(triton_interpreter, "round_to_bfloat16", lambda x: (x.view(np.uint32) >> 16).astype(np.uint16))
    assert ratio(CASES["no bias"], torch.bfloat16, config=LARGE) > 1


@pytest.mark.parametrize("config", sorted({*configs.SCATTERED, *configs.SINGLE}), ids=lambda config: config.name)
def test_every_tile(config: Config, poison) -> None:
    """Ranks above and below the window, several clusters and regions, tiles that end inside an image."""
    case = CASES["clusters" if config.BR < 32 else "shared rows"]
    assert ratio(case, torch.float16, config=config) <= 1


@pytest.mark.parametrize(
    "config", sorted({*configs.HALF, *configs.HOPPER, *configs.HOPPER_L1}), ids=lambda config: config.name
)
def test_every_tile_in_order(config: Config, poison) -> None:
    """Windows that are full, and more than half full."""
    ranks = (config.BR,), (config.BR // 2 + 1,)
    case = testing.Case("window", "", (2, 16, 6, 5), 72, Geometry((3, 3), padding=(1, 1)), ranks)
    assert ratio(case, torch.float16, config=config) <= 1


def test_rank_chunks(poison) -> None:
    """Slices that outgrow the window, alone, beside others and dense, and more channels than a store takes."""
    for ranks in (((37,), (5,)), ((37, None), (None, 3))):
        case = testing.Case("chunks", "", (2, 16, 7, 6), 70, Geometry((3, 3), padding=(1, 1)), ranks)
        assert ratio(case, torch.float16, config=Config(128, 16, 64, 32, 4, 1)) <= 1


def test_more_taps_than_bits(poison) -> None:
    case = testing.Case("taps", "", (2, 16, 9, 8), 20, Geometry((7, 5), padding=(3, 1), dilation=(1, 2)), ((6,), (3,)))
    assert ratio(case, torch.float16, config=LARGE) <= 1


@pytest.mark.parametrize("name", ["regions", "stride", "first layer"])
def test_64_bit_offsets(name: str, monkeypatch: pytest.MonkeyPatch, poison) -> None:
    monkeypatch.setattr(module, "TALLEST", 2**31)
    assert ratio(CASES[name], torch.bfloat16, config=LARGE) <= 1


def test_one_program_walks_all_tiles_and_many_leave(monkeypatch: pytest.MonkeyPatch, poison) -> None:
    for programs in (3, 1000):
        monkeypatch.setattr(configs, "INTERPRETER", configs.Chip("interpreter", programs))
        assert ratio(CASES["regions"], torch.float32, config=Config(32, 16, 32, 32, 8, 1)) <= 1


def test_default_configurations(poison) -> None:
    """Without an explicit configuration, through the public call, with gradients."""
    case = CASES["regions"]
    x, plan, bias = testing.make_inputs(case, torch.float32)
    x.requires_grad_()
    mine = lowrank_conv2d(x, plan, bias, activation="relu", backend="triton")
    plain = testing.plain(x, plan, bias, "relu")
    torch.testing.assert_close(mine, plain)
    grad = torch.randn_like(plain)
    for got, expected in zip(torch.autograd.grad(mine, x, grad), torch.autograd.grad(plain, x, grad), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> list[configs.Problem]:
    """What the host knows of each call."""
    seen, choose = [], autotune.choose
    monkeypatch.setattr(autotune, "choose", lambda problem, *rest: seen.append(problem) or choose(problem, *rest))
    return seen


def test_a_plan_is_read_once(problems, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its largest slice picks the window, whatever the regions' mean; a warm call reads no tensor."""
    x, plan, bias = testing.make_inputs(CASES["regions"], torch.float32)
    lowrank_conv2d(x, plan, bias, backend="triton")
    for name in ("tolist", "item", "cpu", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, None)
    lowrank_conv2d(x, plan, bias, backend="triton")
    assert [(problem.slice_rows, problem.one_cluster, problem.rows) for problem in problems] == [(16, True, 26)] * 2


def one_cluster_a_region(ranks: tuple[int, int]) -> tuple[torch.Tensor, PackedPlan, torch.Tensor]:
    case = testing.Case("loaded", "", (2, 16, 7, 6), 24, Geometry((3, 3), padding=(1, 1)), ((ranks[0],), (ranks[1],)))
    return testing.make_inputs(case, torch.float16)


def test_a_plan_that_is_written_to_is_read_again(problems, poison) -> None:
    """As load_state_dict does: as many rows in all, but another largest slice."""
    x, plan, bias = one_cluster_a_region((16, 16))
    lowrank_conv2d(x, plan, bias, backend="triton")
    other = one_cluster_a_region((4, 28))[1]
    for mine, new in zip(plan[:-1], other[:-1], strict=True):
        mine.copy_(new)
    got = lowrank_conv2d(x, plan, bias, backend="triton")
    assert [problem.slice_rows for problem in problems] == [16, 28]
    plain, exact = (f(x, plan, bias, "none") for f in (testing.plain, testing.exact))
    assert testing.error_ratio(got, plain, exact) <= 1


def test_a_write_that_nobody_tells_of_gives_nan() -> None:
    """Tensors of inference mode have no version: the kernel sees that its window is too small."""
    with torch.inference_mode():
        x, plan, bias = one_cluster_a_region((16, 16))
        plan = PackedPlan(*(t.clone() for t in plan[:-1]), plan.sizes)
        assert lowrank_conv2d(x, plan, bias, backend="triton").isfinite().all()
        for mine, new in zip(plan[:-1], one_cluster_a_region((4, 28))[1][:-1], strict=True):
            mine.copy_(new)
        assert lowrank_conv2d(x, plan, bias, backend="triton").isnan().any()


def test_autocast(poison) -> None:
    x, plan, bias = testing.make_inputs(CASES["regions"], torch.float32)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = lowrank_conv2d(x, plan, bias, backend="triton")
    assert y.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(y.float().sum(), x)
    (exact,) = torch.autograd.grad(testing.exact(x, plan, bias, "none").sum(), x)
    assert grad.dtype == torch.float32
    assert (grad - exact).abs().max() <= 0.02 * exact.abs().max()


def test_special_values(poison) -> None:
    """An infinite pixel spoils what it reaches, as in the reference, and nothing else."""
    x, plan, bias = testing.make_inputs(CASES["regions"], torch.float32)
    x[0, 0, 2, 3] = float("inf")
    x[1, 1, 4, 4] = float("nan")
    mine = lowrank_conv2d(x, plan, bias, activation="relu", backend="triton")
    plain = testing.plain(x, plan, bias, "relu")
    assert torch.equal(mine.isnan(), plain.isnan())
    torch.testing.assert_close(mine, plain, equal_nan=True)


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("case", ["clusters", "regions"])
@pytest.mark.parametrize("name", ["positions", "rows", "channels", "work", "clusters"])
def test_a_broken_plan_is_survived(name: str, case: str, short: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the index tensors hold, the process lives: the interpreter's foreign accesses are real ones."""
    if short:
        monkeypatch.setattr(module, "_structure", lambda *tensors: module.Structure(LARGE.BR, True))
    x, plan, bias = testing.make_inputs(CASES[case], torch.float16)
    generator = torch.Generator().manual_seed(0)
    for low, high in ((-(2**31), 2**31), (-3, 40)):
        broken = torch.randint(low, high, getattr(plan, name).shape, generator=generator).int()
        if name == "work":
            broken[:, 2].clamp_(max=200)  # a count beyond the memory is only slow, but very slow
            broken[:, 6].clamp_(max=200)
        if name == "clusters":
            broken[:, 3].clamp_(max=200)
        module.lowrank_conv2d(x, bias, *plan._replace(**{name: broken}), "relu", LARGE)


def test_wrong_shapes_are_refused() -> None:
    x, plan, bias = testing.make_inputs(CASES["plain"], torch.float32)
    for kwargs, message in (
        ({"v": plan.v[:, 1:]}, "x: got shape"),
        ({"bias": bias[:, 1:]}, "bias: got shape"),
        ({"u": plan.u.half()}, "u: got torch.float16"),
        ({"positions": plan.positions[1:]}, "positions: got shape"),
    ):
        arguments = {"x": x, "bias": bias, **plan._asdict(), "activation": "none"} | kwargs
        with pytest.raises((TypeError, ValueError), match=message):
            module.lowrank_conv2d(*arguments.values())


def test_layers_of_real_width(poison) -> None:
    """C and O of a real layer, ranks at the edge of the window, few positions."""
    case = testing.Case("real", "", (1, 128, 6, 6), 256, Geometry((3, 3), padding=(1, 1)), ((64,), (48,)), unequal=True)
    assert ratio(case, torch.bfloat16, config=LARGE) <= 1


def test_opcheck() -> None:
    for arguments in islice(samples("lowrank_conv2d_triton"), 2):  # without and with gradients
        torch.library.opcheck(torch.ops.hscc.lowrank_conv2d_triton.default, arguments)


class Doubled(torch.nn.Module):
    """The op between two others, its plan as a constant."""

    def __init__(self, plan, bias) -> None:
        super().__init__()
        self.plan, self.bias = plan, bias

    def forward(self, x):
        return lowrank_conv2d(x * 2, self.plan, self.bias, activation="relu", backend="triton").sin()


def test_compile_and_export() -> None:
    x, plan, bias = testing.make_inputs(CASES["regions"], torch.float32)
    module = Doubled(plan, bias)
    expected = module(x)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), expected)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(module, (x,), dynamic_shapes={"x": {0: batch}}).module()
    torch.testing.assert_close(exported(x), expected)
    torch.testing.assert_close(exported(x[:2]), expected[:2])


@pytest.mark.parametrize(("dense", "mixed"), [(False, False), (True, False), (True, True)])
def test_one_cluster(dense: bool, mixed: bool, poison) -> None:
    """Channels in order, the kernel's short way; then a region whose only cluster is dense, and permuted."""
    ranks = (5, None if dense else 9)
    regions, start = [], 0
    for rank in ranks:
        u = None if rank is None else torch.randn(23, rank).half()
        count = rank or 23
        rows = torch.arange(start, start + count)
        channels = torch.randperm(23) if mixed else torch.arange(23)
        regions.append(RegionFactors(rows, (ClusterFactors(channels, 0, u),)))
        start += count
    v = torch.randn(start, 9 * 16).half() / 16
    labels = torch.arange(7 * 6).view(7, 6) % 3 // 2
    plan = PackedPlan.pack(v, regions, labels, Geometry((3, 3), padding=(1, 1)))
    assert module._structure(plan.channels, plan.clusters).one_cluster != dense
    arguments = (torch.randn(2, 16, 7, 6).half(), plan, torch.randn(2, 23).half())
    got = lowrank_conv2d(*arguments, activation="relu", backend="triton")
    plain, exact = (f(*arguments, "relu") for f in (testing.plain, testing.exact))
    assert testing.error_ratio(got, plain, exact) <= 1
