"""A small network, 24 images in class folders, and the command line in this process."""

from __future__ import annotations

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
def number():
    return 3
"""
NETWORK = ("--model", "model.py:build", "--weights", "w.safetensors", "--data", "data", "--threads", "1")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with model.py, random weights w.safetensors, and data/<class>/<i>.png."""
    root = tmp_path_factory.mktemp("app")
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


@pytest.fixture
def hscc(work: Path, monkeypatch, capsys):
    """Runs the command line in ``work``; returns (exit code, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(work)
        monkeypatch.setattr(sys, "argv", ["hscc", *arguments])
        threads = torch.get_num_threads()
        with pytest.raises(SystemExit) as exit:
            cli.main()
        torch.set_num_threads(threads)
        return (exit.value.code or 0, *capsys.readouterr())

    return run
