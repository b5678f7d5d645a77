"""ONNX files as modules: right, copied, and refused where they are something else."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import hscc
import pytest
import torch
from hscc.data.spec import ImageSpec
from hscc.io.loading import load_model, open_model
from hscc.io.session import OnnxSession
from torch import Tensor, nn

pytest.importorskip("onnx", reason="needs hscc[onnx]")
SPEC = ImageSpec((12, 12), 3, (0.5,) * 3, (0.25,) * 3, ("a", "b"))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y, y.mean((2, 3))


@pytest.fixture
def made(tmp_path: Path) -> tuple[nn.Module, Path]:
    model, path = Two().eval(), tmp_path / "two.onnx"
    hscc.export(model, path, example=(1, 3, 12, 12), metadata={"hscc.images": SPEC.to_json()})
    return model, path


@torch.no_grad()
def test_outputs_and_copies(made) -> None:
    model, path = made
    x, opened = torch.randn(3, 3, 12, 12), OnnxSession(path)
    assert opened.inputs == (("x", torch.float32, (-1, 3, 12, 12)),)
    assert not opened.training
    for one in (opened, copy.deepcopy(opened), pickle.loads(pickle.dumps(opened))):
        found = one(x.to(memory_format=torch.channels_last))
        assert found.keys() == {"y0", "y1"}
        for got, wanted in zip(found.values(), model(x), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_opened_as_weights_are(made) -> None:
    opened, spec = open_model("no_such_file.py", made[1])
    assert isinstance(opened, OnnxSession)
    assert spec == SPEC
    with pytest.raises(ValueError, match=r"two\.onnx"):  # what is to be compressed or trained is not
        load_model("no_such_file.py", made[1])


def test_what_is_none(made, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"x: got torch.float64, expected torch.float32"):
        OnnxSession(made[1])(torch.zeros(1, 3, 12, 12, dtype=torch.float64))
    with pytest.raises(FileNotFoundError, match="expected a file"):
        OnnxSession(tmp_path / "none.onnx")
    for damaged in (b"", b"something else", made[1].read_bytes()[:300]):
        path = tmp_path / "damaged.onnx"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="expected"):
            OnnxSession(path)
