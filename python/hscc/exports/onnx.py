"""ONNX files, of models that consist of PyTorch's own modules; run by ONNX Runtime."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .program import traced
from .sample import AXES, Sample, output_names

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_DTYPES = (torch.float32, torch.float64, torch.float16)


def require() -> None:
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ImportError(f"format 'onnx' needs {', '.join(missing)}: pip install 'hscc[onnx]'")


def write(model: nn.Module, sample: Sample, path: Path, metadata: Mapping[str, str]) -> None:
    """Input "x", output "y" ("y0", "y1", ... of several); metadata are the file's ``metadata_props``.

    Raises ValueError for a dtype that ONNX Runtime does not take, and where an operator has no equivalent.
    """
    require()
    if sample.x.dtype not in _DTYPES:
        raise ValueError(f"model: got {sample.x.dtype}, expected float32, float64 or float16 for format 'onnx'")
    program = _program(model, sample)
    open_sizes = dict(zip((AXES[name] for name in sample.dynamic), sample.dynamic, strict=True))
    dims = program.model.graph.inputs[0].shape
    program.rename_axes({dims[axis]: name for axis, name in open_sizes.items()})
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)


def _program(model: nn.Module, sample: Sample) -> torch.onnx.ONNXProgram:
    graph = traced(model, sample)
    names = {"input_names": ["x"], "output_names": output_names(len(graph.graph_signature.user_outputs))}
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)  # else it tells of each torchvision operator that is not there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own, of its parts that will go
            return torch.onnx.export(graph, dynamo=True, verbose=False, **names)
    except Exception as error:
        told = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"model: got one that ONNX cannot express ({told}), expected standard operators") from error
    finally:
        registry.setLevel(level)


def run(path: Path, inputs: list[Tensor]) -> list[list[Tensor]]:
    """Outputs of the file on each input, by ONNX Runtime on the CPU."""
    import onnxruntime

    options, quiet = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    options.log_severity_level = quiet.log_severity_level = 4  # what fails is told by the exception
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [[*map(torch.from_numpy, session.run(None, {"x": x.numpy(force=True)}, quiet))] for x in inputs]
