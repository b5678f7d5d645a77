"""An ONNX file as a model of PyTorch, by onnx2torch."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from torch import Tensor, fx, nn

from ..nn.surgery import swap_

if TYPE_CHECKING:
    import onnx

PACKAGES = ("onnx", "onnx2torch")
OPSET = 17  # onnx2torch knows few operators of later ones


def load_onnx(path: str | Path) -> nn.Module:
    """The network of an ONNX file, in evaluation mode, with plain convolutions that ``compress_`` takes.

    Raises:
        FileNotFoundError: no such file.
        ImportError: onnx or onnx2torch is missing.
        ValueError: no ONNX file, a damaged one, or one with operators (or an opset) that onnx2torch does not know.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        how = "pip install 'hscc[onnx]' && pip install --no-deps onnx2torch"  # its torchvision would replace torch
        raise ImportError(f"ONNX files need {' and '.join(missing)}: {how}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"onnx: got {str(path)!r}, expected a file")
    import onnx

    try:
        graph = onnx.load(str(path))
        onnx.checker.check_model(graph)
    except Exception as error:
        raise ValueError(f"{path}: got no valid ONNX file ({_first(error)}), expected one") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that it reads without a copy
            return _with_fixed_shapes(_converter().convert(_lowered(graph))).eval()
    except Exception as error:
        told = f"opset {_opset(graph)}, which does not convert ({_first(error)})"
        raise ValueError(f"{path}: got {told}, expected operators that onnx2torch knows, those of opset 17") from error


def _lowered(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with operators of at most :data:`OPSET`."""
    from onnx import numpy_helper, version_converter

    if _opset(graph) <= OPSET:
        return graph
    shapes = {one.name: numpy_helper.to_array(one) for one in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "Reshape" and 0 not in shapes.get(node.input[1], [0]):  # then it means nothing
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return version_converter.convert_version(graph, OPSET)


def _opset(graph: onnx.ModelProto) -> int:
    return max((entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")), default=0)


class Reshape(nn.Module):
    """To a fixed shape, in which 0 keeps a size and -1 takes the rest: onnx2torch's own reads a tensor in each call."""

    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape([size or x.shape[axis] for axis, size in enumerate(self.shape)])


def _with_fixed_shapes(model: fx.GraphModule) -> fx.GraphModule:
    """With :class:`Reshape` where the shape is a constant, so that ``torch.export`` takes the model."""
    for node in model.graph.nodes:
        if node.op != "call_module" or type(model.get_submodule(node.target)).__name__ != "OnnxReshape":
            continue
        shape = node.args[1]
        if shape.op == "get_attr":
            swap_(model, (node.target,), Reshape(attrgetter(shape.target)(model).tolist()))
            node.args = node.args[:1]
    model.recompile()
    return model


def _converter() -> ModuleType:
    """onnx2torch, which wants torchvision for two operators of detectors; a build for another torch does not import."""
    stand_ins: dict[str, ModuleType] = {}
    try:
        importlib.import_module("torchvision")
    except Exception:
        stand_ins = {name: ModuleType(name) for name in ("torchvision", "torchvision.ops")}
        stand_ins["torchvision.ops"].roi_align = None
        sys.modules.update(stand_ins)
    try:
        return importlib.import_module("onnx2torch")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
