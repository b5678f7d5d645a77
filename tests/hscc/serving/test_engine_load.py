"""The bench of serving: its loops count and time what they should, and it makes its table."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
import torch
from hscc.data.spec import ImageSpec
from hscc.serving.errors import Overloaded
from torch import nn

from bench.serving import run, table, targets
from bench.serving.load import Load, closed, opened


def test_closed_loop() -> None:
    """Each client has one request at a time."""
    now, most = 0, 0

    async def ask() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1

    load = asyncio.run(closed(ask, clients=3, seconds=0.3))
    assert most == 3
    assert 6 <= len(load.latencies) <= 48
    assert min(load.latencies) >= 0.019
    assert load.rate == pytest.approx(len(load.latencies) / load.seconds)


def test_an_open_loop_hides_no_stall() -> None:
    """Requests keep coming while the server stalls, and those that came meanwhile have waited."""
    calls = 0

    async def ask() -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            time.sleep(0.3)  # stalls the loop, so that the next cannot even be sent
        if calls % 10 == 0:
            raise Overloaded("full")

    load = asyncio.run(opened(ask, rate=200, seconds=0.6))
    assert 80 <= calls <= 170
    assert len(load.latencies) + load.refused["Overloaded"] == calls
    assert load.refused == {"Overloaded": calls // 10}
    assert 25 <= sum(latency > 0.05 for latency in load.latencies) <= 70  # of 200 a second, in 0.25 s
    assert asyncio.run(opened(ask, 1e-6, 0.05)).latencies == []


def test_percentiles() -> None:
    load = Load([i / 1000 for i in range(101)], seconds=2) + Load(seconds=3)
    assert load.percentiles() == {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}
    assert load.rate == 101 / 5
    assert Load().percentiles() == {"p50_ms": None, "p95_ms": None, "p99_ms": None}


def test_the_bench(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """On a small network, so that it says nothing but that it runs."""
    spec, threads = ImageSpec((32, 32), 3, (0.5,) * 3, (0.5,) * 3, ()), torch.get_num_threads()
    monkeypatch.setattr(run, "network", lambda data: (net, spec, ""))
    monkeypatch.setattr(run, "example_models", lambda *args: {"dense": net, "5.3x": net})
    monkeypatch.setattr(run, "keep_freed_memory", lambda: None)  # it would stay for all tests
    monkeypatch.setattr(run, "header", lambda threads, batch: {"threads": threads, "batch": batch})
    file = tmp_path / "serving.json"
    options = ["--seconds", "0.2", "--rounds", "2", "--clients", "4", "--rates", "50", "--images", "2"]
    assert run.main([*options, "--json", str(file), "--threads", "1"]) == 0
    torch.set_num_threads(threads)
    found = json.loads(file.read_text())
    assert found["header"] == {"threads": 1, "batch": 16, "images": 2}
    assert [(row["load"], row["level"], row["name"]) for row in found["cases"]] == [
        ("closed", 4, "dense"), ("closed", 4, "5.3x"), ("open", 50, "dense"), ("open", 50, "5.3x")
    ]  # fmt: skip
    for row in found["cases"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["images_per_s"] == pytest.approx(row["share"] * row["bare_images_per_s"], rel=0.01)
    lines = table.lines(found["cases"])
    assert lines[2].startswith("| 4 clients | dense | ")
    assert "\n".join(lines) in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run.main(["--url", "http://localhost"])


def test_binary_requests() -> None:
    x = torch.arange(8.0).view(2, 1, 2, 2)
    body, headers = targets.binary("x", x)
    length = int(headers["Inference-Header-Content-Length"])
    (tensor,) = json.loads(body[:length])["inputs"]
    assert tensor == {"name": "x", "shape": [2, 1, 2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 32}}
    assert torch.equal(torch.frombuffer(bytearray(body[length:]), dtype=torch.float32), x.flatten())
