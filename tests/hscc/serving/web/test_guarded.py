"""``hscc serve`` with weights that bring a guard."""

from __future__ import annotations

from pathlib import Path

import hscc
import pytest
import torch
from hscc.app.served import Policy, Wanted
from hscc.io.loading import load_model
from hscc.serving.engine import Engine, Limits
from hscc.serving.web.service import Service

from .conftest import Ask, asker, infer_json
from .test_usage import WEIGHTS, usage

KNOWN, FOREIGN = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 50.0)


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Wanted:
    """The small network compressed, with a guard that knows numbers near 0."""
    model, spec = load_model(f"{folder / 'model.py'}:build", folder / "w.safetensors")
    x = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    report = hscc.compress_(model, x, hscc.Config(hscc.flops(2), effort="quick"))
    guard = hscc.Guard.fit(model, x)
    file = folder / "guarded.safetensors"
    hscc.save(model, file, report=report, metadata={"hscc.images": spec.to_json()}, guard=guard)
    return Wanted("small", file, f"{folder / 'model.py'}:build")


def asked(wanted: Wanted, policy: Policy, x: torch.Tensor) -> tuple[int, dict]:
    engine = Engine(wanted.load(False), Limits(batch=4, images=4), guard=policy.of(wanted, False))
    engine.start()
    try:
        ask: Ask = asker(Service([engine]))
        answer = ask("POST", "/v2/models/small/infer", json=infer_json(x))
        about = ask("GET", "/v2/models/small").json()
    finally:
        engine.stop(5)
    return answer.status_code, {"about": about, **answer.json()}


def values(answer: dict) -> dict[str, list]:
    return {one["name"]: one["data"] for one in answer["outputs"]}


def test_flag(guarded: Wanted) -> None:
    x = torch.cat([torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1)), FOREIGN])
    status, answer = asked(guarded, Policy("flag"), x)
    assert status == 200
    found = values(answer)
    assert found["guard_flagged"] == [False, True]
    assert found["guard_score"][1] > found["guard_score"][0] > 0
    listed = [(one["name"], one["datatype"]) for one in answer["about"]["outputs"]]
    assert listed[-2:] == [("guard_score", "FP32"), ("guard_flagged", "BOOL")]


def test_reject(guarded: Wanted) -> None:
    status, answer = asked(guarded, Policy("reject"), FOREIGN)
    assert status == 422
    assert "unlike those the model knows" in answer["error"]


def test_dense_answers_instead(guarded: Wanted, folder: Path) -> None:
    model, _ = load_model(f"{folder / 'model.py'}:build", folder / "w.safetensors")
    status, answer = asked(guarded, Policy("dense", folder / "w.safetensors"), FOREIGN)
    assert status == 200
    (name,) = set(values(answer)) - {"guard_score", "guard_flagged"}
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(values(answer)[name]), model(FOREIGN)[0], rtol=1e-4, atol=1e-4)


def test_off(guarded: Wanted) -> None:
    status, answer = asked(guarded, Policy("off"), FOREIGN)
    assert (status, len(answer["outputs"]), len(answer["about"]["outputs"])) == (200, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--guard", "maybe"), "guard: got 'maybe', expected one of"),
        (("--guard", "dense"), "dense: got None with --guard dense, expected a file"),
        (("--dense", "w.safetensors"), "dense: got 'w.safetensors' with --guard flag"),
        (("--guard", "dense", "--dense", "none"), "dense: got 'none', expected a file of weights"),
        (("--guard", "dense", "--dense", "w.safetensors", "b=w.safetensors"), "dense: got one file for 2 models"),
        (("--guard", "reject", "--litserve"), "guard: got 'reject' with --litserve"),
    ],
)
def test_wrong_usage(arguments: tuple, words: str, folder: Path, monkeypatch, capsys) -> None:
    assert words in usage(folder, monkeypatch, capsys, *WEIGHTS, *arguments)


def test_weights_without_a_guard_cannot_refuse(folder: Path) -> None:
    wanted = Wanted("small", folder / "w.safetensors", f"{folder / 'model.py'}:build")
    assert Policy("flag").of(wanted, False) is None
    with pytest.raises(ValueError, match=r"guard: got 'reject' for .*which has none"):
        Policy("reject").of(wanted, False)
