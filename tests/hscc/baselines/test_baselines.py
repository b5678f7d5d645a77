"""The baselines: exact at full rank for every kind of convolution, honest in the report, better with more budget."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import sys

import hscc
import numpy as np
import pytest
import torch
from hscc import HSCConv2d
from hscc.baselines import plan as baselines
from hscc.observe import calibrate
from hscc.observe.data import Calibration
from hscc.search.cost import UNLIMITED
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

METHODS = ("tucker2", "spatial_svd", "balf")
FACTORIZATIONS = ("activation", "weight")


def config(method: str, reduction: float, **options) -> hscc.Config:
    return hscc.Config(hscc.flops(reduction), method=method, **options)


def relative_error(model: nn.Module, dense: nn.Module, data: list[Tensor]) -> float:
    x = torch.cat(data)
    with torch.no_grad():
        return ((model(x) - dense(x)).norm() / dense(x).norm()).item()


def chain(conv: nn.Conv2d, method: str, factorization: str, size: tuple[int, int] = (9, 11)):
    """The layer as the baseline of that method sees it on random inputs; the inputs."""
    x = torch.randn(12, conv.in_channels, *size)
    model = nn.Sequential(conv).eval()
    settings = config(method, 2, factorization=factorization)
    profiles = calibrate.profile(model, Calibration.of(model, [x]), {"0": conv})
    return baselines.look(model, Calibration.of(model, [x]), profiles, settings)["0"], x


def at_full_rank(layer) -> nn.Sequential:
    full = layer.__class__(**{**vars(layer), "ranks": tuple(len(gains) for gains in layer.gains())})
    return full.factored()


GEOMETRIES = [
    dict(kernel_size=kernel, stride=stride, padding=padding, dilation=dilation)
    for kernel, stride, padding, dilation in itertools.product((3, (2, 3)), (1, (2, 1)), (0, 1, (2, 1)), (1, (1, 2)))
]
SPECIAL = [
    dict(kernel_size=3, padding="same"),
    dict(kernel_size=(2, 4), padding="same", dilation=(1, 2)),
    dict(kernel_size=3, padding="valid", stride=2),
    dict(kernel_size=3, padding=1, padding_mode="reflect"),
    dict(kernel_size=3, padding=(1, 2), padding_mode="circular", bias=False),
    dict(kernel_size=(5, 3), padding="same", padding_mode="replicate"),
    dict(kernel_size=1),
    dict(kernel_size=(1, 5), padding=(0, 2)),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factorization", FACTORIZATIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES + SPECIAL, ids=str)
def test_full_rank_is_the_dense_convolution(method: str, factorization: str, geometry: dict) -> None:
    conv = nn.Conv2d(4, 5, **geometry)
    layer, x = chain(conv, method, factorization)
    torch.testing.assert_close(at_full_rank(layer)(x), conv(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_full_rank_with_dead_and_equal_input_channels(method: str) -> None:
    """A singular covariance must not lose what calibration did not show."""
    conv = nn.Conv2d(4, 5, 3, padding=1)
    model = nn.Sequential(conv)
    seen = torch.randn(8, 4, 9, 9)
    seen[:, 1], seen[:, 2] = 0, seen[:, 3]
    profiles = calibrate.profile(model, Calibration.of(model, [seen]), {"0": conv})
    layer = baselines.look(model, Calibration.of(model, [seen]), profiles, config(method, 2))["0"]
    new = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(at_full_rank(layer)(new), conv(new), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_stages_are_plain_convolutions_in_the_mode_of_the_layer(method: str, factorization: str) -> None:
    conv = nn.Conv2d(6, 8, 3, padding=1).double().requires_grad_(False)
    model = nn.Sequential(conv, nn.Flatten()).train()
    data = [torch.randn(9, 6, 8, 8).double()]
    state = torch.random.get_rng_state()
    hscc.compress_(model, data, config(method, 3, factorization=factorization))
    assert torch.equal(state, torch.random.get_rng_state()), "initialising must not draw from the user's generator"
    assert isinstance(model[0], nn.Sequential)
    assert {type(stage) for stage in model[0]} == {nn.Conv2d}
    assert model[0].training
    assert {(p.dtype, p.requires_grad) for p in model[0].parameters()} == {(torch.float64, False)}
    assert [stage.bias is not None for stage in model[0]] == [False] * (len(model[0]) - 1) + [True]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_report_is_what_torch_counts(net, data, method: str, factorization: str) -> None:
    dense = copy.deepcopy(net)
    plan = hscc.plan(net, data, config(method, 4, factorization=factorization))
    planned, report = plan.report(), hscc.apply_(net, plan, data)
    assert (planned.flops, planned.parameters) == (report.flops, report.parameters)
    assert report.flop_reduction >= 4
    for row in report.layers:
        layer, old = net.get_submodule(row.name), dense.get_submodule(row.name)
        assert row.parameters == sum(p.numel() for p in layer.parameters())
        assert row.dense_parameters == sum(p.numel() for p in old.parameters())
    for model, wanted in ((net, report.flops), (dense, report.dense_flops)):
        with FlopCounterMode(display=False) as counter:
            model[:9](data[0][:1])
        assert counter.get_total_flops() == wanted
    assert hscc.Report.from_dict(report.to_dict()) == report
    assert "all" in str(report)


@pytest.mark.parametrize("method", METHODS)
def test_reported_error_is_that_of_the_layer(net, data, method: str) -> None:
    dense = copy.deepcopy(net)
    report = hscc.compress_(net, data, config(method, 4))
    x = torch.cat(data)
    with torch.no_grad():
        for index in range(3):
            x, row = dense[: (0, 2, 5)[index]](torch.cat(data)), report.layers[index]
            y, got = dense[int(row.name)](x), net[int(row.name)](x)
            energy = (y - y.mean((0, 2, 3), keepdim=True)).square().sum()
            assert row.error == pytest.approx(((got - y).square().sum() / energy).item(), rel=1e-3, abs=1e-6)
            if method != "balf":  # keeps the dense bias
                torch.testing.assert_close(got.mean((0, 2, 3)), y.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["svd", *METHODS])
@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_error_falls_with_the_budget(net, data, method: str, factorization: str) -> None:
    errors = []
    for reduction in (12, 5, 2, 1):
        model = copy.deepcopy(net)
        report = hscc.compress_(model, data, config(method, reduction, factorization=factorization))
        assert report.flop_reduction >= reduction
        errors.append(relative_error(model[:6], net[:6], data))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5
    assert errors[0] > 0.1


@pytest.mark.parametrize("method", ["svd", *METHODS])
def test_activations_beat_weights(net, data, method: str) -> None:
    errors = []
    for factorization in FACTORIZATIONS:
        model = copy.deepcopy(net)
        hscc.compress_(model, data, config(method, 4, factorization=factorization))
        errors.append(relative_error(model[:6], net[:6], data))
    assert errors[0] < errors[1]


@pytest.mark.parametrize("bias", [True, False])
def test_balf_is_the_truncated_svd_behind_the_second_moment_of_patches(bias: bool) -> None:
    conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=bias).double()
    model = nn.Sequential(conv)
    x = torch.randn(10, 3, 9, 9).double() + 1
    profiles = calibrate.profile(model, Calibration.of(model, [x]), {"0": conv})
    layer = baselines.look(model, Calibration.of(model, [x]), profiles, config("balf", 2))["0"]
    patches = nn.functional.unfold(x, 3, padding=1, stride=2).transpose(0, 1).flatten(1).numpy()  # (27, all positions)
    values, vectors = np.linalg.eigh(patches @ patches.T / patches.shape[1])
    weight, root = conv.weight.detach().flatten(1).numpy(), vectors * np.sqrt(values) @ vectors.T
    left, s, right = np.linalg.svd(weight @ root, full_matrices=False)
    np.testing.assert_allclose(layer.gains()[0], s**2, rtol=1e-6)
    first, last = dataclasses.replace(layer, ranks=(2,)).factored()
    wanted = left[:, :2] * s[:2] @ right[:2] @ np.linalg.inv(root)
    with torch.no_grad():
        np.testing.assert_allclose(last.weight.flatten(1) @ first.weight.flatten(1), wanted, atol=1e-6)
        torch.testing.assert_close(last.bias, conv.bias if bias else torch.zeros(6).double())


def test_balf_keeps_as_much_energy_as_the_budget_allows(net, data) -> None:
    plan = hscc.plan(net, data, config("balf", 3))
    assert plan.report().flop_reduction >= 3
    layers = plan.layers.values()
    options = [baselines.Options.of(layer) for layer in layers]
    choices = [[*zip(option.missed, option.costs[:, 0], strict=True)] for option in options]
    limit = sum(layer.dense.flops for layer in layers) / 3
    best = min(sum(m for m, _ in some) for some in itertools.product(*choices) if sum(f for _, f in some) <= limit)
    assert sum(layer.missed for layer in layers) == pytest.approx(best, abs=0.02)


def test_svd_is_one_region_one_cluster(net, data) -> None:
    report = hscc.compress_(net, data, config("svd", 3, clusters=4, regions=4))
    factored = [layer for layer in net if isinstance(layer, HSCConv2d)]
    assert factored
    assert {(layer.bias.shape[0], layer.plan.clusters.shape[0]) for layer in factored} == {(1, 1)}
    assert all(len(row.region_sizes) == 1 for row in report.layers if not row.reason)


@pytest.mark.parametrize("method", METHODS)
def test_energy_share_and_what_stays_dense(net, data, method: str) -> None:
    flops = []
    for share in (0.5, 0.9, 1.0):
        model = copy.deepcopy(net)
        report = hscc.compress_(model, data, hscc.Config(hscc.energy(share), method=method))
        flops.append(report.flops)
        assert all((row.reason is None) == isinstance(model[int(row.name)], nn.Sequential) for row in report.layers)
    assert flops == sorted(flops)
    assert "factors would not be cheaper" in report.skipped["2"]


def test_options_are_cheaper_than_dense_and_the_parameter_limit_holds() -> None:
    layer, _ = chain(nn.Conv2d(16, 24, 3), "tucker2", "activation")
    options = baselines.Options.of(layer)
    assert options.ranks[-1] == ()
    assert (options.costs[:-1, 0] < options.costs[-1, 0]).all()
    tight = UNLIMITED._replace(parameters=500)
    chosen = baselines.with_ranks({"0": layer}, tight, None)["0"].ranks
    assert layer.parameters(torch.tensor([chosen])).item() <= 500
    assert options.within(tight).ranks == chosen


def test_shared_layer_is_swapped_under_both_names_and_counted_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(8, 8, 3, padding=1)
            self.two = self.one

        def forward(self, x):
            return self.two(self.one(x).relu())

    model, x = Twice().eval(), torch.randn(8, 8, 10, 10)
    report = hscc.compress_(model, [x], config("tucker2", 2))
    assert model.one is model.two
    assert report.layers[0].shared_with == ("two",)
    assert report.dense_flops == 2 * 2 * 100 * 8 * 72
    with FlopCounterMode(display=False) as counter:
        model(x[:1])
    assert counter.get_total_flops() == report.flops


def test_rank_multiple(net, data) -> None:
    report = hscc.compress_(net, data, config("tucker2", 3, rank_multiple=4))
    ranks = [rank for row in report.layers for mode in row.ranks for rank in mode]
    assert ranks
    assert all(rank % 4 == 0 or rank == 3 for rank in ranks)  # the image has three channels


@pytest.mark.parametrize("budget", [hscc.Budget(flops=2, params=5), hscc.Budget(flops=2, bytes=5)], ids=str)
def test_storage_budgets(net, data, budget: hscc.Budget) -> None:
    report = hscc.compress_(net.double(), [x.double() for x in data], hscc.Config(budget, method="tucker2"))
    assert report.flop_reduction >= 2
    assert report.parameter_reduction >= 5
    assert report.bytes == 8 * report.parameters


def test_baselines_need_the_data_to_fit(net, data) -> None:
    with pytest.raises(ValueError, match="calibration: got None, expected the data"):
        hscc.apply_(net, hscc.plan(net, data, config("tucker2", 3)))


def test_more_than_rank_one_can_do_is_refused(net, data) -> None:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"budget: got .* expected at least .* which rank 1 everywhere takes"):
        hscc.compress_(net, data, config("spatial_svd", 1000))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_tucker_without_tensorly_says_what_to_install(net, data, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorly.decomposition", None)
    with pytest.raises(ImportError, match=r"needs tensorly: pip install 'hscc\[baselines\]'"):
        hscc.compress_(net, data, config("tucker2", 3, factorization="weight"))
    hscc.compress_(net, data, config("tucker2", 3))


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="method: got 'magic', expected one of"):
        config("magic", 3)
