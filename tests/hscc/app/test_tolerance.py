"""``hscc compress --max-drop`` as a user meets it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hscc.app import cli
from hscc.data.spec import METADATA_KEY, ImageSpec
from PIL import Image
from safetensors.torch import save_file

SPEC = ImageSpec((16, 16), 1, (0.5,), (0.25,), ("bright", "dark"))
MODEL = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tolerance")
    (root / "model.py").write_text(MODEL)
    namespace: dict = {}
    exec(MODEL, namespace)
    torch.manual_seed(0)
    save_file(namespace["build"]().state_dict(), root / "w.safetensors", {METADATA_KEY: SPEC.to_json()})
    generator = np.random.default_rng(0)
    for name, level in (("bright", 180), ("dark", 60)):
        (root / "data" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.normal(level, 30, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "data" / name / f"{i}.png")
    return root


def run(work: Path, monkeypatch, *more: str) -> int:
    common = ("compress", "--model", "model.py", "--weights", "w.safetensors", "--data", "data", "--effort", "quick")
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "argv", ["hscc", *common, "--out", "small.safetensors", *more])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return exit.value.code


@pytest.mark.parametrize("more", [(), ("--agreement",)])
def test_a_drop(work: Path, monkeypatch, capsys, more: tuple[str, ...]) -> None:
    asked = ("--max-drop", "40", "--validation", "data", "--aim", "params", "--json", "r.json", *more)
    assert run(work, monkeypatch, *asked) == 0
    report = json.loads((work / "r.json").read_text())
    (taken,) = (trial for trial in report["trials"] if trial["chosen"])
    assert taken["samples"] == 24
    assert taken["bound"] <= 40
    assert report["dense_score"] == (1 if more else 0.5)  # random weights name one class
    told = capsys.readouterr().out
    assert "points lost" in told
    assert "fitted to" not in " ".join(told.split())


def test_on_the_calibration_images(work: Path, monkeypatch, capsys) -> None:
    assert run(work, monkeypatch, "--max-drop", "40") == 0
    assert "which the factors were fitted to" in " ".join(capsys.readouterr().out.split())


def test_too_few_images(work: Path, monkeypatch, capsys) -> None:
    (work / "small.safetensors").unlink(missing_ok=True)
    assert run(work, monkeypatch, "--max-drop", "1", "--validation", "data") == 2
    assert "more samples to judge by" in capsys.readouterr().err
    assert not (work / "small.safetensors").exists()
