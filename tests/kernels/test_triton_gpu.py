"""The Triton kernel on a GPU: numerics of every configuration, and the ways in which PyTorch runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bench.kernels.cases import LAYERS, Case, make_input, make_plan
from hscc_kernels import Geometry, lowrank_conv2d, testing
from hscc_kernels.triton_kernels import autotune, configs
from hscc_kernels.triton_kernels import lowrank_conv2d as module
from hscc_kernels.triton_kernels.configs import Chip, Config
from tests.kernels.test_lowrank_conv2d import gradient_ratios

pytestmark = pytest.mark.gpu
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CASES = {case.name: case for case in testing.CASES}


def inputs(name: str, dtype: torch.dtype = torch.bfloat16, device: str = "cuda") -> testing.Inputs:
    """Made on the CPU, so that every device sees the same values."""
    x, plan, bias = testing.make_inputs(CASES[name], dtype)
    return testing.Inputs(x.to(device), plan.to(device), None if bias is None else bias.to(device))


class Layer(torch.nn.Module):
    """The op with its plan."""

    def __init__(self, given: testing.Inputs) -> None:
        super().__init__()
        self.plan, self.bias = given.plan, given.bias

    def forward(self, x):
        return lowrank_conv2d(x, self.plan, self.bias, activation="relu", backend="triton")


def ratio(given: testing.Inputs, activation: str, config: Config | None = None) -> float:
    x, plan, bias = given
    got = module.lowrank_conv2d(x, bias, *plan, activation, config)
    return testing.error_ratio(got, testing.plain(*given, activation), testing.exact(*given, activation))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, dtype: torch.dtype, poison) -> None:
    assert ratio(inputs(name, dtype), CASES[name].activation) <= 1


def tiles() -> list[tuple[str, torch.dtype, Config]]:
    """Every tile with cases that ``configs.table`` gives it for; each compiles for seconds, so each is a test."""
    hopper = torch.cuda.is_available() and Chip.of(torch.device("cuda", 0)).hopper
    half, single = torch.bfloat16, torch.float32
    ways = {
        ("regions", half): configs.HOPPER + configs.HOPPER_L1 if hopper else configs.HALF,
        ("wide", half): configs.SCATTERED,
        ("first layer", half): configs.WHOLE_ROW,
        ("no bias", half): configs.WHOLE_ROW,
        ("wide", single): configs.SINGLE,
        ("regions", single): configs.SINGLE,
        ("first layer", single): configs.UNPIPELINED,
    }
    return [(name, dtype, config) for (name, dtype), table in ways.items() for config in table]


@pytest.mark.parametrize(("name", "dtype", "config"), tiles(), ids=lambda value: getattr(value, "name", str(value)))
def test_every_tile(name: str, dtype: torch.dtype, config: Config, poison) -> None:
    assert ratio(inputs(name, dtype), CASES[name].activation, config) <= 1
    if name == "regions" and dtype == torch.bfloat16:  # its window full, and more than half full
        ranks = ((config.BR,), (config.BR // 2 + 1,))
        case = testing.Case("window", "", (3, 64, 15, 13), 72, Geometry((3, 3), padding=(1, 1)), ranks)
        x, plan, bias = testing.make_inputs(case, dtype)
        assert ratio(testing.Inputs(x.cuda(), plan.to("cuda"), bias.cuda()), case.activation, config) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["wide", "regions", "first layer"])
def test_64_bit_offsets(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, poison) -> None:
    monkeypatch.setattr(module, "TALLEST", 2**31)
    assert ratio(inputs(name, dtype), CASES[name].activation) <= 1


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("name", ["positions", "rows", "channels", "work", "clusters"])
def test_a_broken_plan_is_survived(name: str, short: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the index tensors hold; a memory checker sees what stays without effect here."""
    if short:
        monkeypatch.setattr(module, "_structure", lambda *tensors: module.Structure(64, True))
    x, plan, bias = inputs("regions")
    for low, high in ((-(2**31), 2**31), (-3, 40)):
        broken = torch.randint(low, high, getattr(plan, name).shape).int()
        for column in {"work": (2, 6), "clusters": (3,)}.get(name, ()):
            broken[:, column].clamp_(max=200)  # a count beyond the memory is only slow, but very slow
        module.lowrank_conv2d(x, bias, *plan._replace(**{name: broken.cuda()}), "relu")
    torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", testing.CASES, ids=lambda case: case.name)
def test_gradients(case, dtype: torch.dtype, poison) -> None:
    ratios = gradient_ratios(case, "triton", dtype, device="cuda")
    assert max(ratios.values()) <= 1, ratios


def test_gradients_under_autocast() -> None:
    given = inputs("regions", torch.float32)
    x = given.x.requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        y = Layer(given)(x)
    assert y.dtype == torch.bfloat16
    (got,) = torch.autograd.grad(y.float().sum(), x)
    (expected,) = torch.autograd.grad(testing.exact(*given, "relu").sum(), x)
    assert (got - expected).abs().max() <= 0.02 * expected.abs().max()


def test_one_kernel_a_forward() -> None:
    given = inputs("regions")
    layer = Layer(given)
    layer(given.x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        layer(given.x)
        torch.cuda.synchronize()
    kernels = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 1, kernels


def test_warm_forward_never_waits() -> None:
    given = inputs("regions")
    layer = Layer(given)
    layer(given.x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(given.x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_capture_with_new_inputs() -> None:
    given = inputs("wide")
    layer, static = Layer(given), given.x.clone()
    layer(static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(static)
    for seed in range(3):
        torch.manual_seed(seed)
        static.copy_(torch.randn_like(static))
        graph.replay()
        assert torch.equal(out, layer(static))


def test_side_stream() -> None:
    given = inputs("wide")
    layer = Layer(given)
    expected = layer(given.x)
    stream = torch.cuda.Stream()
    x = torch.zeros_like(given.x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        x.copy_(given.x)
        got = layer(x)
    stream.synchronize()
    assert torch.equal(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_another_gpu() -> None:
    first, second = inputs("wide"), inputs("wide", device="cuda:1")
    with torch.cuda.device(0):
        got = Layer(second)(second.x)
    assert got.device == second.x.device
    torch.testing.assert_close(got.cpu(), Layer(first)(first.x).cpu())


def test_compile_export_and_package(tmp_path: Path) -> None:
    given = inputs("regions")
    layer = Layer(given)
    expected = layer(given.x)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(given.x), expected)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(layer, (given.x,), dynamic_shapes={"x": {0: batch}})
    torch.testing.assert_close(exported.module()(given.x[:2]), expected[:2])
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "layer.pt2"))
    with torch.inference_mode():
        torch.testing.assert_close(torch._inductor.aoti_load_package(package)(given.x), expected)


def test_tf32_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs("wide", torch.float32)
    exact = testing.exact(*given, "relu")
    error = (Layer(given)(given.x) - exact).abs().max()
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    with_tf32 = (Layer(given)(given.x) - exact).abs().max()
    assert 10 * error < with_tf32 < 1e-2 * exact.abs().max()


def test_large_offsets() -> None:
    """An output of more than 2^31 elements, checked in its last image."""
    case = testing.Case("large", "", (1, 16, 64, 64), 256, CASES["plain"].geometry, ((16,),))
    x, plan, bias = testing.make_inputs(case, torch.bfloat16)
    x, plan, bias = x.cuda(), plan.to("cuda"), bias.cuda()
    images = 2**31 // (256 * 64 * 64) + 2
    many = x.expand(images, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    got = lowrank_conv2d(many, plan, bias, backend="triton")
    torch.testing.assert_close(got[-1:], lowrank_conv2d(x, plan, bias, backend="triton"))


def test_autotune_once_and_never_in_a_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSCC_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("HSCC_AUTOTUNE", raising=False)
    monkeypatch.setattr(autotune, "_chosen", {})
    timed = []
    fastest = autotune.fastest
    monkeypatch.setattr(autotune, "fastest", lambda *args: timed.append(1) or fastest(*args))
    given = inputs("wide")
    layer = Layer(given)
    layer(given.x)  # compiled before the capture
    autotune._chosen.clear()
    monkeypatch.setenv("HSCC_AUTOTUNE", "1")
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        layer(given.x)
    assert not timed
    expected = layer(given.x)
    assert torch.equal(layer(given.x), expected)
    assert timed == [1]
    assert autotune.path().is_file()


@pytest.mark.parametrize("reduction", [1.5, 5.3, 20.0])
def test_layers_of_real_networks(reduction: float) -> None:
    """Channels in order, four regions, ranks below and above the tallest window."""
    for name in ("alexnet3", "resnet18_5", "resnet50_4_skip"):
        layer = LAYERS[name]
        plan = make_plan(Case(layer, "unequal", 1, reduction)).to("cuda", torch.bfloat16)
        x = make_input(layer, 3).to("cuda", torch.bfloat16)
        bias = torch.randn(layer.out_channels, generator=torch.Generator().manual_seed(2)).to("cuda", torch.bfloat16)
        assert ratio(testing.Inputs(x, plan, bias), "relu") <= 1, name
