"""The cost model finds the rates it should, is measured once, and decides what stays dense; no time is asserted."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from types import SimpleNamespace

import hscc
import numpy as np
import pytest
import torch
from hscc import HSCConv2d, SqueezedConv2d, calibrated
from hscc.search import invented, latency, stopwatch
from hscc.search.latency import Machine
from hscc.search.work import Work
from torch import nn
from torch.nn.utils import weight_norm

from hscc_kernels import ClusterFactors, RegionFactors


@pytest.fixture
def counted(monkeypatch, tmp_path) -> list[int]:
    """A cache folder of its own, few invented layers, and times made up; the number of calls timed each time."""
    monkeypatch.setenv("HSCC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(invented, "SHAPES", invented.SHAPES[-3:])
    timed: list[int] = []

    def ratios(calls, like, description, show) -> stopwatch.Times:
        timed.append(len(calls))
        for call in calls:
            call()
        return stopwatch.Times(list(range(1, len(calls) + 1)), 1e-3, 1.0)

    monkeypatch.setattr(stopwatch, "ratios", ratios)
    return timed


class Busy:
    """Clocks of a machine on which this process waits for ``others`` after each slice of some 3 ms."""

    def __init__(self, others: int) -> None:
        self.wall = self.work = 0.0
        self.others, self.random, self.left = others, random.Random(0), 3e-3

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.work += seconds
        self.left -= seconds
        while self.left < 0:
            self.left += self.random.uniform(2e-3, 4e-3)
            self.wall += 3e-3 * self.others

    def call(self, seconds: float) -> Callable[[], None]:
        return lambda: self.pass_(seconds * self.random.uniform(0.98, 1.05))

    def thread_time(self, tick: float) -> float:
        self.pass_(1e-7)
        return tick * (self.work // tick)


def measured(batch: int = 1) -> Machine:
    return Machine.measured(torch.empty(0), batch, False)


def test_known_rates_are_found() -> None:
    generator = np.random.default_rng(0)
    rates = Work(*generator.random(len(Work._fields) - 1), 0)
    works = [Work(*generator.integers(1, 1000, len(Work._fields)).tolist()) for _ in range(60)]
    seconds = [sum(r * w for r, w in zip(rates, work, strict=True)) for work in works]
    groups = [i // 6 for i in range(60)]
    found, error = latency._fit(groups, works, seconds)
    np.testing.assert_allclose(found, rates, rtol=1e-6, atol=1e-9)
    assert error < 1e-6
    noisy = [s * (1.2 if i % 2 else 0.8) for i, s in enumerate(seconds)]
    assert 0.1 < latency._fit(groups, works, noisy)[1] < 0.5
    assert min(latency._fit(groups, works, noisy)[0]) >= 0


def test_measured_once_for_each_kind_of_call(counted, tmp_path, monkeypatch) -> None:
    state = torch.random.get_rng_state()
    first = measured()
    assert counted == [3 * (len(invented.KINDS) + 1)]
    assert torch.equal(state, torch.random.get_rng_state()), "measuring must not draw from the user's generator"
    assert measured() == first
    assert len(counted) == 1
    measured(batch=2)
    assert len(counted) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert measured().key["threads"] == 77
    assert len(counted) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("others", [0, 1, 3])
@pytest.mark.parametrize("clock", ["processor", "wall"])
def test_a_busy_machine_slows_the_reference_as_much(monkeypatch, others: int, clock: str) -> None:
    busy, tick = Busy(others), 1e-2 if clock == "wall" else 1e-9
    clocks = SimpleNamespace(perf_counter=lambda: busy.wall, thread_time=lambda: busy.thread_time(tick))
    monkeypatch.setattr(stopwatch, "time", clocks)
    monkeypatch.setattr(stopwatch, "reference", lambda like: busy.call(5e-4))
    monkeypatch.setattr(stopwatch, "_NEAR_CACHES", 4)
    seconds = np.array([2e-5, 2e-4, 1e-3, 2e-3, 4e-3, 1.1e-2, 4e-2, 0.18])
    ratios, reference, spread = stopwatch.ratios([*map(busy.call, seconds)], torch.empty(0), "", False)
    assert spread < 1.1
    within = 0.05 if others == 0 or clock == "processor" else 0.2
    np.testing.assert_allclose(ratios, seconds / 5e-4, rtol=within)
    np.testing.assert_allclose(reference, 5e-4, rtol=0.03)
    assert busy.wall < 15, "more than twice the time that is planned"


def test_a_file_without_a_reference_is_measured_again(counted) -> None:
    first = measured()
    old = json.loads(latency._file(first.key).read_text())
    old.pop("reference")
    old["dense"] = {"false": 1.0}
    latency._file(first.key).write_text(json.dumps(old))
    assert measured() == first
    assert len(counted) == 2
    assert measured() == first
    assert len(counted) == 2


def test_times_of_a_machine_that_is_too_busy_are_not_kept(counted, tmp_path, monkeypatch, caplog) -> None:
    layers, ratios = {"plain": (nn.Conv2d(3, 4, 3), [(3, 8, 8)])}, stopwatch.ratios
    monkeypatch.setattr(stopwatch, "ratios", lambda *args: ratios(*args)._replace(spread=3.0))
    busy = measured()
    assert "this machine is busy: a call takes 3.0 times its quickest" in caplog.text
    monkeypatch.setattr(stopwatch, "ratios", ratios)
    assert busy.dense_seconds(layers, False) == {"plain": 1e-3}
    assert not (tmp_path / "cache").exists()
    measured()
    monkeypatch.setattr(stopwatch, "ratios", lambda *args: ratios(*args)._replace(spread=3.0))
    assert measured().dense_seconds(layers, False) == {"plain": 1e-3}
    assert measured().dense == {}


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"key": {}, "rates": {"speed": 1}})])
def test_a_damaged_file_is_measured_again(counted, text: str) -> None:
    first = measured()
    latency._file(first.key).write_text(text)
    assert measured().rates == first.rates
    assert len(counted) == 2


def test_an_interrupt_leaves_no_file(counted, tmp_path, monkeypatch) -> None:
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(stopwatch, "ratios", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measured()
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_is_told(counted, tmp_path, caplog) -> None:
    (tmp_path / "cache").write_text("a file")
    assert measured().error >= 0
    assert "is not writable" in caplog.text


def test_dense_layers_are_timed_once(counted) -> None:
    layers = {
        "plain": (nn.Conv2d(3, 4, 3), [(3, 8, 8)]),
        "same": (nn.Conv2d(3, 4, 3), [(3, 8, 8), (3, 9, 9)]),
        "grouped": (nn.Conv2d(4, 4, 3, groups=2), [(4, 8, 8)]),
        "up": (nn.ConvTranspose2d(4, 4, 2), [(4, 8, 8)]),
        "volume": (nn.Conv3d(4, 4, 1), [(4, 3, 8, 8)]),
        "idle": (nn.Conv2d(3, 4, 3), []),
    }
    machine = measured()
    seconds = machine.dense_seconds(layers, False)
    assert counted[1:] == [5]
    assert seconds["plain"] == 1e-3
    assert seconds["same"] == 3e-3
    assert seconds["idle"] == 0
    again = measured()
    assert again.dense_seconds(layers, False) == seconds
    assert sum(counted[2:]) == 0


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(4, 6, 3, stride=2, dilation=2),
        nn.Conv2d(4, 6, (3, 5), padding="same", padding_mode="reflect", bias=False),
        nn.Conv2d(4, 6, 3, groups=2, padding=(1, 0)),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Conv3d(4, 6, 2),
        nn.ConvTranspose3d(4, 6, 2),
        nn.Conv2d(4, 6, 3, dtype=torch.float64),
        weight_norm(nn.Conv2d(4, 6, 3)),
        nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3)),
    ],
    ids=lambda conv: type(conv).__name__,
)
def test_what_is_timed_for_a_convolution_does_as_it_does(conv: nn.Module) -> None:
    state = torch.random.get_rng_state()
    twin = stopwatch.twin(conv)
    assert torch.equal(state, torch.random.get_rng_state())
    x = torch.randn(2, 4, *[9] * (conv.weight.ndim - 2), dtype=conv.weight.dtype)
    torch.testing.assert_close(twin(x), conv(x))
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert twin.weight.ndim != 4 or twin.weight.is_contiguous(memory_format=torch.channels_last)


def test_dense_and_new_layers_are_compared_in_one_run(counted) -> None:
    seen: list[tuple[int, ...]] = []

    class New(nn.Conv2d):
        def forward(self, x):
            assert x.is_contiguous(memory_format=torch.channels_last)
            seen.append(tuple(x.shape))
            return super().forward(x)

    convs, new = [nn.Conv2d(3, 4, 3) for _ in range(2)], New(3, 4, 1)
    new.register_forward_hook(lambda *args: pytest.fail("a hook of the user's was called"))
    machine, state = measured(batch=2), torch.random.get_rng_state()
    pairs = [(convs[0], new, [(3, 8, 8), (3, 9, 9), (3, 8, 8)]), (convs[1], new, [(3, 7, 7)])]
    assert machine.compare(pairs, False) == pytest.approx((1e-3 * (2 * 1 + 3 + 5), 1e-3 * (2 * 2 + 4 + 6)))
    assert counted[1:] == [6]
    assert seen == [(2, 3, 8, 8), (2, 3, 9, 9), (2, 3, 7, 7)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert machine.compare([], False) == (0, 0)
    assert measured(batch=2) == machine, "nothing of it is kept"


def test_real_times_are_positive_and_those_of_the_call() -> None:
    calls = []
    times, reference, spread = stopwatch.ratios(
        [lambda: calls.append(torch.is_inference_mode_enabled())], torch.empty(0), "", False
    )
    assert min(*times, reference) > 0
    assert spread >= 1
    assert len(calls) > 3
    assert all(calls)


@pytest.mark.parametrize("clusters", [1, 2])
@pytest.mark.parametrize("sharing", [True, False])
def test_work_of_a_plan_is_what_the_search_counted(net, data, machine, clusters: int, sharing: bool) -> None:
    plan = hscc.plan(net, data, hscc.Config(hscc.flops(3), clusters=clusters, sharing=sharing))
    hscc.apply_(net, plan, data)
    checked = 0
    for name, layer in plan.layers.items():
        if layer.stays_dense or layer.structure.shared:
            continue  # the pool of shared rows may end smaller than planned
        checked += 1
        np.testing.assert_allclose(layer.cost(net.get_submodule(name).plan), layer.choice.cost)
    assert checked or sharing


def test_work_of_a_layer_with_clusters_and_stride(machine) -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    factors = [ClusterFactors(torch.arange(k, 6, 2), 3 * k, torch.randn(3, 3)) for k in range(2)]
    regions = [RegionFactors(torch.arange(6), tuple(factors))]
    labels = torch.zeros(5, 5, dtype=torch.long)
    layer = HSCConv2d.from_conv(conv, regions, torch.randn(6, 36), torch.zeros(1, 6), labels)
    assert Work.of(layer.plan) == Work.without_ranks(conv, [(25, 2)])._replace(
        first=25 * 6 * 36, values=25 * 6, second=25 * 18, numbers=6 + 6 * 36 + 18, indices=25 + 6 + 6 + 8 + 10
    )
    assert Work.of(layer.plan).scattered == 25 * 6


def test_latency_budgets_hold_and_more_time_means_less_error(net, data, machine) -> None:
    errors = []
    for speedup in (2.5, 1.5, 1.0):
        report = hscc.compress_(copy.deepcopy(net), data, hscc.Config(hscc.Budget(latency=speedup)))
        assert report.speedup >= speedup
        assert report.parameter_reduction >= 1
        errors.append(sum(layer.error for layer in report.layers))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


@pytest.mark.parametrize(
    "budget", [hscc.Budget(flops=2, latency=1.5), hscc.Budget(flops=2, params=2, bytes=2, latency=1.5)], ids=str
)
def test_latency_with_other_limits(net, data, machine, budget: hscc.Budget) -> None:
    report = hscc.compress_(net, data, hscc.Config(budget))
    got = (report.flop_reduction, report.parameter_reduction, report.byte_reduction, report.speedup)
    wanted = (budget.flops, budget.params, budget.bytes, budget.latency)
    assert all(g >= (w or 1) for g, w in zip(got, wanted, strict=True)), got
    assert report.latency_error == 0.05
    assert f"{report.speedup:.2f}x faster (predicted; median error 5%)" in str(report)
    assert hscc.Report.from_dict(report.to_dict()) == report
    kept = sum(layer.dense_ms for layer in report.layers if layer.reason)
    replaced = len([layer for layer in report.layers if not layer.reason])
    assert report.measured_speedup == pytest.approx((kept + 3e-3 * replaced) / (kept + 1e-3 * replaced))
    assert f", {report.measured_speedup:.2f}x measured" in str(report)


def test_a_speed_up_that_does_not_come_is_told(net, data, machine, monkeypatch) -> None:
    monkeypatch.setattr(calibrated.Machine, "compare", lambda self, pairs, show: (1e-6, 3e-6))
    report = hscc.compress_(net, data, hscc.Config(hscc.Budget(latency=1.5)))
    assert report.measured_speedup < 1
    assert "x measured on the finished layers, expected 1.5x" in report.warnings[-1]


@pytest.mark.parametrize("budget", [hscc.Budget(latency=1.2), hscc.flops(1.5), hscc.energy(0.5)], ids=str)
def test_a_layer_that_would_not_get_faster_stays_dense(net, data, machine, budget: hscc.Budget) -> None:
    machine["2"] = 1e-9
    report = hscc.compress_(net, data, hscc.Config(budget, faster_only=True))
    assert type(net[2]) is nn.Conv2d
    assert any(isinstance(layer, (HSCConv2d, SqueezedConv2d)) for layer in net)
    assert "stays dense: factors would take 0.0" in report.skipped["2"]
    assert report.skipped["2"].endswith(" ms, the dense layer 0.000 ms")
    (row,) = (layer for layer in report.layers if layer.name == "2")
    assert (row.ms, row.flops) == (row.dense_ms, row.dense_flops)


def test_skipped_layers_count_in_the_time(net, data, machine) -> None:
    machine["2"] = 1.0
    with pytest.raises(ValueError, match=r"budget: got latency=2, expected at most 1.00: the layers that cannot be"):
        hscc.plan(net, data, hscc.Config(hscc.Budget(latency=2), skip=["2"]))
    report = hscc.plan(net, data, hscc.Config(hscc.flops(1.2), faster_only=True, skip=["2"])).report()
    assert report.dense_ms > 1000


def test_more_than_can_be_had_is_refused(net, data, machine) -> None:
    with pytest.raises(ValueError, match=r"seconds, which the layers take with biases alone, or dense where factors"):
        hscc.plan(net, data, hscc.Config(hscc.Budget(latency=1000)))


def test_nothing_is_measured_unless_it_counts(net, data, monkeypatch) -> None:
    monkeypatch.setattr(calibrated.Machine, "measured", lambda *args: pytest.fail("measured"))
    report = hscc.plan(net, data, hscc.Config(hscc.Budget(flops=2, params=2, bytes=2))).report()
    assert report.ms is None
    assert report.speedup is None
    assert "faster" not in str(report)
