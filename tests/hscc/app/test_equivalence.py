"""``hscc evaluate --against``: two networks on class folders made here, as a user meets them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hscc.app import cli
from hscc.app.comparison import show
from hscc.data.spec import METADATA_KEY, ImageSpec
from hscc.evaluation.comparison import Comparison
from hscc.evaluation.outputs import Outputs
from PIL import Image
from safetensors.torch import save_file

SPEC = ImageSpec((4, 4), 1, (0.5,), (0.25,), ("bright", "dark"))
MODEL = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(16, 1))\n"
EACH = 60


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """120 images that a threshold tells apart, its weights, and those of one that calls all dark."""
    root = tmp_path_factory.mktemp("equivalence")
    (root / "model.py").write_text(MODEL)
    for name, bias in (("dense", 0.0), ("same", 1e-3), ("broken", 1e3)):
        weights = {"1.weight": torch.full((1, 16), -1.0), "1.bias": torch.tensor([bias])}
        save_file(weights, root / f"{name}.safetensors", {METADATA_KEY: SPEC.to_json()})
    other = ImageSpec((4, 4), 1, (0.5,), (0.25,), ("dark", "bright"))
    save_file(weights, root / "other.safetensors", {METADATA_KEY: other.to_json()})
    generator = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 50)):
        (root / "data" / name).mkdir(parents=True)
        for i in range(EACH):
            pixels = generator.normal(level, 10, (4, 4)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "data" / name / f"{i:03}.png")
    return root


@pytest.fixture
def evaluate(work: Path, monkeypatch, capsys):
    """Runs the command in this process; (exit code, standard output, standard error)."""
    monkeypatch.setattr("hscc.evaluation.speed.latency", lambda models, example: dict.fromkeys(models, 1e-3))

    def run(weights: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(work)
        common = ("evaluate", "--model", "model.py:build", "--weights", f"{weights}.safetensors", "--data", "data")
        monkeypatch.setattr(sys, "argv", ["hscc", *common, *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return (exit.value.code or 0, *capsys.readouterr())

    return run


AGAINST = ("--against", "dense.safetensors")


def test_verdict_first_then_tables(work: Path, evaluate) -> None:
    code, out, errors = evaluate("same", *AGAINST, "--margin", "8", "--json", "same.json", "--require-equivalent")
    assert code == 0, errors
    assert out.startswith("equivalent overall, in every class.\n")
    for expected in ("metric", "macro AUC", "100.00 (100.00 to 100.00)", "Same choice in 100.00", "class dark", "8"):
        assert expected in out
    assert "accuracy 100.00 %" in out
    data = json.loads((work / "same.json").read_text())
    assert (data["images"], data["accuracy"]) == (2 * EACH, 1)
    assert data["comparison"]["verdict"] == "equivalent overall, in every class"
    assert data["comparison"]["margin"] == 8


def test_a_broken_one_is_worse(work: Path, evaluate) -> None:
    code, out, _ = evaluate("broken", *AGAINST, "--json", "broken.json")
    assert code == 0
    assert out.startswith("worse overall, worse in class bright, not enough data in class dark.\n")
    comparison = json.loads((work / "broken.json").read_text())["comparison"]
    assert comparison["mcnemar"]["lost"] == EACH
    assert {one["label"] for one in comparison["disagreements"]} == {0}
    (work / "broken.json").unlink()
    code, out, _ = evaluate("broken", *AGAINST, "--json", "broken.json", "--require-equivalent")
    assert code == 3
    assert "accuracy 50.00 %" in out
    assert (work / "broken.json").exists()


def test_too_few_images_are_not_equivalent(evaluate) -> None:
    code, out, _ = evaluate("same", *AGAINST, "--require-equivalent")
    assert code == 3
    assert out.startswith("not enough data overall (about ")


def test_groups_are_columns_of_the_labels(work: Path, evaluate) -> None:
    """Site A has all that the broken network gets wrong."""
    sites = {"bright": "A", "dark": "B"}
    rows = [f"{name}/{i:03}.png,{name},{sites[name]}" for i in range(EACH) for name in sites]  # not sorted by class
    (work / "sites.csv").write_text("\n".join(["file,label,site", *rows]))
    code, out, errors = evaluate("broken", *AGAINST, "--labels", "sites.csv", "--group", "site", "--json", "sites.json")
    assert code == 0, errors
    assert "site = A" in out.splitlines()[0]
    verdicts = json.loads((work / "sites.json").read_text())["comparison"]["verdicts"]
    found = {one["scope"]: (one["images"], one["drop"], one["answer"]) for one in verdicts}
    assert found["site = A"] == (EACH, 100, "worse")
    assert found["site = B"] == (EACH, 0, "not enough data")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--require-equivalent",), "error: against: got no file, expected the dense network's weights for"),
        (("--group", "site"), "error: against: got no file, expected the dense network's weights for"),
        ((*AGAINST, "--group", "site"), "error: group: got 'site', expected a column of the labels: []"),
        ((*AGAINST, "--margin", "0"), "error: margin: got 0.0, expected points between 0 and 100"),
        ((*AGAINST, "--confidence", "95"), "error: confidence: got 95.0, expected a share between 0.5 and 1"),
        (("--against", "other.safetensors"), "error: against: got 'other.safetensors', expected one for the images"),
        (("--against", "none.safetensors"), "error: checkpoint: got 'none.safetensors', expected a file"),
    ],
)
def test_wrong_input(evaluate, arguments: tuple[str, ...], message: str) -> None:
    code, _, errors = evaluate("same", *arguments)
    assert code == 2
    assert message in errors


def test_of_many_classes_the_worst_are_shown(capsys) -> None:
    labels = np.arange(30_000) % 30
    choices = np.where((labels == 7) & (np.arange(30_000) // 30 % 4 == 0), 8, labels)
    dense, small = (Outputs(np.eye(30)[own], labels) for own in (labels, choices))
    show(Comparison.of(dense, small, [f"[b]c{i:02}" for i in range(30)]))  # no markup
    out = capsys.readouterr().out
    assert out.splitlines()[0].count("worse in class [b]c07") == 1
    assert "the worst 20 of 30; --json has all" in out
    assert [line for line in out.splitlines() if "class [b]" in line][1].startswith(
        "│ class [b]c07 "
    )  # [0]: the verdict
    assert all(len(line) <= 120 for line in out.splitlines()[1:])
