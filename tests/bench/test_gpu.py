"""The parts of the GPU report that need no GPU: floors, rotation of inputs, table, picture, arguments."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hscc_kernels
from bench.gpu import cases as gpu_cases
from bench.gpu import networks as gpu_networks
from bench.gpu import report as gpu_report
from bench.gpu import results as gpu_results
from bench.gpu import roofline
from bench.gpu.results import Report, Row
from bench.gpu.roofline import Conv, Machine, Work
from bench.kernels.cases import LAYERS, Case, make_plan


def test_networks_have_their_known_flops() -> None:
    """Multiply-adds of the convolutions of one 224 x 224 image, as published."""
    for name, gmacs in (("AlexNet", 0.656), ("VGG-16", 15.35), ("ResNet-50", 4.09)):
        flops = sum(c.count * roofline.dense_work(c, 1).flops for c in roofline.NETWORKS[name])
        assert flops / 2e9 == pytest.approx(gmacs, rel=0.005), name


def test_fused_work_by_hand() -> None:
    conv = Conv("", 1, in_channels=8, out_channels=16, kernel=3, in_side=10, out_side=10)
    work = roofline.fused_work(conv, batch=2, rank=4, regions=3)
    assert work.flops == 2 * 2 * 100 * 4 * (72 + 16)
    assert work.bytes == 2 * (2 * 100 * (8 + 16) + 3 * (4 * (72 + 16) + 16)) + 4 * 100
    assert Work(10, 30).floor(Machine(1.0, 2.0)) == 15


def test_rank_meets_the_reduction() -> None:
    for convs in roofline.NETWORKS.values():
        for conv in convs:
            rank = roofline.rank_at(conv, 5.3)
            reached = roofline.dense_work(conv, 1).flops / roofline.fused_work(conv, 1, rank).flops
            assert reached == pytest.approx(5.3, rel=0.5 / rank + 0.01)


def test_rotations_outgrow_the_cache() -> None:
    assert gpu_cases.rotations(10**9, 50 * 2**20) == 4
    assert gpu_cases.rotations(10 * 2**20, 50 * 2**20) == 15
    assert gpu_cases.rotations(1000, 50 * 2**20) == 64


def test_plan_work_agrees_with_paper() -> None:
    layer = LAYERS["vgg16_3_2"]
    plan = make_plan(Case(layer, "1", 1, 5.3))
    conv = Conv("", 1, 256, 256, 3, 56, 56)
    paper = roofline.fused_work(conv, 32, plan.v.shape[0])
    assert gpu_cases.work_of(layer, 32, plan.parameters(), plan.flops() * 32) == paper


MS = {"ours": 0.1, "eager dense": 0.5, "compiled dense": 0.4, "eager chain": 0.3, "compiled chain": 0.2}
ROW = Row("vgg/R1", "k x k", 5.3, 0.4, MS, {"fused dense": "RuntimeError: no"}, Work(215_000_000, 1))
H200 = Machine(4.3e12, 790e12)
HEADER = {"device": "H200", "commit": "abc"}


def test_table() -> None:
    network = Row("alexnet", None, 2.0, 0.5, {"dense": 3.0, "ours": 2.0, "compiled ours": 1.5}, {})
    header, rule, *lines = gpu_results.table([ROW, network], H200)
    assert {header.count("|")} == {line.count("|") for line in (rule, *lines)}
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert cells[0] == ["vgg/R1", "5.30", "0.4000", "0.2000", "0.1000", "4.00", "0.75", "0.0500", "50%"]
    assert cells[1] == ["alexnet", "2.00", "3.0000", "", "1.5000", "2.00", "1.00", "", ""]


def test_means() -> None:
    half = ROW._replace(ms={"ours": 0.1, "fused dense": 0.1, "eager chain": 0.1})
    other = ROW._replace(group="1 x 1", work=None, ms={"ours": 0.1, "dense": 0.2})
    header, rule, *lines = gpu_results.means([ROW, half, other, ROW._replace(group=None)], H200)
    assert {header.count("|")} == {line.count("|") for line in (rule, *lines)}
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert cells[0] == ["k x k", "2", "2.00", "1.00", "0.38", "1.41", "2.00", "2.00"]
    assert cells[1] == ["1 x 1", "1", "2.00", "2.00", "0.38", "nan", "nan", "nan"]


def test_no_speedup_without_a_right_result() -> None:
    for error in (1.01, math.inf, math.nan):
        assert Row.of("a", None, 5.3, error, MS, {}, None) == f"wrong result, error ratio {error:.3g}"
    assert Row.of("a", None, 5.3, 1.0, {"ours": 0.1}, {"dense": "no memory"}, None) == "dense: no memory"
    assert Row.of("a", None, 5.3, 1.0, MS, {}, None).speedup == 4


def test_a_peer_that_fails_costs_only_its_own_time() -> None:
    def time(call, inputs):
        return call(inputs)

    ms, failed = gpu_cases.time_each({"ours": len, "eager dense": float, "dense": sum}, [1.0, 2.0], time)
    assert ms == {"ours": 2, "dense": 3}
    assert list(failed) == ["eager dense"]
    assert failed["eager dense"].startswith("TypeError: float() argument")


def test_report_grows_with_every_case_and_goes_on(tmp_path: Path) -> None:
    """A case that raises is refused; time or a lost device stops the next; a second call starts after the last one."""
    ran = []

    def run(case):
        ran.append(case.name)
        if case.name == "broken":
            raise RuntimeError("no memory\nmore")
        return ROW._replace(name=case.name)

    cases = [ROW._replace(name=name) for name in ("first", "broken", "last")]

    def lost():
        raise RuntimeError("illegal address")

    def measure(cases, report, deadline=math.inf, wait=lambda: None):
        return gpu_report.measure(cases, run, report, tmp_path, deadline, wait)

    report = Report.open(tmp_path, HEADER)
    assert not measure(cases[:2], report, wait=lost)
    assert measure(cases[:2], report)
    assert not measure(cases, report, deadline=time.monotonic() - 1)
    again = Report.open(tmp_path, HEADER)
    assert again == report
    assert again.refused == {"broken": "RuntimeError: no memory"}
    again.machine, again.steps["tests"] = H200, True
    assert measure(cases, again)
    assert ran == ["first", "broken", "last"]
    stored = json.loads((tmp_path / "report.json").read_text())
    assert [(row["name"], row["speedup"]) for row in stored["rows"]] == [("first", 4.0), ("last", 4.0)]
    text = (tmp_path / "report.md").read_text()
    for part in (
        "tests: passed",
        "refused: broken: RuntimeError: no memory",
        "missing: last, fused dense",
        "4.30 TB/s",
    ):
        assert part in text
    assert Report.open(tmp_path, HEADER) == again
    with pytest.raises(ValueError, match="take another --out"):
        Report.open(tmp_path, {**HEADER, "commit": "abd"})


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    gpu_results.picture([ROW], tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_a_step_has_a_log_and_a_limit(tmp_path: Path) -> None:
    assert gpu_report.step("good", [sys.executable, "-c", "import hscc, hscc_kernels; print('found')"], tmp_path, 100)
    assert (tmp_path / "good.log").read_text() == "found\n"
    assert not gpu_report.step("bad", [sys.executable, "-c", "raise SystemExit(1)"], tmp_path, 100)
    assert not gpu_report.step("slow", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, 0.0)


def test_networks_are_compressed_where_it_pays() -> None:
    """Same output size, k x k layers of enough channels replaced, the wanted reduction in them."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 3, 2, 1), nn.Conv2d(64, 32, 1))
    dense = nn.Sequential(*model).double()
    before = dense(torch.zeros(1, 3, 34, 34, dtype=torch.float64)).shape
    layer = LAYERS["resnet18_2"]._replace(in_channels=16, stride=2, size=32)
    changed = gpu_networks.compress(model, 34, 5.3)
    assert [type(m).__name__ for m in changed] == ["Conv2d", "ReLU", "HSCConv2d", "Conv2d"]
    assert changed(torch.zeros(1, 3, 34, 34, dtype=torch.float64)).shape == before
    assert layer.flops(1) / changed[2].plan.flops() == pytest.approx(5.3, rel=0.1)


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a case of the report here: every call once, nothing compiled, the backend that can."""

    def once(call, inputs):
        return float(call(inputs[0]).isfinite().all())

    def lowrank_conv2d(*arguments, backend, **keywords):
        return hscc_kernels.lowrank_conv2d(*arguments, **keywords)

    for module in (gpu_cases, gpu_networks):
        monkeypatch.setattr(module, "DEVICE", "cpu")
        monkeypatch.setattr(module, "rotated", lambda x, size: [x])
        monkeypatch.setattr(module, "time_each", partial(gpu_cases.time_each, time=once))
    monkeypatch.setattr(gpu_cases, "lowrank_conv2d", lowrank_conv2d)
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)


def test_a_case_from_end_to_end(on_the_cpu) -> None:
    layer = LAYERS["resnet18_2"]._replace(size=8)
    row = gpu_cases.run_case(gpu_cases.Setting(Case(layer, "4", 1, 5.3), 2, "bfloat16"))
    assert row.error_ratio <= 1
    assert row.reduction == pytest.approx(5.3, rel=0.05)
    assert set(row.ms) == {"ours", "eager dense", "compiled dense", "eager chain", "compiled chain"}
    assert set(row.failed) == {"fused dense", "fused chain"}  # of cuDNN


def test_every_tile_of_a_case(on_the_cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is what a GPU would have; a wrong tile costs the case its row."""
    case = Case(LAYERS["resnet18_2"]._replace(size=8), "4", 1, 5.3)
    setting, wrong = gpu_cases.Setting(case, 2, "bfloat16"), []

    def run_tile(x, bias, plan, tile):
        return hscc_kernels.lowrank_conv2d(x, plan, bias, activation="relu") * (2 if tile in wrong else 1)

    monkeypatch.setattr(gpu_cases, "run_tile", run_tile)
    options = gpu_cases.tiles(gpu_cases.plan_of(case), case.layer, 2, torch.bfloat16)
    assert {tile.BR for tile in options} == {16}
    row = gpu_cases.run_case(setting, every_tile=True)
    names = {f"ours {tile.name}" for tile in options}
    assert names == {name for name in row.ms if name.startswith("ours ")}
    wrong.append(options[-1])
    assert gpu_cases.run_case(setting, every_tile=True).startswith("wrong result")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_compilations_ahead_reach_their_processes(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """Each kernel once, whatever the batch; here every process says that it has no GPU."""
    monkeypatch.setattr(gpu_cases, "DEVICE", "cpu")
    cases = [Case(LAYERS[name], "4", 1, 5.3) for name in ("resnet18_4", "vgg16_3_2")]
    gpu_cases.compile_ahead([gpu_cases.Setting(case, 2, "float16") for case in cases], every_tile=False)
    assert capfd.readouterr().out.count("R4/K1/5.3x: ") == 1


def test_a_network_from_end_to_end(on_the_cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def net():
        layers = nn.Conv2d(3, 16, 7, 8, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(inplace=True)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=SimpleNamespace(net=net)))
    row = gpu_networks.run_network(gpu_networks.Network("net", 5.3, 2, "float16"))
    stem, layer = 28**2 * 16 * 3 * 49, 14**2 * 32 * 16 * 9
    assert row.reduction == pytest.approx((stem + layer) / (stem + layer / 5.3), rel=0.02)
    assert row.ms == dict.fromkeys(("dense", "compiled dense", "ours", "compiled ours"), 1.0)


def test_selection() -> None:
    cases = gpu_report.select(["unet_1"], ["1", "4"], [5.3, 10.0])
    assert [case.name for case in cases] == [f"unet_1/R{r}/K1/{f}x" for r in (1, 4) for f in ("5.3", "10")]
    with pytest.raises(SystemExit, match="expected some of"):
        gpu_report.select(["nothing"], ["1"], [5.3])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", "bench.gpu"], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr
