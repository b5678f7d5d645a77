"""Trained networks, really compressed: ONNX Runtime and OpenVINO give what the compressed model gives."""

from __future__ import annotations

import copy
from pathlib import Path

import hscc
import pytest
import torch
from hscc.exports.model import export
from torch import Tensor, nn

from bench.accuracy import examples
from tests.hscc.exports.test_export import onnxruntime_outputs, openvino_outputs

onnx = pytest.importorskip("onnx", reason="needs hscc[onnx]")


def resnet() -> tuple[nn.Module, Tensor]:
    """With batch norms; blocks, some of whose shortcuts are convolutions."""
    model, spec, _ = examples.network("resnet20")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, spec.channels, 7, 7, generator=generator)
    return model, nn.functional.interpolate(images, size=spec.size, mode="bilinear")


def brain_mri() -> tuple[nn.Module, Tensor]:
    model, spec, _ = examples.network("brain_mri")
    program = examples.ROOT / "examples" / "brain_mri" / "synthetic.py"
    return model, spec.preprocess(examples.heads(program, "calibration", 8, 0)[0])


@pytest.mark.slow
@pytest.mark.parametrize(("network", "portable"), [(resnet, True), (brain_mri, False)], ids=["resnet", "mri"])
def test_runtimes_agree(tmp_path: Path, network, portable: bool) -> None:
    dense, images = network()
    model, path = copy.deepcopy(dense), tmp_path / "m.onnx"
    how = {"search": portable, "clusters": 1, "reconstruction": "independent", "sensitivity": False, "regions": 2}
    hscc.compress_(model, [images], hscc.Config(hscc.flops(3), portable=portable, **how))
    hscc.fuse_(model)
    layers = export(model, path, example=images[:1]).layers
    assert set(layers.values()) == {"convolutions"} if portable else {"masks", "gathers"} & set(layers.values())
    assert not {"BatchNormalization"} & {node.op_type for node in onnx.load(path).graph.node}
    with torch.no_grad():
        wanted = model(images)
    assert (wanted - dense(images).detach()).abs().max() > 1e-3  # it is the compressed one
    for run in (onnxruntime_outputs, openvino_outputs):
        error = (run(path, images) - wanted).abs().max() / wanted.abs().max()
        assert error < 1e-5, (run.__name__, error)
