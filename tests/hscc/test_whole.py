"""Times of whole networks in reports: of which runtimes, by prediction, and what came."""

from __future__ import annotations

import copy
import json
import logging

import hscc
import pytest
import torch
from hscc import whole
from hscc.report import Report, Whole
from torch import Tensor, nn

from tests.hscc.conftest import small_net
from tests.hscc.nn.test_groups import Net

RUNTIMES = whole._runtimes  # before the tests' conftest takes them away
CONFIG = hscc.Config(hscc.flops(2), faster_only=True)


@pytest.fixture
def found(net, data, machine, monkeypatch) -> tuple[nn.Module, Report]:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(whole, "_runtimes", RUNTIMES)
    machine |= dict.fromkeys(("0", "2", "5"), 1e-3)
    model = copy.deepcopy(net)
    return model, hscc.compress_(model, data, CONFIG)


def test_a_report_has_the_whole_network(net, data, found) -> None:
    model, report = found
    own = report.whole
    assert own.images == 1
    assert {"PyTorch", "ONNX Runtime"} <= own.dense_ms.keys() <= {"PyTorch", "ONNX Runtime", "OpenVINO"}
    assert own.dense_ms[own.best] == min(own.dense_ms.values())
    layers = sum(row.ms for row in report.layers)
    assert own.predicted_ms == pytest.approx(own.rest_ms + layers)
    assert own.speedup == own.dense_ms[own.best] / own.measured_ms
    assert 0 < own.rest_ms < own.dense_ms["PyTorch"]
    assert f"whole network, 1 image, ms: dense {own.best} {own.dense_ms[own.best]:.2f}, " in str(report)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))).whole == own
    assert [type(m) for m in model] != [type(m) for m in net]
    assert any(isinstance(m, nn.ReLU) for m in model)  # what was timed was a copy
    assert report.seconds["whole network"] > 0


def test_a_plan_predicts_before_anything_is_fitted(net, data, machine) -> None:
    machine |= dict.fromkeys(("0", "2", "5"), 1e-3)
    own = hscc.plan(net, data, CONFIG).report().whole
    assert own.measured_ms is None
    assert own.speedup == own.dense_ms["PyTorch"] / own.predicted_ms


def test_a_network_that_would_be_no_faster_is_told(net, data, machine, monkeypatch) -> None:
    machine |= dict.fromkeys(("0", "2", "5"), 1e-3)
    monkeypatch.setattr(whole, "timed", lambda *args: Whole(1, {"PyTorch": 9.0, "OpenVINO": 1e-3}, 0.5))
    report = hscc.plan(net, data, CONFIG).report()
    assert "the whole network would take 0." in report.warnings[-1]
    assert report.warnings[-1].endswith("ms, the dense one takes 0.00 ms in OpenVINO")


def test_a_limit_that_needs_no_times_takes_none(net, data) -> None:
    assert hscc.compress_(net, data, hscc.Config(hscc.flops(2))).whole is None


def test_groups_and_other_forms(machine, monkeypatch) -> None:
    """All groups of a convolution are one layer in what is timed, too."""
    ready, names = whole._ready, []

    def spied(model: nn.Module) -> nn.Module:
        names.append(sorted(name for name, m in model.named_modules() if isinstance(m, hscc.HSCConv2d)))
        return ready(model)

    monkeypatch.setattr(whole, "_ready", spied)
    machine |= {name: 1e-3 for name in ("stem.0", *(f"many.parts.{i}" for i in range(6)), "few.parts.0", "few.parts.1")}
    x = nn.functional.interpolate(torch.randn(64, 3, 6, 6), size=14).split(16)
    report = hscc.plan(Net().eval(), x, CONFIG).report()
    assert report.whole.predicted_ms > report.whole.rest_ms > 0
    assert names == [[], ["few", "many", "stem.0"]]


def test_what_cannot_be_copied_is_not_timed(data, machine, caplog) -> None:
    class Uncopied(nn.Sequential):
        def __deepcopy__(self, memo: dict):
            raise TypeError("holds a lock")

    machine |= dict.fromkeys(("0", "2", "5"), 1e-3)
    with caplog.at_level(logging.WARNING, "hscc"):
        report = hscc.compress_(Uncopied(*small_net()).eval(), data, CONFIG)
    assert report.whole is None
    assert "the whole network was not timed: holds a lock" in caplog.text


@pytest.mark.parametrize("groups", [1, 4])
def test_a_hollow_layer_has_outputs_of_the_right_size(groups: int) -> None:
    conv = nn.Conv2d(64, 96, 3, stride=2, padding=1, groups=groups).eval()
    layer = whole._rank_0(conv, (6, 5)) if groups == 1 else _united(conv)
    layer.__class__ = whole._Hollow
    for size in ((11, 9), (8, 14)):
        x = torch.randn(2, 64, *size)
        assert layer(x).shape == conv(x).shape
        assert layer(x).is_contiguous(memory_format=torch.channels_last)


def _united(conv: nn.Conv2d) -> nn.Module:
    from tests.hscc.nn.test_groups import united

    return united(conv, (11, 9))[0]


def test_other_inputs_than_a_tensor_leave_the_runtimes_out(net) -> None:
    class Adapted:
        adapter = staticmethod(lambda model, batch: model(batch["x"]))

    assert RUNTIMES(net, Adapted(), {"x": torch.zeros(1, 3, 32, 32)}, None) == {}


def test_a_runtime_with_other_outputs_is_left_out(net, data, monkeypatch, tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    from hscc.observe.data import Calibration

    own, x = Calibration.of(net, data, 0, False), data[0][:1]
    there = RUNTIMES(net, own, x, tmp_path)
    assert "ONNX Runtime" in there
    torch.testing.assert_close(there["ONNX Runtime"](x), net(x), rtol=1e-4, atol=1e-5)

    class Wrong:
        def __init__(self, path) -> None: ...

        def __call__(self, x: Tensor) -> Tensor:
            return torch.zeros(1, 4)

    monkeypatch.setattr(whole, "OnnxSession", Wrong)
    assert "ONNX Runtime" not in RUNTIMES(net, own, x, tmp_path)
