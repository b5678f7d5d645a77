"""What can be served: weights files with their image spec, modules, exported programs and AOTInductor packages."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import hscc
import pytest
import torch
from hscc.data.spec import ImageSpec
from hscc.nn.conv2d import HSCConv2d
from hscc.serving.engine import Engine
from hscc.serving.limits import Limits
from hscc.serving.models import Served
from hscc.serving.packages import SIGNATURE_KEY
from hscc.serving.signature import TensorSpec
from safetensors.torch import save_file
from torch import Tensor, nn

SPEC = ImageSpec((32, 32), 3, (0.5,) * 3, (0.25,) * 3, ("a", "b", "c", "d"))
SOURCE = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network's source, its weights, and those of the compressed one."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "net.py").write_text(SOURCE)
    torch.manual_seed(0)
    model = hscc.io.loading.build_model(str(folder / "net.py"))
    save_file(model.state_dict(), folder / "dense.safetensors", {"hscc.images": SPEC.to_json()})
    images = torch.nn.functional.interpolate(torch.randn(16, 3, 8, 8), size=(32, 32), mode="bilinear")
    hscc.compress_(model, list(images.split(8)), hscc.Config(hscc.flops(1.5)))
    hscc.save(model, folder / "small.safetensors", metadata={"hscc.images": SPEC.to_json()})
    return folder


def alone(folder: Path, name: str) -> nn.Module:
    return hscc.io.loading.load_model(str(folder / "net.py"), folder / name)[0]


@pytest.mark.parametrize(("name", "kind"), [("dense", "dense"), ("small", "compressed")])
@pytest.mark.parametrize("fuse", [True, False])
def test_weights(start, folder: Path, name: str, kind: str, fuse: bool) -> None:
    file = folder / f"{name}.safetensors"
    served = Served.load(file, str(folder / "net.py"), fuse=fuse)
    assert (served.name, served.kind, served.images, served.labels) == (name, kind, SPEC, SPEC.classes)
    assert served.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert served.inputs == (TensorSpec("input", "FP32", (-1, 3, 32, 32)),)
    assert served.outputs == (TensorSpec("output", "FP32", (-1, 4)),)
    assert any(isinstance(module, HSCConv2d) for module in served.module.modules()) == (kind == "compressed")
    assert any(isinstance(module, nn.BatchNorm2d) for module in served.module.modules()) != fuse
    x = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        expected = alone(folder, file.name)(x)
    torch.testing.assert_close(start(served).infer_sync(x).outputs["output"], expected, rtol=1e-4, atol=1e-5)


def test_any_size(folder: Path) -> None:
    source = str(folder / "net.py")
    served = Served.load(folder / "small.safetensors", source, any_size=True, name="net-1.0")
    assert served.inputs[0].shape == (-1, 3, -1, -1)
    assert served.name == "net-1.0"
    with pytest.raises(ValueError, match=r"name: got '\.\./net', expected letters, digits"):
        Served.load(folder / "dense.safetensors", source, name="../net")


@pytest.mark.parametrize("int8", [False, True])
def test_onnx(start, folder: Path, tmp_path: Path, int8: bool) -> None:
    pytest.importorskip("onnx", reason="needs hscc[onnx]")
    model, told = alone(folder, "dense.safetensors"), {"hscc.images": SPEC.to_json()}
    images = torch.nn.functional.interpolate(torch.randn(16, 3, 8, 8), size=(32, 32), mode="bilinear")
    file = tmp_path / "net.onnx"
    if int8:
        hscc.export_int8(model, file, images, metadata=told)
    else:
        hscc.export(model, file, example=images[:1], metadata=told)
    served = Served.load(file)
    assert (served.name, served.kind, served.images, served.device) == ("net", "onnx", SPEC, "cpu")
    assert served.inputs == (TensorSpec("x", "FP32", (-1, 3, 32, 32)),)
    assert served.outputs == (TensorSpec("y", "FP32", (-1, 4)),)
    with torch.inference_mode():
        expected = model(images[:5])
    found = start(served).infer_sync(images[:5]).outputs["y"]
    close = {"rtol": 0, "atol": 0.05 * expected.abs().max().item()} if int8 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found, expected, **close)
    assert not (int8 and torch.equal(found, expected))


def test_outputs_by_name() -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"mask": x.argmax(1), "half": x[..., ::2].half()}

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.mean(1), x.sum((1, 2, 3))

    served = Served.of(Several().eval(), torch.zeros(1, 2, 8, 8), any_size=True)
    assert served.outputs == (TensorSpec("mask", "INT64", (-1, -1, -1)), TensorSpec("half", "FP16", (-1, 2, -1, -1)))
    served = Served.of(Pair().eval(), torch.zeros(1, 2, 8, 8))
    assert served.outputs == (TensorSpec("output_0", "FP32", (-1, 8, 8)), TensorSpec("output_1", "FP32", (-1,)))


def test_what_cannot_be_served(folder: Path, net: nn.Module) -> None:
    x = torch.zeros(1, 3, 32, 32)
    with pytest.raises(FileNotFoundError, match=r"model: got 'nowhere\.pt2', expected a file"):
        Served.load("nowhere.pt2")
    with pytest.raises(ValueError, match=r"source: got none for '.*dense\.safetensors', expected file.py:function"):
        Served.load(folder / "dense.safetensors")
    with pytest.raises(ValueError, match=r"module: got one in training mode, expected model.eval\(\)"):
        Served.of(net.train(), x)
    with pytest.raises(ValueError, match=r"example: got \(3, 32, 32\), expected \(n, C, H, W\)"):
        Served.of(net.eval(), x[0])
    with pytest.raises(TypeError, match=r"model: got output torch.float32 \(3, 32, 32\) for 2 images, expected a row"):
        Served.of(_Sums().eval(), x)
    with pytest.raises(TypeError, match="model: got outputs that are int, expected a tensor or several of them"):
        Served.of(_Counts().eval(), x)
    served = Served.of(net, x)
    for devices in ([], ["cpu", "cpu"]):
        with pytest.raises(ValueError, match=r"devices: got \[.*\], expected each once, and one at least"):
            Engine(served, devices=devices)


class _Sums(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0)


class _Counts(nn.Module):
    def forward(self, x: Tensor) -> int:
        return len(x)


@pytest.fixture(scope="module")
def programs(folder: Path) -> dict[str, torch.export.ExportedProgram]:
    """Of any batch, of at most 4 images, of exactly 3."""
    model, x = alone(folder, "small.safetensors"), torch.randn(3, 3, 32, 32)
    dims = {"any": torch.export.Dim.DYNAMIC, "few": torch.export.Dim("n", max=4), "fixed": None}
    return {name: torch.export.export(model, (x,), dynamic_shapes=({0: dim},)) for name, dim in dims.items()}


@pytest.mark.parametrize(("name", "batches"), [("any", (1, None)), ("few", (1, 4)), ("fixed", (3, 3))])
def test_programs(start, folder: Path, tmp_path: Path, programs: dict, name: str, batches: tuple) -> None:
    """Of a fixed batch the last pass is filled up with blank images, which no answer shows."""
    file = tmp_path / "net.pt2"
    torch.export.save(programs[name], file, extra_files={"hscc.images": SPEC.to_json()})
    served = Served.load(file)
    assert (served.kind, served.batches, served.images, served.device) == ("program", batches, SPEC, "cpu")
    assert served.inputs == (TensorSpec("input", "FP32", (-1, 3, 32, 32)),)
    assert served.outputs == (TensorSpec("output", "FP32", (-1, 4)),)
    engine, x = start(served, Limits(batch=8)), torch.randn(10, 3, 32, 32)
    with torch.inference_mode():
        expected = alone(folder, "small.safetensors")(x)
    for n in (1, 3, 4, 10):
        torch.testing.assert_close(engine.infer_sync(x[:n]).outputs["output"], expected[:n], rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"devices: got \['cuda:0'\], expected one cpu device, as the program was made"
    ):
        Engine(served, devices=["cuda:0"])


def test_damaged_archives(tmp_path: Path, programs: dict) -> None:
    file = tmp_path / "net.pt2"
    torch.export.save(programs["any"], file)
    (tmp_path / "net.pt2.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"net\.pt2\.json: got damaged JSON .*, expected an object"):
        Served.load(file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"net\.pt2: got a damaged file .*, expected a \.pt2 archive"):
        Served.load(file)


@pytest.mark.slow
def test_packages(start, folder: Path, tmp_path: Path, programs: dict) -> None:
    """A package checks no shapes, so one that does not state its signature is refused."""
    file = tmp_path / "net.pt2"
    torch._inductor.aoti_compile_and_package(programs["any"], package_path=str(file))
    with pytest.raises(ValueError, match=re.escape(f"net.pt2: got a package without {SIGNATURE_KEY!r}")):
        Served.load(file)
    signature = {
        "inputs": [{"name": "input", "dtype": "float32", "shape": [-1, 3, 32, 32]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [-1, 4]}],
    }
    beside = tmp_path / "net.pt2.json"
    beside.write_text(json.dumps({SIGNATURE_KEY: {"inputs": [{}]}}))
    with pytest.raises(ValueError, match=r"got a damaged 'hscc\.signature'"):
        Served.load(file)
    beside.write_text(json.dumps({SIGNATURE_KEY: signature, "hscc.images": SPEC.to_json()}))
    served = Served.load(file)
    assert (served.kind, served.labels) == ("package", SPEC.classes)
    assert served.outputs == (TensorSpec("logits", "FP32", (-1, 4)),)
    engine, x = start(served), torch.randn(20, 3, 32, 32)
    with torch.inference_mode():
        expected = alone(folder, "small.safetensors")(x)
    torch.testing.assert_close(engine.infer_sync(x).outputs["logits"], expected, rtol=1e-4, atol=1e-5)
