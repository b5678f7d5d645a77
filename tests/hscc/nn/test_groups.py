"""Grouped convolutions as one op on a wider map: equal to ``nn.Conv2d`` at full rank, and at home everywhere else."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import hscc
import pytest
import torch
from hscc import HSCConv2d, Projection
from hscc.exports.portable import Widened, portable, regions
from hscc.exports.regions import Gathered, Masked
from hscc.fit import int8
from hscc.nn.forms import form_of
from hscc.nn.groups import Wide
from hscc.nn.projection import SqueezedConv2d
from hscc.nn.surgery import Student
from hscc.report import joined
from torch import Tensor, nn

from hscc_kernels import ClusterFactors, RegionFactors, testing
from tests.hscc.nn.test_forms import PadsItself

CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(64, 96, 3, groups=4),
    "padding": lambda: nn.Conv2d(64, 64, 3, padding=1, groups=4),
    "stride": lambda: nn.Conv2d(64, 96, 3, stride=2, padding=1, groups=4),
    "stride of columns": lambda: nn.Conv2d(32, 32, (3, 5), (1, 3), (0, 2), groups=2),
    "dilation": lambda: nn.Conv2d(32, 32, 3, padding=2, dilation=(1, 2), groups=2, bias=False),
    "same": lambda: nn.Conv2d(64, 64, (4, 2), padding="same", groups=4),
    "reflect": lambda: nn.Conv2d(32, 32, 3, stride=2, padding=1, padding_mode="reflect", groups=2),
    "as TensorFlow": lambda: PadsItself(32, 32, 3, stride=2, groups=2),
    "pointwise": lambda: nn.Conv2d(64, 64, 1, stride=2, groups=4),
}
GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "in_channels", "out_channels")


def united(conv: nn.Conv2d, size: tuple[int, int], parts: int = 1) -> tuple[HSCConv2d, list[HSCConv2d]]:
    """At full rank; in ``parts`` regions of columns, those of the second group the other way round."""
    form = form_of(conv.eval())
    out = form(torch.zeros(1, conv.in_channels, *size, dtype=conv.weight.dtype)).shape[2:]
    labels = torch.arange(out[1]).mul(parts).div(out[1], rounding_mode="floor").expand(*out).contiguous()
    layers = []
    for number, part in enumerate(form.parts):
        rows, outputs = part.weight.detach().permute(0, 2, 3, 1).flatten(1), torch.arange(part.out_channels)
        region = RegionFactors(outputs, (ClusterFactors(outputs, 0, torch.eye(len(outputs), dtype=rows.dtype)),))
        bias = torch.zeros(len(outputs), dtype=rows.dtype) if part.bias is None else part.bias.detach()
        flipped = labels.flip(1) if number == 1 else labels
        layers.append(HSCConv2d.from_conv(part, (region,) * parts, rows, bias.expand(parts, -1).clone(), flipped))
    return form.united(layers), layers


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("parts", [1, 2])
def test_full_rank_equals_conv2d(name: str, parts: int) -> None:
    """Outputs, also of other sizes, without a batch and of no image; gradients of inputs and of parameters."""
    conv = CONVOLUTIONS[name]().double()
    layer, _ = united(conv, (9, 11), parts)
    assert layer.wide == (conv.groups, conv.stride[1])
    assert all(getattr(layer, field) == getattr(conv, field) for field in GEOMETRY if field != "padding")
    for size in ((9, 11), (8, 10), (17, 6), (5, 23)):
        x = torch.randn(3, conv.in_channels, *size, dtype=torch.float64, requires_grad=True)
        y, wanted = layer(x), conv(x)
        torch.testing.assert_close(y, wanted)
        torch.testing.assert_close(layer(x[0]), wanted[0])
        assert layer(x[:0]).shape == wanted[:0].shape
        grad = torch.randn_like(y)
        torch.testing.assert_close(*(torch.autograd.grad(out, x, grad)[0] for out in (y, wanted)))
    if conv.bias is not None:
        (found,) = torch.autograd.grad(layer(x), layer.bias, grad)
        (wanted,) = torch.autograd.grad(conv(x), conv.bias, grad)
        counted = found[: conv.groups * parts].view(conv.groups, parts, -1).sum(1).flatten()
        torch.testing.assert_close(counted, wanted)


def test_kernels_give_what_the_reference_does() -> None:
    """Of any layout of the input, poisoned where nothing may be read."""
    for name in ("padding", "stride"):
        layer, _ = united(CONVOLUTIONS[name](), (14, 14))
        x = torch.randn(2, 64, 14, 14)
        exact = copy.deepcopy(layer).double()(x.double())
        for own in (x, x.contiguous(memory_format=torch.channels_last), torch.randn(2, 64, 14, 28)[..., ::2].copy_(x)):
            torch.testing.assert_close(layer(own).double(), exact, rtol=1e-5, atol=1e-5)
        assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_strict_layers_say_sizes_of_the_convolution() -> None:
    layer, _ = united(CONVOLUTIONS["stride"](), (9, 11))
    layer.strict = True
    assert layer(torch.zeros(1, 64, 9, 11)).shape == (1, 96, 5, 6)
    with pytest.raises(ValueError, match="x: got 12 x 14, of 6 x 7 outputs, expected one of 5 x 6 as calibrated"):
        layer(torch.zeros(1, 64, 12, 14))


@pytest.mark.parametrize("shape", [(2, 32, 9, 11), (2, 63, 9, 11), (64, 9), (1, 2, 64, 9, 11)])
def test_other_inputs_are_refused(shape: tuple[int, ...]) -> None:
    layer, _ = united(CONVOLUTIONS["stride"](), (9, 11))
    with pytest.raises(ValueError, match=r"x: got shape .*, expected \(N, 64, H, W\)"):
        layer(torch.zeros(shape))


@pytest.mark.parametrize("name", ["padding", "stride"])
def test_compiled_and_exported(name: str) -> None:
    layer, _ = united(CONVOLUTIONS[name](), (12, 12), parts=2)
    x = torch.randn(2, 64, 12, 12)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x[..., :9]), layer(x[..., :9]))
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=6), 3: torch.export.Dim("w", min=6)}
    program = torch.export.export(nn.Sequential(layer), (x,), dynamic_shapes=(sizes,)).module()
    other = torch.randn(3, 64, 15, 10)
    torch.testing.assert_close(program(other), layer(other))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_exported_where_its_size_is_computed_from_that_of_the_images(name: str) -> None:
    layer, _ = united(CONVOLUTIONS[name](), (6, 6))
    model = nn.Sequential(nn.MaxPool2d(2), layer, nn.ReLU())
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=12), 3: torch.export.Dim("w", min=12)}
    images, other = torch.randn(2, layer.in_channels, 12, 12), torch.randn(3, layer.in_channels, 15, 21)
    program = torch.export.export(model, (images,), dynamic_shapes=(sizes,)).module()
    torch.testing.assert_close(program(other), model(other))


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("parts", [1, 2])
@torch.no_grad()
def test_portable_forms(name: str, parts: int) -> None:
    """Of one region a group grouped convolutions, of more the wider map."""
    conv = CONVOLUTIONS[name]().double()
    layer, _ = united(conv, (9, 11), parts)
    assert regions(layer) == parts
    own = portable(layer, (10, 14))
    kinds = (nn.Conv2d,) if parts == 1 else (Widened, Masked, Gathered)
    assert any(isinstance(module, kinds) for module in own)
    x = torch.randn(2, conv.in_channels, 10, 14, dtype=torch.float64)
    torch.testing.assert_close(own(x), conv(x))
    torch.testing.assert_close(own(x[0]), conv(x[0]))


@torch.no_grad()
def test_in_8_bits() -> None:
    layer, _ = united(CONVOLUTIONS["stride"](), (14, 14))
    samples = int8.Samples()
    for _ in range(4):
        x = torch.randn(4, 64, 14, 14)
        samples.add(x, layer(x))
    made, error, before = int8.fit(layer, samples, 8)
    assert (made.wide, made.geometry, made.groups) == (layer.wide, layer.geometry, 4)
    assert before < 1e-10
    assert error < 1e-3
    x = torch.randn(3, 64, 9, 12)
    assert (made(x) - layer(x)).norm() < 0.03 * layer(x).norm()
    back = made.dequantised()
    assert (back(x) - layer(x)).norm() < 0.03 * layer(x).norm()


class Net(nn.Module):
    """As ResNeXt's: grouped convolutions of both strides with batch norms; few groups and many."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 96, 3, padding=1, bias=False), nn.BatchNorm2d(96), nn.ReLU())
        self.many = nn.Conv2d(96, 96, 3, padding=1, groups=6, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(96), nn.ReLU()
        self.few = nn.Conv2d(96, 96, 3, stride=2, padding=1, groups=2)
        self.narrow = nn.Conv2d(96, 96, 3, padding=1, groups=12)
        self.head = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.many(self.stem(x))))
        return self.head(self.narrow(self.few(x).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, nn.Module, hscc.Report, Tensor]:
    """Dense, compressed, the report, calibration data."""
    torch.manual_seed(0)
    x = nn.functional.interpolate(torch.randn(64, 3, 6, 6), size=14)
    dense = Net()
    for conv in (dense.many, dense.few):  # of falling spectra, as trained ones are
        u, s, v = torch.linalg.svd(conv.weight.detach().unflatten(0, (conv.groups, -1)).flatten(2), full_matrices=False)
        falling = u * s.max() * torch.arange(1, s.shape[1] + 1) ** -1.5 @ v
        conv.weight = nn.Parameter(falling.view_as(conv.weight))
    dense(x)
    dense.eval().requires_grad_(False)
    model = copy.deepcopy(dense)
    report = hscc.compress_(model, x.split(16), hscc.Config(hscc.flops(2), regions=4))
    return dense, model, report, x


def test_a_network_gets_one_layer_and_one_row(made) -> None:
    dense, model, report, x = made
    rows = {row.name: row for row in report.layers}
    assert rows.keys() == {"stem.0", "many", "few", "narrow"}
    assert "groups of 8 to 8 channels, expected at least 16" in rows["narrow"].reason
    assert (rows["many"].groups, type(model.many), model.many.groups) == (6, HSCConv2d, 6)
    assert (rows["few"].groups, type(model.few)) == (2, HSCConv2d)
    assert len(rows["many"].ranks) % 6 == 0
    assert sum(rows["many"].region_sizes) == 6 * 14 * 14
    assert rows["many"].dense_flops == 2 * 14 * 14 * dense.many.weight.numel()
    assert rows["many"].flops == model.many.plan.flops()
    assert rows["few"].flops == model.few.plan.flops()
    assert "in 6 groups" in str(report)
    assert report.flop_reduction >= 2
    again = {row.name: row for row in hscc.summary(model, x[:2]).layers}
    assert (again["many"].flops, again["many"].dense_flops) == (rows["many"].flops, rows["many"].dense_flops)
    with torch.no_grad():
        for images in (x, x[:4, :, :11, :13]):
            assert (model(images) - dense(images)).norm() < 0.15 * dense(images).norm()


@torch.no_grad()
def test_files_fusing_and_the_way_back(made, tmp_path) -> None:
    dense, model, _, x = made
    model = copy.deepcopy(model)
    wanted = model(x)
    fused = hscc.fuse_(model)
    assert "many" in fused
    assert model.many.activation == "relu"
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    hscc.save(model, tmp_path / "small.safetensors")
    fresh = Net().eval()
    hscc.load_(fresh, tmp_path / "small.safetensors")
    torch.testing.assert_close(fresh(x), model(x))
    assert repr(fresh.many) == repr(model.many)
    hscc.restore_(fresh, dense)
    torch.testing.assert_close(fresh(x), dense(x))
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), dense.state_dict().values(), strict=True))


def test_a_damaged_file_is_refused(made, tmp_path) -> None:
    _, model, _, _ = made
    path = tmp_path / "small.safetensors"
    hscc.save(model, path)
    data = path.read_bytes()
    for wrong in ([0, 1], [5, 1], [6, 0]):
        path.write_bytes(data.replace(rb"\"wide\": [6, 1]", rf"\"wide\": {json.dumps(wrong)}".encode()))
        with pytest.raises(ValueError, match="wide: got"):
            hscc.load_(Net(), path)


def test_groups_with_a_squeeze_stay_apart(made, monkeypatch) -> None:
    """A projection takes calls of its own, so that few groups alone may have one."""
    dense, _, report, x = made
    looked = []
    monkeypatch.setattr("hscc.search.options.SMALL", 0.0)
    monkeypatch.setattr("hscc.search.squeeze.candidates", lambda conv, *_: looked.append(conv.in_channels) or [])
    plan = hscc.plan(copy.deepcopy(dense), x.split(16), hscc.Config(hscc.flops(2), regions=1))
    assert looked == [3, 48, 48]
    student = Student(dense, plan.targets.names)
    with plan.targets.formed(dense):
        dense(x[:1])
        form = dense.few
        layers = [HSCConv2d.dense(part, (7, 7)) for part in form.parts]
        squeezed = SqueezedConv2d.of(Projection(torch.eye(48)), layers[0])
        student.modules = {"few.parts.0": squeezed, "few.parts.1": layers[1]}
        plan.targets.unite(student)
        assert student.modules.keys() == {"few.parts.0", "few.parts.1"}
        student.modules = {"few.parts.0": layers[0]}  # the other stays dense
        plan.targets.unite(student)
        assert student.modules.keys() == {"few"}
        assert student.modules["few"].groups == 2
    rows = [replace(report.layers[0], name=name, squeeze=squeeze) for name, squeeze in (("a.0", 4), ("a.1", 0))]
    assert [row.name for row in joined(rows, dict.fromkeys(("a.0", "a.1"), "a"))] == ["a.0", "a.1"]


@pytest.mark.parametrize("numbers", [(4, 1), (4, 2), (1, 3)])
def test_a_wide_map_and_back(numbers: tuple[int, int]) -> None:
    wide, narrow = Wide(*numbers), testing.CASES[0].geometry._replace(stride=(1, numbers[1]))
    assert wide.narrow(wide.geometry(narrow)) == narrow
    assert Wide.of(numbers, wide.geometry(narrow).flat()) == wide
    y = torch.randn(2, 8, 3, 5)
    columns = wide.groups * (5 * wide.stride - (wide.stride > 1))
    torch.testing.assert_close(wide.written(wide.spread(y, columns)), y)
    x = torch.randn(2, 8, 3, 5)
    assert all(torch.equal(wide.read(x)[..., g :: wide.groups], part) for g, part in enumerate(x.chunk(wide.groups, 1)))
