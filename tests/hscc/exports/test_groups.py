"""Grouped layers for other runtimes: grouped convolutions where each group has one region."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import hscc
import pytest
import torch
from hscc.exports.mixing import mix_
from hscc.exports.model import export
from hscc.exports.portable import as_portable
from torch import nn

from tests.hscc.exports.test_export import ANY, RUNTIMES
from tests.hscc.nn.test_groups import CONVOLUTIONS, united

onnx = pytest.importorskip("onnx", reason="needs hscc[onnx]")


def net(parts: int, name: str = "stride") -> nn.Sequential:
    layer, _ = united(CONVOLUTIONS[name](), (12, 12), parts)
    head = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(layer.out_channels, 3)
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), layer, *head).eval()


@RUNTIMES
@pytest.mark.parametrize("name", ["padding", "stride"])
@torch.no_grad()
def test_one_region_a_group_is_grouped_convolutions_of_any_size(tmp_path: Path, run, name: str) -> None:
    model, path = net(1, name), tmp_path / "m.onnx"
    done = export(model, path, example=(1, 3, 12, 12), dynamic=ANY)
    assert {*done.layers.values()} == {"convolutions"}
    convs = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    groups = [attribute.i for node in convs for attribute in node.attribute if attribute.name == "group"]
    assert Counter(groups) == {1: 1, 4: 2}
    for shape in ((1, 3, 12, 12), (3, 3, 15, 10)):
        x = torch.randn(shape)
        torch.testing.assert_close(run(path, x), model(x), rtol=1e-4, atol=1e-5)


@RUNTIMES
@torch.no_grad()
def test_several_regions_a_group(tmp_path: Path, run) -> None:
    model, path = net(2), tmp_path / "m.onnx"
    assert {*export(model, path, example=(1, 3, 12, 12)).layers.values()} <= {"masks", "gathers"}
    x = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(run(path, x), model(x), rtol=1e-4, atol=1e-5)


def test_a_kernel_of_regions_has_no_open_sizes_without_python(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got \('batch', 'height', 'width'\) and layers with regions \(2\)"):
        export(net(1), tmp_path / "m.pt2", "pt2", example=(1, 3, 12, 12), dynamic=ANY)
    program = tmp_path / "program.pt2"
    export(net(1), program, "export", example=(1, 3, 12, 12), dynamic=ANY)
    assert program.is_file()


@torch.no_grad()
def test_turned_factors_of_groups_compute_the_same(tmp_path: Path) -> None:
    model, x = net(1), torch.randn(2, 3, 12, 12)
    wanted = model(x)
    with as_portable(model, x):
        before = model[2][0].weight.clone()
        mix_(model)
        assert not torch.allclose(model[2][0].weight, before)
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    done = hscc.export_int8(model, tmp_path / "m.onnx", torch.randn(32, 3, 12, 12).split(8))
    assert done.error < 0.05


def test_narrow_groups_stay_in_portable_networks() -> None:
    torch.manual_seed(0)
    wide, narrow = nn.Conv2d(96, 96, 3, padding=1, groups=2), nn.Conv2d(96, 96, 3, padding=1, groups=4)
    model = nn.Sequential(nn.Conv2d(3, 96, 3, padding=1), wide, narrow, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = nn.functional.interpolate(torch.randn(64, 3, 5, 5), size=10).split(16)
    report = hscc.compress_(model, x, hscc.Config(hscc.flops(1.8), portable=True))
    assert "2" in report.skipped
    assert report.skipped["2"].endswith("groups of 24 channels, expected at least 48 in a portable network")
    assert report.portable
    assert "1" not in report.skipped
