"""The bench of grouped convolutions: its ways agree before they are timed, its figures belong together."""

from __future__ import annotations

import argparse

import pytest
import torch

from bench.kernels import grouped


@pytest.mark.parametrize("stride", [1, 2])
@torch.inference_mode()
def test_a_row(stride: int) -> None:
    args = argparse.Namespace(batch=1, rounds=1)
    row = grouped.measure(grouped.Layer(64, 4, 6, stride), 2.0, args)
    assert (row["width"], row["rank"]) == (16, 7)
    assert row["reduction"] == pytest.approx(9 * 16 * 16 / (7 * (9 * 16 + 16)))
    assert row["eta"] == pytest.approx(row["speedup"] / row["reduction"])
    assert row["ms"].keys() == {"dense", "dense, planes", "ours", "a call a group", "two grouped"}
    assert min(row["ms"].values()) > 0
