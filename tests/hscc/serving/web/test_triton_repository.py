"""The repository for NVIDIA Triton: its configuration by Triton's schema, its model in a stand-in of the backend."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hscc.io.loading import load_module
from hscc.serving.models import Served
from hscc.serving.web import triton_repository


@pytest.fixture(scope="module")
def repository(folder: Path, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("triton")
    return triton_repository.write(root, "small", folder / "w.safetensors", f"{folder / 'model.py'}:build", 8)


def test_the_configuration_by_tritons_schema(repository: Path) -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    found = text_format.Parse((repository / "config.pbtxt").read_text(), schema.ModelConfig())
    assert (found.name, found.backend, found.max_batch_size) == ("small", "python", 8)
    (given,), (output,) = found.input, found.output
    assert (given.name, schema.DataType.Name(given.data_type), [*given.dims]) == ("input", "TYPE_FP32", [1, 16, 16])
    assert (output.name, [*output.dims]) == ("output", [3])
    assert {key: one.string_value for key, one in found.parameters.items()} == {
        "file": "w.safetensors",
        "function": "build",
    }
    assert sorted(one.name for one in (repository / "1").iterdir() if one.is_file()) == [
        "model.py",
        "network.py",
        "w.safetensors",
    ]


def test_the_model_answers_as_ours(repository: Path, model: Served, monkeypatch) -> None:
    """The backend's own module exists in Triton alone; this stand-in has what of it is used."""
    backend = ModuleType("triton_python_backend_utils")
    backend.get_input_tensor_by_name = lambda request, name: SimpleNamespace(to_dlpack=lambda: request[name])
    backend.Tensor = lambda name, array: (name, torch.from_numpy(array))
    backend.InferenceResponse = lambda tensors, error=None: (dict(tensors), error)
    backend.TritonError = str
    backend.Logger = SimpleNamespace(log_error=lambda text: None)
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    served = load_module(repository / "1" / "model.py").TritonPythonModel()
    parameters = {key: {"string_value": text} for key, text in (("file", "w.safetensors"), ("function", "build"))}
    config = json.dumps({"name": "small", "parameters": parameters})
    served.initialize({
        "model_config": config, "model_repository": str(repository), "model_version": "1",
        "model_instance_kind": "CPU", "model_instance_device_id": "0",
    })  # fmt: skip
    xs = [torch.randn(n, 1, 16, 16) for n in (1, 3)]
    for x, (outputs, error) in zip(xs, served.execute([{"input": x} for x in xs]), strict=True):
        assert error is None
        torch.testing.assert_close(outputs["output"], model.module(x), rtol=1e-4, atol=1e-5)
    (good, none), (nothing, error) = served.execute([{"input": xs[0]}, {"input": torch.zeros(1, 2, 16, 16)}])
    assert none is None
    torch.testing.assert_close(good["output"], model.module(xs[0]), rtol=1e-4, atol=1e-5)
    assert (nothing, error) == ({}, "the model failed on this request")


def test_nothing_is_overwritten(repository: Path, folder: Path) -> None:
    with pytest.raises(FileExistsError, match="which exists"):
        triton_repository.write(repository.parent, "small", folder / "w.safetensors", f"{folder / 'model.py'}:build")
