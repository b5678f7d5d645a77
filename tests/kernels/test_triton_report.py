"""The parts of the GPU report that need no GPU: floors, rotation of inputs, table, picture, arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu_report, roofline
from bench.cases import LAYERS, Case, make_plan
from bench.gpu_report import Row
from bench.roofline import Conv, Machine, Work


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
    assert gpu_report.rotations(10**9, 50 * 2**20) == 4
    assert gpu_report.rotations(10 * 2**20, 50 * 2**20) == 15
    assert gpu_report.rotations(1000, 50 * 2**20) == 64


def test_plan_work_agrees_with_paper() -> None:
    layer = LAYERS["vgg16_3_2"]
    plan = make_plan(Case(layer, "1", 1, 5.3))
    conv = Conv("", 1, 256, 256, 3, 56, 56)
    paper = roofline.fused_work(conv, 32, plan.v.shape[0])
    assert gpu_report.work_of(layer, 32, plan.parameters(), plan.flops() * 32) == paper


ROWS = [
    Row(
        "vgg/R1",
        5.3,
        0.4,
        {"ours": 0.1, "cudnn dense": 0.5, "compiled dense": 0.4, "cudnn chain": 0.3, "compiled chain": 0.2},
        Work(215_000_000, 1),
    )
]


def test_table() -> None:
    header, rule, line = gpu_report.table(ROWS, Machine(4.3e12, 790e12))
    assert header.count("|") == rule.count("|") == line.count("|")
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["vgg/R1", "5.30", "0.4000", "0.2000", "0.1000", "4.00", "0.75", "0.0500", "50%"]


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    gpu_report.picture(ROWS, tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_selection() -> None:
    cases = gpu_report.select(["unet_1"], ["1", "4"], [5.3, 10.0])
    assert [case.name for case in cases] == [f"unet_1/R{r}/K1/{f}x" for r in (1, 4) for f in ("5.3", "10")]
    with pytest.raises(SystemExit, match="expected some of"):
        gpu_report.select(["nothing"], ["1"], [5.3])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_report"], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr
