"""The specification in int8 against float convolutions, rows to 8 bits, the public call: errors, gradients, export."""

from __future__ import annotations

import pytest
import torch

from hscc_kernels import BackendUnavailable, Int8Plan, explain, lowrank_conv2d_int8, quantise_rows, testing
from hscc_kernels.reference_int8 import quantise

BY_NAME = {case.name: case for case in testing.CASES}
X, PLAN, BIAS = testing.make_int8_inputs(BY_NAME["regions"], testing.Int8(8, 100))
FLOAT = testing.make_inputs(BY_NAME["regions"], torch.float32).plan
AVAILABLE = [name for name in ("cpu", "reference") if explain(X)[name] is None]
BACKENDS = pytest.mark.parametrize("backend", AVAILABLE)


@pytest.mark.parametrize(("scale", "zero_point"), [(0.1, 0), (0.3, 128), (1.0, 255), (7.7e-3, 3)])
def test_inputs_are_rounded_as_pytorch_does(scale, zero_point) -> None:
    x = torch.cat([torch.randn(5000) * 100 * scale, (torch.arange(-600, 600) / 2) * scale])
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)
    got = quantise(x, scale, zero_point)
    assert got.dtype == torch.uint8
    assert torch.equal((got.float() - zero_point) * scale, expected)


def test_inputs_that_are_not_finite() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert quantise(x, 0.1, 7).tolist() == [7, 255, 0]


@pytest.mark.parametrize("case", testing.CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("int8", testing.INT8, ids=str)
def test_specification_is_the_float_one_on_rounded_numbers(case, int8) -> None:
    """On inputs and rows that are what 8 bits leave of them; zero padding is exactly 0."""
    x, plan, bias = testing.make_int8_inputs(case, int8)
    scale = torch.tensor(plan.scale).double()
    rounded = (quantise(x, plan.scale, plan.zero_point).double() - plan.zero_point) * scale
    rows = plan.v.double() * plan.v_scale.double()[:, None]
    float_plan = plan.dequantised().to(torch.float64)._replace(v=rows)
    expected = testing.plain(rounded, float_plan, None if bias is None else bias.double(), case.activation)
    # the product of both scales is rounded to float32 in the specification: not here, as v_scale is float64
    torch.testing.assert_close(testing.exact_int8(x, plan, bias, case.activation), expected, rtol=1e-10, atol=1e-10)


@BACKENDS
def test_inputs_in_8_bits_already(backend: str) -> None:
    for x in (X, X.contiguous(), X[:, :, :, ::1].mT.mT):
        expected = lowrank_conv2d_int8(x, PLAN, BIAS, backend=backend)
        got = lowrank_conv2d_int8(quantise(x, PLAN.scale, PLAN.zero_point), PLAN, BIAS, backend=backend)
        assert got.dtype == torch.float32
        assert torch.equal(got, expected)


@BACKENDS
@pytest.mark.parametrize(("bits", "most"), [(8, 0.012), (7, 0.02)])
def test_near_the_float_layer(backend: str, bits: int, most: float) -> None:
    """What 8 bits cost: about 1 % of the outputs' root mean square with normal numbers."""
    x, plan, bias = testing.make_inputs(BY_NAME["wide"]._replace(activation="none"), torch.float32)
    x = x.relu()
    int8 = Int8Plan.quantised(plan, x.max().item() / 255, 0, bits)
    exact = testing.exact(x, plan, bias, "none")
    got = lowrank_conv2d_int8(x, int8, bias, backend=backend)
    error = ((got - exact).square().mean() / (exact - exact.mean()).square().mean()).sqrt().item()
    assert 0 < error < most, error


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (7, 63)])
def test_rows_to_the_nearest(bits: int, most: int) -> None:
    v = torch.randn(50, 99) * torch.logspace(-30, 30, 50)[:, None]
    v[7] = 0
    got, scale = quantise_rows(v, bits)
    assert got.dtype == torch.int8
    assert scale.dtype == torch.float32
    assert scale[7] == 1
    assert not got[7].any()
    largest = got.abs().amax(1)
    assert largest[torch.arange(50) != 7].tolist() == [most] * 49
    assert ((got * scale.double()[:, None] - v).abs() <= scale.double()[:, None] * 0.500001).all()


def test_ties_of_rows_go_to_even() -> None:
    got, scale = quantise_rows(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]))
    assert scale.tolist() == [1.0]
    assert got.tolist() == [[127, 0, 2, 2, 0, -2]]


def test_rows_without_numbers() -> None:
    for shape in ((0, 9), (3, 0)):
        got, scale = quantise_rows(torch.zeros(shape))
        assert got.shape == shape
        assert scale.tolist() == [1.0] * shape[0]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((FLOAT, 0.1, 256), ValueError, "zero_point: got 256, expected 0..255"),
        ((FLOAT, 0.0, 0), ValueError, "scale: got 0.0, expected"),
        ((FLOAT, 0.1, 0, 4), ValueError, r"bits: got 4, expected one of \[7, 8\]"),
        ((FLOAT.to(torch.float64), 0.1, 0), TypeError, "plan: got torch.float64, expected torch.float32"),
        ((FLOAT._replace(v=FLOAT.v / 0), 0.1, 0), ValueError, "v: got numbers that are not finite"),
    ],
)
def test_plans_that_do_not_fit(arguments, error, match) -> None:
    with pytest.raises(error, match=match):
        Int8Plan.quantised(*arguments)


@BACKENDS
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": [1.0]}, TypeError, "x: got list, expected a torch.Tensor"),
        ({"plan": FLOAT}, TypeError, "plan: got PackedPlan, expected an Int8Plan"),
        ({"x": X[:, :5]}, ValueError, r"x: got shape \(3, 5, 10, 8\), expected \(N, 16, H, W\)"),
        ({"x": X.double()}, TypeError, "x: got torch.float64, expected torch.float32 or torch.uint8"),
        ({"x": X[:, :, 1:]}, ValueError, "x: got 9 x 8, which gives an output of 9 x 8, expected one of 10 x 8"),
        ({"bias": BIAS[:, 1:]}, ValueError, r"bias: got shape \(3, 23\), expected \(24,\) or \(3, 24\)"),
        ({"bias": BIAS.double()}, TypeError, "bias: got torch.float64 on cpu, expected torch.float32 on cpu"),
        ({"plan": PLAN._replace(v=FLOAT.v)}, TypeError, "v: got torch.float32, expected torch.int8"),
        ({"plan": PLAN._replace(u=PLAN.u.double())}, TypeError, "u: got torch.float64, expected torch.float32"),
        ({"plan": PLAN._replace(v_scale=PLAN.v_scale[1:])}, TypeError, "v_scale: got torch.float32 of shape"),
        ({"plan": PLAN._replace(scale=0.0)}, ValueError, "scale: got 0.0, expected"),
        ({"plan": PLAN._replace(zero_point=-1)}, ValueError, "zero_point: got -1, expected 0..255"),
        ({"activation": "gelu"}, ValueError, "activation: got 'gelu', expected one of"),
    ],
)
def test_bad_arguments(backend: str, change: dict, error: type, match: str) -> None:
    arguments = {"x": X, "plan": PLAN, "bias": BIAS, "backend": backend} | change
    with pytest.raises(error, match=match):
        lowrank_conv2d_int8(**arguments)


def test_backends_that_cannot() -> None:
    with pytest.raises(BackendUnavailable, match="backend 'triton' cannot run: triton has no int8"):
        lowrank_conv2d_int8(X, PLAN, backend="triton")
    with pytest.raises(ValueError, match="backend: got 'fast', expected one of"):
        lowrank_conv2d_int8(X, PLAN, backend="fast")


@BACKENDS
@pytest.mark.parametrize("name", ["x", "bias", "u"])
def test_no_gradient(backend: str, name: str) -> None:
    """Refused in words, by the call and by the op, compiled or not; fine where no gradient is asked for."""
    op = getattr(torch.ops.hscc, f"lowrank_conv2d_int8_{backend}")
    parts = {"x": X, "bias": BIAS, "u": PLAN.u}
    parts[name] = parts[name].clone().requires_grad_()
    plan = PLAN._replace(u=parts["u"])
    match = "got an input that requires a gradient, expected none"
    with pytest.raises(RuntimeError, match=match):
        lowrank_conv2d_int8(parts["x"], plan, parts["bias"], backend=backend)
    with pytest.raises(RuntimeError, match=match):
        op(parts["x"], parts["bias"], *plan, "none")
    expected = lowrank_conv2d_int8(X, PLAN, BIAS, backend=backend)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(lowrank_conv2d_int8(parts["x"], plan, parts["bias"], backend=backend), expected)


class Layer(torch.nn.Module):
    def __init__(self, backend: str):
        super().__init__()
        self.backend = backend
        tensors = {name: value for name, value in PLAN._asdict().items() if isinstance(value, torch.Tensor)}
        for name, value in tensors.items():
            self.register_buffer(name, value)
        self.names = list(tensors)

    def forward(self, x):
        plan = PLAN._replace(**{name: getattr(self, name) for name in self.names})
        return lowrank_conv2d_int8(x * 2, plan, BIAS, activation="relu", backend=self.backend).sin()


@BACKENDS
@torch.no_grad()
def test_compile_and_export(backend: str) -> None:
    layer = Layer(backend)
    expected = layer(X)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(X), expected)
    program = torch.export.export(layer, (X,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},))
    torch.testing.assert_close(program.module()(X[:2]), expected[:2])


@pytest.mark.slow
@pytest.mark.skipif("cpu" not in AVAILABLE, reason=str(explain(X)["cpu"]))
@torch.no_grad()
def test_ahead_of_time(tmp_path) -> None:
    layer = Layer("cpu")
    program = torch.export.export(layer, (X,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "layer.pt2"))
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(X), layer(X))
