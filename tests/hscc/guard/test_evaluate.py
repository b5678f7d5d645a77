"""``hscc evaluate`` counts the images that the guard of a compressed model flags."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from hscc import Config, compress_, flops, save
from hscc.data.sources import open_images
from hscc.data.spec import METADATA_KEY
from hscc.guard.guard import Guard
from hscc.io.loading import load_model
from PIL import Image

from tests.hscc.app.conftest import NETWORK, hscc, work  # noqa: F401


def test_evaluate_counts_flagged_images(work: Path, hscc) -> None:  # noqa: F811
    model, spec = load_model(str(work / "model.py:build"), work / "w.safetensors")
    images = torch.stack([*open_images(work / "data", spec)])
    compress_(model, images, Config(flops(2)))
    guard = Guard.fit(model, images)
    for name in ("bright", "dark"):
        (work / "foreign" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.full((16, 16), 40 * i, np.uint8)).save(work / "foreign" / name / f"{i}.png")
    for kept in (guard, None):
        save(model, work / "guarded.safetensors", metadata={METADATA_KEY: spec.to_json()}, guard=kept)
        arguments = ("--weights", "guarded.safetensors", "--data", "foreign", "--json", "g.json")
        code, out, errors = hscc("evaluate", *NETWORK, *arguments)
        assert code == 0, errors
        told = json.loads((work / "g.json").read_text())
        assert ("guard: 10 of 10 images flagged as foreign (100 %; 5 % are usual)" in out) == (kept is not None)
        assert told.get("flagged") == (10 if kept else None)
