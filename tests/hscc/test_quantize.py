"""Compressed networks in 8 bits."""

from __future__ import annotations

import copy

import hscc
import pytest
import torch
import torch.nn.functional as F
from hscc.fit import int8
from hscc.nn.int8 import Int8Conv2d
from torch import Tensor, nn

from hscc_kernels.reference_int8 import quantise
from tests.hscc.users.networks import config, unchanged


def network() -> nn.Sequential:
    first = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 48, 3, stride=2, padding=1)
    rest = (
        nn.ReLU(),
        nn.Conv2d(48, 48, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.ConvTranspose2d(48, 16, 2, 2),
    )
    return nn.Sequential(*first, *rest, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


def images(count: int) -> list[Tensor]:
    return [F.interpolate(torch.randn(16, 3, 8, 8), size=(18, 20)) for _ in range(count)]


def missed(got: Tensor, wanted: Tensor) -> float:
    """The share of the energy of what is wanted, about its mean."""
    return float((got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, nn.Module, list[Tensor], hscc.QuantizeReport]:
    """(the float compressed network, the same in int8, the images of both, the report)."""
    torch.manual_seed(0)
    x, model = images(6), network()
    hscc.compress_(model, x, config(3))
    whole = copy.deepcopy(model)
    return model, whole, x, hscc.quantize_(whole, x)


@torch.no_grad()
def test_outputs_are_near_and_nothing_else_changed(made) -> None:
    model, whole, _, report = made
    assert not report.stays
    assert len(report.errors) == sum(isinstance(m, hscc.HSCConv2d) for m in model.modules())
    assert all(isinstance(m, Int8Conv2d) for m in whole.modules() if isinstance(m, hscc.HSCConv2d))
    assert 0 < max(report.errors.values()) < 0.005
    for x in images(2):
        assert 0 < missed(whole(x), model(x)) < 0.005
    assert torch.equal(whole[-1].weight, model[-1].weight)
    assert "int8" in str(report)
    assert report.to_dict()["errors"] == dict(report.errors)


@torch.no_grad()
def test_the_layer_is_the_specification(made) -> None:
    """Through the kernel, on inputs of another size too."""
    _, whole, _, _ = made
    layer = next(m for m in whole.modules() if isinstance(m, Int8Conv2d))
    for size in ((18, 20), (11, 13)):
        image = torch.randn(2, layer.in_channels, *size)
        inner = quantise(image, layer.scale, layer.zero_point).float() - layer.zero_point
        float_layer = layer.dequantised()
        torch.testing.assert_close(layer(image), float_layer(inner * layer.scale), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_refit_beats_plain_rounding(made) -> None:
    model, whole, x, _ = made
    rounded = copy.deepcopy(model)
    for name, module in whole.named_modules():
        if isinstance(module, Int8Conv2d):
            parent, _, child = name.rpartition(".")
            plain = Int8Conv2d.of(model.get_submodule(name), module.scale, module.zero_point)
            setattr(rounded.get_submodule(parent), child, plain)
    assert missed(whole(x[0]), model(x[0])) < missed(rounded(x[0]), model(x[0]))


def test_files_copies_and_state(made, tmp_path) -> None:
    _, whole, x, _ = made
    expected = whole(x[0])
    assert not expected.requires_grad  # frozen, so that no_grad is not needed
    hscc.save(whole, tmp_path / "int8.safetensors")
    fresh = network()
    hscc.load_(fresh, tmp_path / "int8.safetensors")
    assert torch.equal(fresh(x[0]), expected)
    assert torch.equal(copy.deepcopy(whole)(x[0]), expected)
    other = copy.deepcopy(whole)
    for module in other.modules():
        if isinstance(module, Int8Conv2d):
            module.scale, module.zero_point = 1.0, 0
            module.v.zero_()
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(x[0]), expected)
    with pytest.raises(RuntimeError, match="no gradients in int8"):
        whole(x[0].clone().requires_grad_())


@torch.no_grad()
def test_batch_norms_and_relus_are_fused_after_it(made, tmp_path) -> None:
    _, whole, x, _ = made
    fused = copy.deepcopy(whole)
    fused[1].weight.data[::2] *= -1  # negative scales go to the numbers
    fused[1].weight.data[3] = 0
    expected = fused(x[0])
    assert "0" in hscc.fuse_(fused)
    torch.testing.assert_close(fused(x[0]), expected, rtol=1e-4, atol=1e-5)
    hscc.save(fused, tmp_path / "fused.safetensors")
    fresh = network()
    hscc.load_(fresh, tmp_path / "fused.safetensors")
    torch.testing.assert_close(fresh(x[0]), fused(x[0]))
    with pytest.raises(ValueError, match="in int8 already"):
        hscc.quantize_(fused, x)


@torch.no_grad()
def test_compiled_exported_and_summarised(made, tmp_path) -> None:
    model, whole, x, _ = made
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x[0]), whole(x[0]))
    torch._dynamo.reset()
    assert hscc.export(whole, tmp_path / "int8.pt2", "export", example=x[0]).error < 1e-5
    with pytest.raises(ValueError, match="in int8, expected float layers, which"):
        hscc.export(whole, tmp_path / "int8.onnx", example=x[0])
    ours, theirs = hscc.summary(whole, x[0]), hscc.summary(model, x[0])
    assert ours.flops == theirs.flops
    assert ours.bytes < theirs.bytes


def test_compress_in_one_step(made) -> None:
    _, _, x, _ = made
    model = network()
    report = hscc.compress_(model, x, config(3, dtype="int8"))
    assert report.int8.keys() == {n for n, m in model.named_modules() if isinstance(m, Int8Conv2d)}
    assert "in int8: " in str(report)
    assert hscc.Report.from_dict(report.to_dict()).int8 == report.int8
    assert report.seconds["int8"] > 0


def test_an_interrupt_in_8_bits_leaves_the_dense_model(made, monkeypatch) -> None:
    def interrupt(*_):
        raise KeyboardInterrupt

    _, _, x, _ = made
    monkeypatch.setattr(int8, "fit", interrupt)

    def call() -> None:
        with pytest.raises(KeyboardInterrupt):
            hscc.compress_(model, x, config(3, dtype="int8"))

    model = network()
    unchanged(model, call)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "match", "error"),
    [
        (lambda model: model.double(), "of torch.float64, expected torch.float32", ValueError),
        (lambda model: hscc.restore_(model, network()), "without HSCConv2d, expected a compressed", ValueError),
        (hscc.fuse_, "with its ReLU, expected hscc.fuse_ after hscc.quantize_", ValueError),
    ],
)
def test_what_cannot_be_quantised_is_refused(made, change, match: str, error) -> None:
    model, _, x, _ = made
    model = copy.deepcopy(model)
    change(model)

    def call() -> None:
        with pytest.raises(error, match=match):
            hscc.quantize_(model, x)

    unchanged(model, call)


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="dtype: got 'int8' with max_drop"):
        hscc.Config(hscc.Budget(max_drop=1), dtype="int8")
    with pytest.raises(ValueError, match="got 'tucker2' with dtype='int8'"):
        hscc.Config(hscc.flops(2), method="tucker2", dtype="int8")
    with pytest.raises(TypeError, match=r"got parameters of torch.float64, expected torch.float32 for dtype='int8'"):
        hscc.compress_(network().double(), images(2)[0].double(), config(2, dtype="int8"))


def test_a_layer_that_loses_too_much_stays_in_float(made, monkeypatch) -> None:
    model, _, x, _ = made
    monkeypatch.setattr("hscc.quantize.MOST", 0.0002)
    whole = copy.deepcopy(model)
    report = hscc.quantize_(whole, x, skip=["7"])
    assert report.stays.pop("7.conv") == "named in skip"
    assert report.stays
    assert len(report.stays) < len(report.errors)
    with pytest.raises(ValueError, match=r"skip: got unknown layers \['nowhere'\]"):
        hscc.quantize_(copy.deepcopy(model), x, skip=["nowhere"])
    for name, reason in report.stays.items():
        assert reason.startswith("8 bits cost ")
        assert type(whole.get_submodule(name)) is hscc.HSCConv2d


@pytest.mark.parametrize("low", [0.0, -3.0])
def test_a_scale_covers_what_pays(low: float) -> None:
    values = torch.rand(500_000) * 4 + low
    scale, zero_point = int8.range_of(values)
    assert scale == pytest.approx(4 / 255, rel=0.01)
    assert zero_point == pytest.approx(-low / scale, abs=1)
    assert int8.range_of(torch.cat([values, torch.tensor([low + 8])]))[0] < 6 / 255  # a far value is cut off
    assert int8.range_of(torch.zeros(9)) == (1.0, 0)
