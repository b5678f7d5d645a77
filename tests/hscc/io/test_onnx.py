"""ONNX files become models that compress; what does not convert is told in a sentence."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import hscc
import pytest
import torch
from hscc.exports.model import export
from hscc.io import onnx as onnx_file
from hscc.io.onnx import load_onnx
from torch import nn

pytestmark = pytest.mark.skipif(find_spec("onnx2torch") is None, reason="needs onnx2torch, without its dependencies")


def network() -> nn.Sequential:
    """What a later opset says in other words: a global mean, a flattening."""
    head = nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), *head).eval()


def test_a_model_comes_back_and_compresses(tmp_path: Path) -> None:
    model, path, x = network(), tmp_path / "m.onnx", torch.randn(8, 3, 12, 12)
    export(model, path, example=(1, 3, 12, 12))
    loaded = load_onnx(path)
    assert not loaded.training
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    report = hscc.compress_(loaded, [x], hscc.Config(hscc.flops(3), portable=True))
    assert report.flop_reduction >= 3
    again = tmp_path / "small.onnx"
    assert set(export(loaded, again, example=x[:1]).layers.values()) == {"convolutions"}
    with torch.no_grad():
        torch.testing.assert_close(load_onnx(again)(x), loaded(x), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_read(tmp_path: Path, monkeypatch) -> None:
    from onnx import TensorProto, helper, save

    with pytest.raises(FileNotFoundError, match=r"onnx: got .*, expected a file"):
        load_onnx(tmp_path / "no.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ValueError, match="got no valid ONNX file"):
        load_onnx(tmp_path / "text.onnx")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph([helper.make_node("Hardmax", ["x"], ["y"])], "one", [value], [result])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "hard.onnx")
    with pytest.raises(ValueError, match=r"got opset 17, which does not convert \(.*Hardmax") as caught:
        load_onnx(tmp_path / "hard.onnx")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(onnx_file, "PACKAGES", ("no_such_package",))
    with pytest.raises(ImportError, match=r"need no_such_package: pip install 'hscc\[onnx\]'"):
        load_onnx(tmp_path / "hard.onnx")
