"""Exported files give the model's outputs, in the runtimes and in a fresh process; what is wrong is not kept."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hscc.exports import onnx as onnx_format
from hscc.exports.model import export
from torch import Tensor, nn

from hscc_kernels import _extension, testing
from tests.hscc.exports.layers import plain_net, regions_net

onnx = pytest.importorskip("onnx", reason="needs hscc[onnx]")
CPP = Path(__file__).parents[3] / "examples" / "cpp"
ANY = ("batch", "height", "width")
PLAIN, REGIONS = (1, 3, 9, 9), (1, 1, 10, 8)


def onnxruntime_outputs(path: Path, x: Tensor) -> Tensor:
    return onnx_format.run(path, [x])[0][0]


def openvino_outputs(path: Path, x: Tensor) -> Tensor:
    openvino = pytest.importorskip("openvino")
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    return torch.tensor(openvino.Core().compile_model(str(path), "CPU", hints)([x.numpy()])[0])


RUNTIMES = pytest.mark.parametrize("run", [onnxruntime_outputs, openvino_outputs], ids=["onnxruntime", "openvino"])


@RUNTIMES
@torch.no_grad()
def test_onnx_of_one_region_is_convolutions_of_any_size(tmp_path: Path, run) -> None:
    model, path = plain_net(), tmp_path / "m.onnx"
    done = export(model, path, example=PLAIN, dynamic=ANY, metadata={"hscc.images": "some text"})
    assert set(done.layers.values()) == {"convolutions"}
    assert "2 as convolutions; any batch, height, width" in str(done)
    graph = onnx.load(path)
    assert [node.op_type for node in graph.graph.node] == ["Conv", "Relu", *["Conv"] * 3, "Relu", "MaxPool", "Conv"]
    assert {entry.key: entry.value for entry in graph.metadata_props}["hscc.images"] == "some text"
    assert [dim.dim_param for dim in graph.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "",
        "height",
        "width",
    ]
    for shape in ((1, 3, 9, 9), (3, 3, 17, 12)):
        x = torch.randn(shape)
        torch.testing.assert_close(run(path, x), model(x), rtol=1e-4, atol=1e-5)


@RUNTIMES
@pytest.mark.parametrize(("name", "form"), [("regions", "gathers"), ("shared rows", "masks")])
@torch.no_grad()
def test_onnx_of_regions(tmp_path: Path, run, name: str, form: str) -> None:
    case = next(case for case in testing.CASES if case.name == name)
    model, path, size = regions_net(case), tmp_path / "m.onnx", case.shape[2:]
    assert export(model, path, example=(1, 1, *size)).layers == {"2": form}
    assert {node.domain for node in onnx.load(path).graph.node} == {""}  # the standard's operators
    for count in (1, 4):
        x = torch.randn(count, 1, *size)
        torch.testing.assert_close(run(path, x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dynamic", [(), ("batch",), ANY], ids=lambda names: "-".join(names) or "fixed")
@torch.no_grad()
def test_exported_program(tmp_path: Path, dynamic: tuple[str, ...]) -> None:
    model, path = plain_net(), tmp_path / "m.pt2"
    done = export(model, path, "export", example=PLAIN, dynamic=dynamic, metadata={"a": "b"})
    assert set(done.layers.values()) == {"kernel"}
    files = {"a": "", "hscc.signature": ""}
    program = torch.export.load(path, extra_files=files)
    assert files["a"] == "b"
    told = json.loads(files["hscc.signature"])
    n, side, result = (-1 if name in dynamic else own for name, own in (("batch", 1), ("height", 9), ("height", 2)))
    assert told["inputs"] == [{"name": "x", "dtype": "float32", "shape": [n, 3, side, side]}]
    assert told["outputs"] == [{"name": "y", "dtype": "float32", "shape": [n, 4, result, result]}]
    assert any("hscc.lowrank_conv2d" in str(node.target) for node in program.graph.nodes)
    x = torch.randn(3 if dynamic else 1, 3, *((15, 20) if "height" in dynamic else (9, 9)))
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_regions_of_any_size(tmp_path: Path) -> None:
    """Their maps are resized where the program runs, as the model does it."""
    model, path = regions_net(), tmp_path / "m.pt2"
    done = export(model, path, "export", example=REGIONS, dynamic=ANY)
    assert done.layers == {"2": "kernel"}
    program = torch.export.load(path).module()
    for scale in (1, 2, 3):
        x = torch.randn(2, 1, scale * REGIONS[2], scale * REGIONS[3])
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


FRESH = """
import sys, torch, hscc_kernels
from torch._inductor import aoti_load_package
model = aoti_load_package(sys.argv[1])
torch.save([model(x) for x in torch.load(sys.argv[2])], sys.argv[2])
print(model.loader.get_metadata()["hscc.images"], "hscc" in sys.modules)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> tuple[nn.Module, Path, tuple[int, ...]]:
    """A compiled model with regions; compiling takes long, so the tests of Python and of C++ share it."""
    torch.manual_seed(4)
    model, path = regions_net(), tmp_path_factory.mktemp("package") / "m.pt2"
    done = export(model, path, "pt2", example=REGIONS, metadata={"hscc.images": '{"size": [10, 8]}'})
    assert done.layers == {"2": "kernel"}
    assert done.bytes == path.stat().st_size
    return model, path, REGIONS


@pytest.mark.slow
@torch.no_grad()
def test_package_in_a_fresh_process(package, tmp_path: Path) -> None:
    model, path, shape = package
    inputs = [torch.randn(count, *shape[1:]) for count in (1, 5)]
    torch.save(inputs, tmp_path / "data.pt")
    command = [sys.executable, "-c", FRESH, str(path), str(tmp_path / "data.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=tmp_path)
    assert done.stdout.strip() == '{"size": [10, 8]} False'
    for got, x in zip(torch.load(tmp_path / "data.pt"), inputs, strict=True):
        torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_package_in_cpp(package, tmp_path: Path) -> None:
    """The example's CMake project, built and run on a package without Python."""
    if shutil.which("cmake") is None or _extension.WHY_NOT is not None:
        pytest.skip(f"needs cmake and the extension ({_extension.WHY_NOT})")
    model, path, shape = package
    build = tmp_path / "build"
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    configure = ["cmake", "-S", str(CPP), "-B", str(build), prefix]
    for command in (configure, ["cmake", "--build", str(build)]):
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    x = torch.randn(4, *shape[1:])
    x.numpy().tofile(tmp_path / "x.f32")
    library = sys.modules["hscc_kernels._C"].__file__
    command = [str(build / "run"), str(path), library, str(tmp_path / "x.f32"), str(tmp_path / "y.f32")]
    done = subprocess.run([*command, *map(str, x.shape)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert 'hscc.images: {"size": [10, 8]}' in done.stdout
    got = torch.from_numpy(np.fromfile(tmp_path / "y.f32", np.float32)).view(4, 3)
    torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)
    for shape, told in (((5, 1, 10, 8), "expected exactly"), ((4, 1, 8, 10), "unmatched dim value")):
        wrong = subprocess.run([*command, *map(str, shape)], capture_output=True, text=True, timeout=60)
        assert wrong.returncode == 1
        assert told in wrong.stderr


def test_cpp_knows_the_ops() -> None:
    """What main.cpp says of their arguments is what they have."""
    text = re.sub(r'"\s+"', "", (CPP / "main.cpp").read_text())
    for name in ("lowrank_conv2d_cpu", "project_cpu"):
        assert str(getattr(torch.ops.hscc, name).default._schema).removeprefix("hscc::") in text


class Several(nn.Module):
    """Gives a dict; behaves otherwise under an exporter when it lies."""

    def __init__(self, lies: bool) -> None:
        super().__init__()
        self.net, self.lies = plain_net(), lies

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.net(x)
        return {"a": y, "b": y + 1 if self.lies and torch.compiler.is_exporting() else y}


def test_outputs_in_a_container(tmp_path: Path) -> None:
    export(Several(False).eval(), tmp_path / "m.onnx", example=PLAIN)
    assert [output.name for output in onnx.load(tmp_path / "m.onnx").graph.output] == ["y0", "y1"]


@pytest.mark.parametrize("format", ["onnx", "export"])
def test_a_wrong_file_is_not_kept(tmp_path: Path, format: str) -> None:
    path = tmp_path / "m.pt2"
    path.write_text("the one before")
    with pytest.raises(ValueError, match=r"got a file whose outputs are off by .*, expected at most 0\.0001"):
        export(Several(True).eval(), path, format, example=PLAIN)
    assert path.read_text() == "the one before"
    assert [*tmp_path.iterdir()] == [path]


def test_a_file_for_one_size_alone_is_not_kept_as_one_for_any(tmp_path: Path) -> None:
    """The exporter writes a pool to 3 x 3 as one of a fixed window: right on the example, wrong elsewhere."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(3)).eval()
    with pytest.raises(ValueError, match="model: got"):
        export(model, tmp_path / "m.onnx", example=PLAIN, dynamic=ANY)
    assert not [*tmp_path.iterdir()]
    export(model, tmp_path / "m.onnx", example=PLAIN)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"format": "tflite"}, "format: got 'tflite', expected one of"),
        ({"dynamic": ("depth",)}, "dynamic: got 'depth', expected some of"),
        ({"example": None}, "example: got None, expected an input or its shape"),
        ({"example": (3, 9, 9)}, r"example: got shape \(3, 9, 9\), expected \(N, C, H, W\)"),
        ({"example": (1, 3, 0, 9)}, r"example: got \(1, 3, 0, 9\), expected a tensor or its shape"),
        ({"example": (1, 2, 10, 8)}, r"example: got \(1, 2, 10, 8\), which the model does not take"),
        ({"dynamic": ANY}, r"layers with regions \(2\), expected \('batch',\), the format 'export', or"),
        ({"format": "export"}, r"path: got .*m.onnx', expected one that ends in .pt2 for format 'export'"),
        ({"path": "no/such/m.onnx"}, "expected a file in an existing folder"),
        ({"train": True}, "model: got one in training mode, expected model.eval"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict, match: str) -> None:
    options = {"path": "m.onnx", "example": REGIONS, "train": False, **options}
    model = regions_net().train(options.pop("train"))
    with pytest.raises((ValueError, FileNotFoundError), match=match) as caught:
        export(model, tmp_path / options.pop("path"), **options)
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_format, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ImportError, match=r"needs no_such_package: pip install 'hscc\[onnx\]'"):
        export(regions_net(), tmp_path / "m.onnx", example=REGIONS)


def test_command(tmp_path: Path) -> None:
    from hscc import HSCConv2d, save
    from hscc.app.commands import export as command
    from hscc.data.spec import METADATA_KEY, ImageSpec
    from typer.testing import CliRunner

    source = (
        "import torch\nfrom torch import nn\n\ndef build():\n    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())\n"
    )
    (tmp_path / "net.py").write_text(source)
    spec = ImageSpec((10, 8), 1, (0.5,), (0.2,), ())
    model = nn.Sequential(HSCConv2d.dense(nn.Conv2d(1, 4, 3), (8, 6)), nn.ReLU())
    save(model, tmp_path / "w.safetensors", metadata={METADATA_KEY: spec.to_json()})
    given = ["--model", f"{tmp_path}/net.py:build", "--weights", f"{tmp_path}/w.safetensors"]
    out, told = tmp_path / "m.onnx", tmp_path / "told.json"
    result = CliRunner().invoke(command.app, ["export", *given, "--out", str(out), "--json", str(told)])
    assert result.exit_code == 0, result.output
    assert json.loads(told.read_text())["layers"] == {"0": "convolutions"}
    graph = onnx.load(out)
    assert [node.op_type for node in graph.graph.node] == ["Conv", "Relu"]  # fused, and split again
    assert json.loads({e.key: e.value for e in graph.metadata_props}[METADATA_KEY])["size"] == [10, 8]
    x = torch.randn(2, 1, 10, 8)
    torch.testing.assert_close(onnxruntime_outputs(out, x), model.eval()(x).detach(), rtol=1e-4, atol=1e-5)
