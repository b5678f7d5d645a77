"""The projection of a layer's input channels: what it keeps, what it costs, and its way through the library."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import hscc
import pytest
import torch
from hscc import HSCConv2d, Projection, SqueezedConv2d
from hscc.maths import factors
from hscc.maths.factors import Metric
from hscc.maths.moments import Outer, RegionMoments
from hscc.search import squeeze
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hscc_kernels import _extension


def outputs(own: squeeze.Squeeze, x: torch.Tensor) -> torch.Tensor:
    """Behind its projection, in the layer's own coordinates."""
    projection, conv = own.inside(torch.eye(own.conv.out_channels, dtype=torch.float64))
    return conv(projection(x))


def inputs_of(x: torch.Tensor) -> Outer:
    inputs = Outer.empty(x.shape[1], x.device)
    for part in x.split(3):
        inputs.add(part)
    return inputs


def squeezes_of(conv: nn.Conv2d, x: torch.Tensor, root: torch.Tensor | None = None) -> list[squeeze.Squeeze]:
    root = torch.eye(conv.out_channels, dtype=torch.float64) if root is None else root
    return squeeze.candidates(conv, inputs_of(x), root.T @ root)


def net_on_grey() -> tuple[nn.Sequential, list[torch.Tensor]]:
    """A network whose three input channels are one, seen three times."""
    torch.manual_seed(0)
    grey = nn.functional.interpolate(torch.randn(32, 1, 6, 6), size=(24, 24), mode="bilinear") + 0.5
    model = nn.Sequential(nn.Conv2d(3, 12, 5, 2, 2), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU())
    model += nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    return model.eval(), list(grey.repeat(1, 3, 1, 1).split(8))


@pytest.mark.parametrize("options", [{"padding": 2}, {"padding": "same", "bias": False}, {"padding_mode": "reflect"}])
def test_inputs_with_one_direction_need_one_channel(options: dict) -> None:
    conv = nn.Conv2d(3, 8, 5, **{"padding": 1, **options})
    x = torch.randn(6, 1, 12, 12) * torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1)
    *_, lossless = squeezes_of(conv, x)
    assert lossless.projection.shape == (1, 3)
    assert (lossless.work.pointwise_macs, lossless.work.numbers) == (12 * 12 * 3, 3)
    torch.testing.assert_close(outputs(lossless, x), conv(x), rtol=1e-4, atol=1e-5)


def test_a_squeeze_of_a_pointwise_layer_is_the_best_of_its_width() -> None:
    conv = nn.Conv2d(32, 40, 1, bias=False).double()
    x = (torch.randn(9, 32, 7, 5) * torch.linspace(2, 0.1, 32).view(1, -1, 1, 1)).double()
    root = Metric.of(torch.diag(torch.linspace(0.1, 4, 40)).double()).root
    wanted = root @ conv(x).transpose(0, 1).flatten(1)
    found = squeezes_of(conv, x, root)
    assert [len(s.projection) for s in found] == [2, 4, 8, 16]
    for own in found:
        missed = wanted - root @ outputs(own, x).transpose(0, 1).flatten(1)
        best = torch.linalg.svdvals(wanted)[len(own.projection) :].square().sum()
        assert missed.square().sum().item() == pytest.approx(best.item(), rel=1e-4)


def test_held_out_gains_of_a_regression_are_what_it_explains() -> None:
    y = torch.randn(600, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 2
    x = y @ torch.randn(6, 6, dtype=torch.float64) + 0.3 * torch.randn_like(y)

    def moments(part: slice) -> RegionMoments:
        dx, dy = x[part] - x[part].mean(0), y[part] - y[part].mean(0)
        return RegionMoments(len(dx), x[part].mean(0), dx.T @ dx / len(dx), y[part].mean(0), dy.T @ dx / len(dx))

    channels, metric = torch.arange(6), Metric(torch.eye(6).double(), torch.eye(6).double())
    spectrum = factors.from_regression(moments(slice(300)), channels, metric, factors.Ridge(1e-6))
    gains = factors.held_out_gains(spectrum, metric, moments(slice(300, None)), channels, falling=False)
    about = y[300:] - spectrum.target_mean
    for rank in range(7):
        guess = (x[300:] - spectrum.mean) @ spectrum.a[:rank].T @ spectrum.u[:, :rank].T
        explained = about.square().sum(1).mean() - (about - guess).square().sum(1).mean()
        assert explained.item() == pytest.approx(gains[:rank].sum().item(), rel=1e-6, abs=1e-9)


def test_moments_are_gathered_in_passes_that_fit_in_memory() -> None:
    several = {name: squeezes_of(nn.Conv2d(32, 40, 1), torch.randn(3, 32, 4, 4)) for name in "abc"}
    layer = SimpleNamespace(cells=SimpleNamespace(count=2), frame=SimpleNamespace(into=torch.zeros(30, 40)))
    stats = dict.fromkeys(several, layer)
    one = 4 * (4 * 4 * 2 * 30**2)
    assert list(squeeze.groups(several, stats, 3 * one)) == [["a", "b", "c"]]
    assert list(squeeze.groups(several, stats, 2 * one)) == [["a", "b"], ["c"]]
    assert list(squeeze.groups(several, stats, 1)) == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize("reconstruction", ["sequential", "independent"])
def test_squeezed_layers_go_all_the_way(reconstruction: str, tmp_path) -> None:
    model, data = net_on_grey()
    fresh, dense = copy.deepcopy(model), copy.deepcopy(model)
    plan = hscc.plan(model, data, hscc.Config(hscc.flops(2.5), reconstruction=reconstruction))
    planned, report = plan.report(), hscc.apply_(model, plan, data)
    first, x = model[0], data[0]
    assert isinstance(first, SqueezedConv2d)
    assert (first.in_channels, first.squeeze.weight.shape) == (3, (3, 1))
    row = report.layers[0]
    assert (row.squeeze, row.flops) == (1, first.plan.flops() + 2 * 24 * 24 * 3)
    assert row.parameters == sum(p.numel() for p in first.parameters())
    assert planned.flops == report.flops
    assert hscc.Report.from_dict(report.to_dict()) == report
    with torch.no_grad():
        assert (model(x) - dense(x)).norm() < 0.5 * (dense(x) - dense(x).mean(0)).norm()
    first(x).sum().backward()
    assert first.squeeze.weight.grad.abs().sum() > 0
    torch.testing.assert_close(first(x[0]), first(x)[0], rtol=1e-4, atol=1e-5)
    hscc.save(model, tmp_path / "m.safetensors", report=report)
    assert hscc.load_(fresh, tmp_path / "m.safetensors") == report
    for other in (fresh, copy.deepcopy(model).to(memory_format=torch.channels_last)):
        torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_layer_is_one_op_and_a_squeezed_convolution_two_layers(layout: torch.memory_format) -> None:
    x = torch.randn(2, 8, 12, 12).contiguous(memory_format=layout)
    layer = HSCConv2d.dense(nn.Conv2d(4, 6, 3, padding=1), (12, 12))
    squeezed = SqueezedConv2d.of(Projection(torch.randn(8, 4)), layer)
    assert [name.partition("_")[0] for name in computing_ops(layer, x[:, :4])] == ["hscc::lowrank"]
    ours = "hscc::project" if _extension.WHY_NOT is None else "aten::mm"
    product = "aten::bmm" if layout == torch.contiguous_format else ours
    assert [name.partition("_")[0] for name in computing_ops(squeezed, x)] == [product, "hscc::lowrank"]


@pytest.mark.gpu
def test_a_layer_is_one_kernel() -> None:
    x = torch.randn(2, 32, 12, 12, device="cuda").contiguous(memory_format=torch.channels_last)
    layer = HSCConv2d.dense(nn.Conv2d(32, 48, 3, padding=1), (12, 12)).cuda()
    with torch.no_grad():
        layer(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            layer(x)
            torch.cuda.synchronize()
    seen = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(seen) == 1, seen


def computing_ops(module: nn.Module, x: torch.Tensor) -> list[str]:
    """Names of the ops of a forward that are no views."""
    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if not function.is_view and function is not torch.ops.aten._unsafe_view.default:  # a view, not so marked
                seen.append(function._schema.name)
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Recorder():
        module(x)
    return seen


def test_a_squeeze_of_another_shape_is_refused(tmp_path) -> None:
    model, data = net_on_grey()
    fresh = copy.deepcopy(model)
    hscc.compress_(model, data, hscc.Config(hscc.flops(2.5)))
    before = {name: p.clone() for name, p in fresh.state_dict().items()}
    model[0].squeeze.weight = nn.Parameter(model[0].squeeze.weight.detach().T[..., None, None].contiguous())
    hscc.save(model, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"squeeze: got torch.float32 \(1, 3, 1, 1\), expected torch.float32 \(C, 1\)"):
        hscc.load_(fresh, tmp_path / "m.safetensors")
    assert all(torch.equal(p, before[name]) for name, p in fresh.state_dict().items())


def test_without_squeeze_there_is_none() -> None:
    model, data = net_on_grey()
    report = hscc.compress_(model, data, hscc.Config(hscc.flops(2.5), squeeze=False))
    assert all(layer.squeeze == 0 for layer in report.layers)
    assert not any(isinstance(m, SqueezedConv2d) for m in model.modules())
