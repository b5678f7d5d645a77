"""ONNX files in 8 bits: near the model in both runtimes, of bytes in truth; turned factors compute the same."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hscc
import pytest
import torch
from hscc.exports import mixing
from hscc.exports.portable import as_portable
from hscc.nn.chain import ConvChain
from hscc.observe.data import watch
from torch import Tensor, nn

from tests.hscc.exports.layers import plain_net, regions_net
from tests.hscc.exports.test_export import ANY, RUNTIMES

onnx = pytest.importorskip("onnx", reason="needs hscc[onnx]")


def pictures(count: int, seed: int = 0) -> Tensor:
    coarse = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=24, mode="bilinear")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A compressed network whose factors have strong and weak rows, and batch norms."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()
    head = nn.MaxPool2d(2), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)
    made = nn.Sequential(*layers, *head).eval()
    hscc.compress_(made, pictures(32), hscc.Config(hscc.flops(2), portable=True))
    hscc.fuse_(made)
    return made


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).square().mean() / wanted.square().mean()).sqrt().item()


@RUNTIMES
@torch.no_grad()
def test_files_compute_in_8_bits(model, tmp_path: Path, run) -> None:
    path, x, before = tmp_path / "m.onnx", pictures(5, seed=1), copy.deepcopy(model.state_dict())
    done = hscc.export_int8(model, path, pictures(32).split(8), metadata={"hscc.images": "some text"})
    assert error(run(path, x), model(x)) < 0.05
    assert 1e-4 < done.error < 0.05
    assert (done.bits, done.bytes, done.dynamic) == (8, path.stat().st_size, ("batch",))
    assert "onnx in 8 bits" in str(done)
    graph = onnx.load(path)
    assert {entry.key for entry in graph.metadata_props} == {"hscc.images", "hscc.signature"}
    stored = Counter(one.data_type for one in graph.graph.initializer if len(one.dims) == 4)
    assert stored.keys() == {onnx.TensorProto.INT8}
    floats = tmp_path / "float.onnx"
    hscc.export(model, floats, example=x[:1])
    assert path.stat().st_size < 0.5 * floats.stat().st_size
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@torch.no_grad()
def test_seven_bits_and_dense_models(tmp_path: Path) -> None:
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    assert hscc.export_int8(dense, tmp_path / "8.onnx", pictures(8), dynamic=()).error < 0.03
    assert "onnx in 7 bits" in str(hscc.export_int8(dense, tmp_path / "7.onnx", pictures(8), bits=7))
    weights = [one for one in onnx.load(tmp_path / "7.onnx").graph.initializer if len(one.dims) == 4]
    assert weights
    assert all(onnx.numpy_helper.to_array(one).__abs__().max() <= 64 for one in weights)


@torch.no_grad()
def test_rotations_keep_the_function_and_even_rows_out(model) -> None:
    x = pictures(4, seed=2)
    wanted = model(x)
    before = _unevenness(model, x, wanted, lambda model: None)
    assert before > 10
    assert _unevenness(model, x, wanted, mixing.mix_) < 4


def _unevenness(model: nn.Module, x: Tensor, wanted: Tensor, turn: Callable[[nn.Module], object]) -> float:
    """How many times further the strongest row of a factor's outputs spreads than its weakest, of the worst layer."""
    spreads: list[Tensor] = []
    with as_portable(model, x[:1]):
        turn(model)
        layers = [first for first, second in mixing._pairs(model) if second.kernel_size == (1, 1)]
        with watch(dict(enumerate(layers)), lambda name, x, y: spreads.append(y.std((0, 2, 3)))):
            torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    assert len(spreads) >= 2
    return max((rows.max() / rows.min()).item() for rows in spreads)


def test_rotation_lessens_the_error(tmp_path: Path, monkeypatch) -> None:
    """Of a factor with a row that is ten times as strong as the others, which would round them away."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 64, 3, bias=False), nn.Conv2d(64, 64, 1)
    first.weight.data[0] *= 10
    second.weight.data[:, :, 0, 0] = torch.linalg.qr(torch.randn(64, 64)).Q
    chain = ConvChain(first, second).eval()
    turned = hscc.export_int8(chain, tmp_path / "m.onnx", torch.randn(16, 3, 12, 12)).error
    monkeypatch.setattr("hscc.exports.model.mix_", lambda model: None)
    assert turned < 0.7 * hscc.export_int8(chain, tmp_path / "m.onnx", torch.randn(16, 3, 12, 12)).error


@RUNTIMES
@torch.no_grad()
def test_batch_norms_that_nothing_takes_up_are_in_bytes(tmp_path: Path, run) -> None:
    """As DenseNets have them, between a pool and a ReLU; those of vectors stay."""
    torch.manual_seed(0)
    norm, last = nn.BatchNorm2d(8, eps=0.1), nn.BatchNorm1d(4)
    for one in (norm, last):
        nn.init.normal_(one.weight)
        nn.init.normal_(one.bias)
        one.running_mean.normal_()
        one.running_var.uniform_(0.5, 2)
    body = nn.Conv2d(3, 8, 3), nn.AvgPool2d(2), norm, nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(*body, nn.Flatten(), nn.ReLU(), last, nn.ReLU()).eval()
    hscc.export_int8(model, tmp_path / "m.onnx", pictures(16).split(8))
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node)
    assert (kinds["Conv"], kinds["BatchNormalization"]) == (3, 1)
    x = pictures(4, seed=1)
    assert error(run(tmp_path / "m.onnx", x), model(x)) < 0.05


def test_what_cannot_be_is_told_and_files_stay(model, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("before")
    assert hscc.export_int8(model, tmp_path / "any.onnx", [pictures(2), pictures(2)[..., :16]], dynamic=ANY).bits == 8
    (tmp_path / "any.onnx").unlink()
    with pytest.raises(ValueError, match=r"layer '2' with regions, expected one compressed with Config\(portable"):
        hscc.export_int8(regions_net(), path, torch.randn(4, 1, 10, 8))
    with pytest.raises(ValueError, match="bits: got 4, expected 8, or 7"):
        hscc.export_int8(model, path, pictures(4), bits=4)
    with pytest.raises(ValueError, match=r"model: got torch.float64, expected torch.float32"):
        hscc.export_int8(copy.deepcopy(model).double(), path, pictures(4).double())
    with pytest.raises(ValueError, match=r"calibration: got a batch of torch\.int64"):
        hscc.export_int8(model, path, [torch.zeros(1, 3, 24, 24, dtype=torch.int64)])
    with pytest.raises(ValueError, match="calibration: got no batch"):
        hscc.export_int8(model, path, [])
    with pytest.raises(ValueError, match=r"calibration: got images of .*, expected one size, or height and width"):
        hscc.export_int8(model, path, [pictures(2), pictures(2)[..., :16]])
    with pytest.raises(ValueError, match="training mode"):
        hscc.export_int8(plain_net().train(), path, pictures(4))
    with monkeypatch.context() as patch:
        patch.setattr("hscc.exports.int8.quantise", lambda *args: [].pop())
        with pytest.raises(ValueError, match=r"does not quantise \(pop from empty list\)"):
            hscc.export_int8(model, path, pictures(4))
    monkeypatch.setattr("hscc.exports.int8.TOLERANCE", 1e-6)
    with pytest.raises(ValueError, match="got a file whose outputs are off by"):
        hscc.export_int8(model, path, pictures(4))
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]
