"""``hscc sweep`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hscc.app.conftest import NETWORK

SWEEP = ("sweep", *NETWORK, "--validation", "data", "--effort", "quick", "--flops", "2", "--flops", "3")
PICK = ("--pick", "accuracy >= dense - 60 and flops <= dense / 2.9", "--by", "params")


def test_sweep_pick_and_report(work: Path, hscc) -> None:
    asked = (*SWEEP, "--method", "hscc", "--method", "svd", "--regions", "2", "--out", "swept")
    code, out, errors = hscc(*asked, *PICK, "--to", "picked.safetensors")
    assert code == 0, errors
    assert "The front" in out
    points = json.loads((work / "swept" / "points.json").read_text())
    assert [(point["method"], point["setting"]["budget"]) for point in points] == [
        *(("hscc", 2.0), ("hscc", 3.0), ("svd", 2.0), ("svd", 3.0))
    ]
    (taken,) = (point for point in points if point["chosen"])
    assert taken["flop_reduction"] >= 2.9
    assert taken["parameter_reduction"] == max(p["parameter_reduction"] for p in points if p["flop_reduction"] >= 2.9)
    weights = [*NETWORK[:3], "picked.safetensors", *NETWORK[4:]]
    code, out, errors = hscc("evaluate", *weights)
    assert code == 0, errors
    assert f"accuracy {100 * taken['score']:.2f} %" in out
    before = {file.name: file.stat().st_mtime_ns for file in (work / "swept").glob("*-*")}
    code, out, _ = hscc(*asked)  # nothing is left to do
    assert code == 0
    assert before == {file.name: file.stat().st_mtime_ns for file in (work / "swept").glob("*-*")}
    network = ("--model", "model.py:build", "--dense", "w.safetensors", "--weights", "picked.safetensors")
    code, _, errors = hscc("report", *network, "--points", "swept/points.json", "--out", "r.html", "--test", "data")
    assert code == 0, errors
    assert "Tucker-2" not in (text := (work / "r.html").read_text())
    assert "svd" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pick", "speed >= 3"), "error: pick: got 'speed >= 3', expected a measure (accuracy,"),
        (("--pick", "flops <= dense / 0"), "error: pick: got 'flops <= dense / 0', expected"),
        (("--pick", "accuracy >= 0", "--by", "beauty"), "error: by: got 'beauty', expected one of"),
        (("--to", "x.safetensors"), "error: to: got a file without --pick, expected both"),
        (("--pick", "accuracy >= 0", "--to", "nowhere/x"), "error: out: got 'nowhere/x', expected a file in an"),
        (("--rule", "luck"), "error: rules: got 'luck', expected some of ['search', 'given', 'energy']"),
        (("--method", "magic"), "error: method: got 'magic', expected one of"),
        (("--flops", "0.5"), "error: budget: got flops=0.5, expected a reduction of at least 1"),
        (("--out", "data"), "error: folder: got 'data', which has other files, expected a new or empty one"),
    ],
)
def test_wrong_input_is_told_before_the_work(work: Path, hscc, arguments: tuple[str, ...], message: str) -> None:
    code, out, errors = hscc(*SWEEP, "--out", "new", *arguments)
    assert (code, out) == (2, "")
    assert message in errors
    assert not [*work.glob("new/*-*")]
