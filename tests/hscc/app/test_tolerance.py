"""``hscc compress --max-drop`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hscc.app.conftest import NETWORK

SMALL = ("compress", *NETWORK, "--effort", "quick", "--out", "small.safetensors")


@pytest.mark.parametrize("more", [(), ("--agreement",)])
def test_a_drop(work: Path, hscc, more: tuple[str, ...]) -> None:
    asked = ("--max-drop", "40", "--validation", "data", "--aim", "params", "--json", "r.json", *more)
    code, told, errors = hscc(*SMALL, *asked)
    assert code == 0, errors
    report = json.loads((work / "r.json").read_text())
    (taken,) = (trial for trial in report["trials"] if trial["chosen"])
    assert taken["samples"] == 24
    assert taken["bound"] <= 40
    assert report["dense_score"] == (1 if more else 0.5)  # random weights name one class
    assert "points lost" in told
    assert "fitted to" not in " ".join(told.split())


def test_on_the_calibration_images(hscc) -> None:
    code, told, _ = hscc(*SMALL, "--max-drop", "40")
    assert code == 0
    assert "which the factors were fitted to" in " ".join(told.split())


def test_too_few_images(work: Path, hscc) -> None:
    (work / "small.safetensors").unlink(missing_ok=True)
    code, _, errors = hscc(*SMALL, "--max-drop", "1", "--validation", "data")
    assert code == 2
    assert "more samples to judge by" in errors
    assert not (work / "small.safetensors").exists()
