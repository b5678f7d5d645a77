"""``hscc inspect`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hscc.data.spec import METADATA_KEY
from safetensors.torch import save_file

from tests.hscc.app.conftest import NETWORK


@pytest.fixture
def compressed(work: Path, hscc) -> Path:
    """By the command, which brings a guard."""
    file = work / "small.safetensors"
    if not file.exists():
        code, _, errors = hscc("compress", *NETWORK, "--effort", "quick", "--flops", "3", "--out", file.name)
        assert code == 0, errors
    return file


@pytest.mark.parametrize(
    "command", ["compress", "evaluate", "export", "finetune", "inspect", "report", "serve", "sweep"]
)
def test_help_has_an_example(hscc, command: str) -> None:
    code, out, _ = hscc(command, "--help")
    assert code == 0
    assert f"Example: hscc {command}" in out


def test_inspect_says_what_a_file_is(work: Path, compressed: Path, hscc) -> None:
    code, out, errors = hscc("inspect", "small.safetensors", "--json", "inspect.json", "--model", "model.py:build")
    assert code == 0, errors
    for words in (
        "a model that hscc has compressed",
        "16 x 16, 1 channel(s)",
        "bright, dark",
        "5 % false alarms",
        "regions",
    ):
        assert words in out
    found = json.loads((work / "inspect.json").read_text())
    assert found["layers"] == sum(bool(layer["ranks"]) for layer in found["report"]["layers"])
    assert (found["fits"], found["images"]["size"]) == ("model.py:build", [16, 16])
    assert found["report"]["flop_reduction"] >= 3
    code, out, _ = hscc("inspect", "w.safetensors")
    assert (code, "dense weights, with what images they want" in out, "regions" in out) == (0, True, False)
    save_file({"x": torch.zeros(3)}, work / "foreign.safetensors", {"format": "pt", "note": "[b]"})
    code, out, _ = hscc("inspect", "foreign.safetensors")
    assert (code, "a safetensors file that hscc did not write" in out, "[b]" in out) == (0, True, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "error: checkpoint: got 'nowhere', expected a file"),
        (("model.py",), "error: model.py: got an unreadable or truncated file"),
        (("foreign.safetensors", "--model", "model.py"), "error: foreign.safetensors: got weights that do not fit"),
        (("no-json",), "error: no-json: got damaged hscc metadata (Expecting value"),
        (("number",), "error: number: got damaged hscc metadata (3), expected a checkpoint header"),
        (("report",), "error: report: got a damaged report (KeyError('layers')), expected one written by hscc.save"),
        (("images",), "error: images: got a damaged 'hscc.images' ("),
    ],
)
def test_inspect_refuses_in_one_line(work: Path, hscc, arguments: tuple[str, ...], message: str) -> None:
    save_file({"x": torch.zeros(3)}, work / "foreign.safetensors", {"format": "pt"})
    headers = {"no-json": "x", "number": "3", "report": '{"report": {"x": 1}}'}
    for name, value in headers.items():
        save_file({"x": torch.zeros(1)}, work / name, {"hscc": value})
    save_file({"x": torch.zeros(1)}, work / "images", {METADATA_KEY: "{}"})
    code, _, errors = hscc("inspect", *arguments)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors
