"""A sweep measures what compress_ makes, survives a kill, and knows what it has studied."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import hscc
import pytest
import torch
from hscc.study import sweep as module
from hscc.study.points import Point
from torch import Tensor, nn

GRID = hscc.Grid(
    ("hscc", "svd", "tucker2"), (2,), (1,), ("search", "given", "energy"), (1.5, 3.0, 500.0), (0.9,),
    hscc.Config(hscc.flops(1), effort="quick"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    monkeypatch.setattr("hscc.evaluation.speed.TURN", 0.001)


def labelled(net: nn.Module, data: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(x, net(x).argmax(1)) for x in data]


def same(points: tuple[Point, ...]) -> list[Point]:
    """Without what a clock says."""
    return [replace(point, latency_ms=1.0, dense_ms=1.0, seconds=0.0, on_front=False) for point in points]


def test_points_are_what_compress_makes(net, data, tmp_path: Path) -> None:
    before, judged = copy.deepcopy(net.state_dict()), labelled(net, data)
    points = hscc.sweep(net, data, GRID, tmp_path / "s", evaluate=judged)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [point.setting for point in points] == GRID.settings()
    assert any(point.on_front for point in points)
    made = {point.setting.name: point for point in points}
    refused = [name for name, point in made.items() if point.refused]
    assert refused == ["tucker2-500"]  # the others have rank 0
    assert "expected at least" in made["tucker2-500"].refused
    one = copy.deepcopy(net)
    report = hscc.compress_(one, data, hscc.Config(hscc.flops(3), method="svd", effort="quick"))
    point = made["svd-3"]
    assert point.flop_reduction == pytest.approx(report.flop_reduction)
    loaded = copy.deepcopy(net)
    assert hscc.load_(loaded, tmp_path / "s" / "svd-3.safetensors").flop_reduction == point.flop_reduction
    x = torch.cat(data)
    torch.testing.assert_close(loaded(x), one(x), rtol=1e-4, atol=1e-5)
    kept = (loaded(x).argmax(1) == net(x).argmax(1)).double().mean().item()
    assert point.score == pytest.approx(kept)
    assert point.difference == pytest.approx(kept - 1)
    assert point.samples == len(x)
    energy = made["hscc-r2-c1-energy-0.9"]
    assert 1 < energy.flop_reduction != made["hscc-r2-c1-search-1.5"].flop_reduction
    assert min(energy.latency_ms, energy.dense_ms, energy.seconds) > 0


def test_killed_half_way_it_ends_the_same(net, data, tmp_path: Path, monkeypatch) -> None:
    judged = labelled(net, data)
    grid = replace(GRID, methods=("hscc", "svd"), rules=("search",), flops=(1.5, 2.0, 3.0))
    whole = hscc.sweep(net, data, grid, tmp_path / "whole", evaluate=judged)
    real, count = module.in_turn, 0

    def killed(*arguments):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "in_turn", killed)
    with pytest.raises(KeyboardInterrupt):
        hscc.sweep(net, data, grid, tmp_path / "half", evaluate=judged)
    assert len([*(tmp_path / "half").glob("*-*.json")]) == 2
    assert not (tmp_path / "half" / "points.json").exists()
    points = hscc.sweep(net, data, grid, tmp_path / "half", evaluate=judged)
    assert count == 3 + 4  # two of six were there
    assert same(points) == same(whole)
    for point in points:
        name = f"{point.setting.name}.safetensors"
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_subjects_are_refused(net, data, tmp_path: Path) -> None:
    grid = replace(GRID, methods=("svd",), flops=(2.0,))
    judged = labelled(net, data)
    hscc.sweep(net, data, grid, tmp_path / "s", evaluate=judged)
    with pytest.raises(ValueError, match="a sweep of another data"):
        hscc.sweep(net, data[:-1], grid, tmp_path / "s", evaluate=judged)
    other = replace(grid, base=replace(grid.base, seed=1))
    with pytest.raises(ValueError, match="a sweep of another options"):
        hscc.sweep(net, data, other, tmp_path / "s", evaluate=judged)
    larger = replace(grid, flops=(2.0, 3.0))  # goes on
    more = hscc.sweep(net, data, larger, tmp_path / "s", evaluate=judged)
    assert [point.setting.budget for point in more] == [2.0, 3.0]
    with torch.no_grad():
        net[0].weight += 0.1
    with pytest.raises(ValueError, match="a sweep of another model"):
        hscc.sweep(net, data, grid, tmp_path / "s", evaluate=judged)


def test_a_damaged_folder_is_told(net, data, tmp_path: Path) -> None:
    grid, folder = replace(GRID, methods=("svd",), flops=(2.0,)), tmp_path / "s"
    hscc.sweep(net, data, grid, folder, evaluate=labelled(net, data))
    for text, message in (("{", "got no JSON"), ("[]", "got list"), (json.dumps({"method": "svd"}), "other JSON")):
        (folder / "svd-2.json").write_text(text)
        with pytest.raises(ValueError, match=rf"svd-2\.json: got.*{message.removeprefix('got ')}.*delete it"):
            hscc.sweep(net, data, grid, folder, evaluate=labelled(net, data))
