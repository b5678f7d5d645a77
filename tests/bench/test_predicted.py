"""The bench of predictions: one row a network, from the report."""

from __future__ import annotations

import json
from pathlib import Path

import hscc.search.stopwatch
import pytest
import torch
from hscc import whole

from bench.networks import predicted
from bench.networks.sources import Source
from tests.hscc.conftest import small_net


def test_a_row(tmp_path: Path, monkeypatch, capsys) -> None:
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.randn(16, 3, 8, 8), size=32)
    monkeypatch.setattr(predicted, "source", lambda *args: Source(small_net().eval(), images, images))
    monkeypatch.setattr(hscc.search.stopwatch, "_SECONDS", 0.01)
    monkeypatch.setattr(whole, "SECONDS", 0.02)
    monkeypatch.setenv("HSCC_CACHE_DIR", str(tmp_path))
    file = tmp_path / "found.json"
    predicted.main(["--model", "alexnet", "--reduction", "1.2", "--json", str(file)])
    (row,) = json.loads(file.read_text())["cases"]
    best = min(row["dense_ms"].values())
    assert row["speedup"] == pytest.approx(
        {"predicted": best / row["predicted_ms"], "measured": best / row["measured_ms"]}
    )
    assert row["flop_reduction"] >= 1.2
    assert f"{row['measured_ms']:.2f} measured" in capsys.readouterr().out
