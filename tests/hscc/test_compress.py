"""The whole way on a small network: errors fall, budgets hold, odd layers stay, nothing is lost on the way."""

from __future__ import annotations

import copy

import hscc
import pytest
import torch
from hscc import HSCConv2d, Projection, SqueezedConv2d
from hscc.observe.pairs import Pairs
from torch import nn


def relative_error(model: nn.Module, dense: nn.Module, data) -> float:
    x = torch.cat(list(data))
    with torch.no_grad():
        return ((model(x) - dense(x)).norm() / dense(x).norm()).item()


def config(reduction: float, **options) -> hscc.Config:
    return hscc.Config(hscc.flops(reduction), **options)


@pytest.mark.slow
@pytest.mark.parametrize("reconstruction", ["sequential", "independent"])
@pytest.mark.parametrize("clusters", [1, 3])
def test_error_falls_as_the_budget_grows(net, data, reconstruction: str, clusters: int) -> None:
    errors, predicted = [], []
    for reduction in (12, 6, 3, 1.5, 1):
        model = copy.deepcopy(net)
        report = hscc.compress_(model, data, config(reduction, clusters=clusters, reconstruction=reconstruction))
        assert report.flop_reduction >= reduction
        errors.append(relative_error(model[:6], net[:6], data))
        predicted.append(sum(layer.error for layer in report.layers))
    assert errors == sorted(errors, reverse=True)
    assert predicted == sorted(predicted, reverse=True)
    assert errors[-1] < 1e-5
    assert errors[0] > 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"factorization": "weight"}, {"region_method": "grid"}, {"clusters": 2}], ids=str
)
def test_energy_threshold(net, data, options: dict) -> None:
    errors = []
    for share in (0.5, 0.9, 0.999):
        model = copy.deepcopy(net)
        report = hscc.compress_(model, data, hscc.Config(hscc.energy(share), reconstruction="independent", **options))
        assert all(layer.error <= 1 - share + 1e-6 for layer in report.layers)
        errors.append(relative_error(model, net, data))
    assert errors == sorted(errors, reverse=True)


def test_activation_factors_beat_weight_factors(net, data) -> None:
    errors = {}
    for factorization in ("activation", "weight"):
        model = copy.deepcopy(net)
        hscc.compress_(model, data, config(6, factorization=factorization))
        errors[factorization] = relative_error(model, net, data)
    assert errors["activation"] < errors["weight"]


def test_sequential_beats_independent_on_the_calibration_data(net, data) -> None:
    errors = {}
    for reconstruction in ("sequential", "independent"):
        model = copy.deepcopy(net)
        hscc.compress_(model, data, config(8, reconstruction=reconstruction))
        errors[reconstruction] = relative_error(model, net, data)
    assert errors["sequential"] < errors["independent"]


def test_report_counts_what_the_model_holds(net, data) -> None:
    dense = copy.deepcopy(net)
    report = hscc.compress_(net, data, config(4, clusters=2))
    assert any(layer.squeeze for layer in report.layers)
    layers = {str(i): m for i, m in enumerate(net) if isinstance(m, (HSCConv2d, SqueezedConv2d))}
    assert set(layers) == {layer.name for layer in report.layers if not layer.reason}
    for row in report.layers:
        conv = dense.get_submodule(row.name)
        positions = {"0": 256, "2": 256, "5": 64}[row.name]
        assert row.dense_flops == 2 * positions * conv.weight.numel()
        assert row.dense_parameters == sum(p.numel() for p in conv.parameters())
        layer = layers[row.name]
        inputs = {"0": 1024, "2": 256, "5": 64}[row.name]
        assert row.flops == layer.plan.flops() + 2 * inputs * row.squeeze * conv.in_channels
        assert row.parameters == sum(p.numel() for p in layer.parameters())
    assert report.flop_reduction == report.dense_flops / report.flops
    assert "all" in str(report)
    assert hscc.Report.from_dict(report.to_dict()) == report


class Custom(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


class Odd(nn.Module):
    """Convolutions of every kind, one shared under two names and called twice, one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.also = self.shared
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.custom = Custom(8, 8, 1)
        self.transposed = nn.ConvTranspose2d(8, 8, 3, 2)
        self.volume = nn.Conv3d(8, 8, 1)
        self.idle = nn.Conv2d(8, 8, 3)

    def forward(self, x):
        x = self.also(self.shared(self.first(x)).relu()).relu()
        x = self.transposed(self.custom(self.grouped(x)))
        return self.volume(x[:, :, None]).mean((2, 3, 4))


def test_layers_that_cannot_be_taken_stay_untouched(data) -> None:
    model = Odd().eval()
    before = copy.deepcopy(model)
    report = hscc.compress_(model, data, config(1.5))
    for name in ("grouped", "custom", "transposed", "volume", "idle"):
        assert type(getattr(model, name)) is type(getattr(before, name))
        assert torch.equal(getattr(model, name).weight, getattr(before, name).weight)
        assert report.skipped[name]
    assert "grouped convolution: groups of 2 to 2 channels" in report.skipped["grouped"]
    assert "Custom has a forward of its own, which is not one convolution" in report.skipped["custom"]
    assert "only those whose kernel is their stride" in report.skipped["transposed"]
    assert "did not run" in report.skipped["idle"]
    assert model.shared is model.also
    assert isinstance(model.shared, (HSCConv2d, SqueezedConv2d))
    (shared,) = (layer for layer in report.layers if layer.name == "shared")
    assert shared.shared_with == ("also",)
    assert shared.flops == 2 * (model.shared.plan.flops() + 2 * 32 * 32 * shared.squeeze * 8)
    assert shared.dense_flops == 2 * 2 * 32 * 32 * 8 * 72


def test_total_flops_are_those_that_torch_counts(data) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = Odd().eval()
    with FlopCounterMode(display=False) as counter:
        model(data[0][:1])
    assert hscc.compress_(model, data, config(1.5)).dense_flops == counter.get_total_flops()


def test_second_compression_is_refused(net, data) -> None:
    hscc.compress_(net, data, config(3))
    with pytest.raises(ValueError, match=r"model: got one that is compressed already .* expected a dense model"):
        hscc.compress_(net, data, config(3))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"config": hscc.flops(3)}, "config: got Budget, expected hscc.Config"),
        ({"config": config(3, skip=["7", "x"])}, r"skip: got unknown layers \['x'\]"),
        ({"calibration": []}, "calibration: got no batch"),
        ({"model": nn.Conv2d(3, 4, 3)}, "model: got a bare convolution"),
        ({"config": config(20, skip=["0"])}, "budget: got flops=20, expected at most 4.78: the layers that cannot"),
    ],
)
def test_bad_input_changes_nothing(net, data, arguments: dict, match: str) -> None:
    before = copy.deepcopy(net.state_dict())
    arguments = {"model": net, "calibration": data, "config": config(3)} | arguments
    with pytest.raises((ValueError, TypeError), match=match):
        hscc.compress_(**arguments)
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_an_interrupted_run_changes_nothing(net, data, monkeypatch) -> None:
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pairs, "visit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        hscc.compress_(net, data, config(6))
    assert not any(isinstance(m, HSCConv2d) for m in net.modules())


@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_of_any_scale(net, data, dtype: torch.dtype, scale: float) -> None:
    """Factors would leave the range of float16 if they had the scale of the sensitivity."""
    for parameter in net[-1].parameters():
        parameter.data *= scale
    single, half = copy.deepcopy(net), copy.deepcopy(net).to(dtype)
    hscc.compress_(single, data, config(4))
    hscc.compress_(half, [x.to(dtype) for x in data], config(4))
    error, wanted = (relative_error(model.float(), net, data) for model in (half, single))
    assert error < 1.1 * wanted + 0.01


def test_with_little_memory_it_takes_longer_and_ends_the_same(net, data) -> None:
    begun = []
    models = [copy.deepcopy(net) for _ in range(2)]
    counts = []
    for model, memory in zip(models, (None, 1_000_000), strict=True):
        begun.clear()
        model.register_forward_pre_hook(lambda *_: begun.append(1))
        hscc.compress_(model, data, config(5, memory=memory))
        counts.append(len(begun))
    assert counts[0] < counts[1]
    for one, other in zip(*(m.state_dict().values() for m in models), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"memory: got 9.31e-07 GiB, expected at least \S+ GiB"):
        hscc.compress_(net, data, config(5, memory=1000))


def test_more_effort_misses_less(net, data) -> None:
    plans = {effort: hscc.plan(net, data, config(6, effort=effort)) for effort in ("quick", "normal", "thorough")}
    errors = {effort: sum(layer.error for layer in plan.layers.values()) for effort, plan in plans.items()}
    assert errors["thorough"] <= 1.001 * errors["normal"]
    assert errors["normal"] < errors["quick"]
    assert not any(layer.structure.squeeze for layer in plans["quick"].layers.values())


def test_the_report_says_where_the_time_went(net, data) -> None:
    report = hscc.compress_(net, data, config(6))
    assert {"profile", "sensitivity", "structures", "fit", "last layer"} <= set(report.seconds)
    assert all(seconds > 0 for seconds in report.seconds.values())
    assert "took " in str(report)
    assert "fit 0." in str(report)


def test_same_seed_same_model(net, data) -> None:
    models = [copy.deepcopy(net) for _ in range(2)]
    for model in models:
        hscc.compress_(model, data, config(5, clusters=2, seed=3))
    for one, other in zip(*(m.state_dict().values() for m in models), strict=True):
        assert torch.equal(one, other)


def test_skip_leaves_a_layer_alone(net, data) -> None:
    report = hscc.compress_(net, data, config(1.5, skip=["2"]))
    assert type(net[2]) is nn.Conv2d
    assert report.skipped["2"] == "named in skip"
    assert report.flop_reduction >= 1.5


def test_branches_and_concatenation(data) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
            self.join = nn.Conv2d(24, 8, 3, padding=1)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.join(torch.cat([self.right(x), self.left(x).relu(), x], 1))

    model = Branches().eval()
    dense = copy.deepcopy(model)
    report = hscc.compress_(model, data, config(3))
    assert [layer.name for layer in report.layers] == ["stem", "right", "left", "join"]
    assert relative_error(model, dense, data) < 0.7


@pytest.mark.parametrize(
    "budget",
    [hscc.Budget(flops=4, params=3), hscc.params(5), hscc.Budget(bytes=5), hscc.Budget(flops=2, params=4, bytes=4)],
    ids=str,
)
def test_every_limit_of_a_budget_holds(net, data, budget: hscc.Budget) -> None:
    dense = copy.deepcopy(net)
    report = hscc.compress_(net, data, hscc.Config(budget))
    assert report.flop_reduction >= (budget.flops or 1)
    assert report.parameter_reduction >= (budget.params or 1)
    assert report.byte_reduction >= (budget.bytes or 0)
    convs = [m for m in net.modules() if isinstance(m, (HSCConv2d, Projection, nn.Conv2d))]
    assert report.bytes == sum(t.numel() * t.element_size() for m in convs for t in m.state_dict().values())
    assert report.dense_bytes == 4 * report.dense_parameters
    assert report.parameters == sum(p.numel() for m in convs for p in m.parameters())
    assert relative_error(net[:6], dense[:6], data) < 0.8


@pytest.mark.parametrize("reduction", [1, 1.2, 2, 5])
def test_a_flops_budget_never_stores_more_than_the_dense_model(net, data, reduction: float) -> None:
    assert hscc.compress_(net, data, config(reduction)).parameter_reduction >= 1


def test_a_plan_says_beforehand_what_apply_does(net, data) -> None:
    before = copy.deepcopy(net.state_dict())
    plan = hscc.plan(net, data, config(4))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    planned, done = plan.report(), hscc.apply_(net, plan, data)
    assert [layer.ranks for layer in planned.layers] == [layer.ranks for layer in done.layers]
    assert planned.flops == done.flops
    assert planned.parameters >= done.parameters
    with pytest.raises(ValueError, match="calibration: got None, expected the data for sequential reconstruction"):
        hscc.apply_(net, plan)


def test_squeezed_layers_need_the_data_again(net, data) -> None:
    plan = hscc.plan(net, data, hscc.Config(hscc.flops(4), reconstruction="independent"))
    assert any(layer.structure.squeeze for layer in plan.layers.values())
    with pytest.raises(ValueError, match=r"calibration: got None, expected the data for .* squeezed layers"):
        hscc.apply_(net, plan)
    assert hscc.apply_(net, plan, data).flop_reduction >= 4


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "int8"}, {"portable": True}, {"method": "svd"}, {"method": "tucker2"}]
)
def test_where_nothing_is_compressed_the_report_says_so(options: dict) -> None:
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()
    before = copy.deepcopy(model.state_dict())
    report = hscc.compress_(model, torch.randn(64, 3, 12, 12), hscc.Config(hscc.energy(0.99999), **options))
    assert "warning: nothing is compressed: every layer stays as it is under this budget" in str(report)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_few_images_are_warned_about(net, data) -> None:
    few, enough = (hscc.compress_(copy.deepcopy(net), data * times, config(3)).warnings for times in (1, 2))
    assert "48 calibration images: got fewer than 64" in few[0]
    assert not any("calibration images" in warning for warning in enough)
