"""An ONNX file as a module that runs it, by ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


class Port(NamedTuple):
    """An input or output; -1 in ``shape`` is any size."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class OnnxSession(nn.Module):
    """An ONNX file with one input (N, C, H, W): called with a tensor it gives one, or several by name.

    On as many threads as PyTorch has when it is opened. It can be called by several threads, and pickled and copied: it
    is then opened anew.

    Args:
        path: the file; what it holds is data, no code runs but ONNX Runtime's.

    Raises:
        FileNotFoundError: no such file. ImportError: no onnxruntime. ValueError: no ONNX file, a damaged one, or one
            with several inputs or of types that PyTorch has not.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"onnx: got {str(path)!r}, expected a file")
        if importlib.util.find_spec("onnxruntime") is None:
            raise ImportError("ONNX files are run by onnxruntime: pip install 'hscc[onnx]'")
        self._session = _opened(self.path)
        self.inputs = self._ports(self._session.get_inputs())
        self.outputs = self._ports(self._session.get_outputs())
        self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        if len(self.inputs) != 1 or len(self.inputs[0].shape) != 4:
            got = ", ".join(f"{one.name} {one.shape}" for one in self.inputs)
            raise ValueError(f"{path}: got inputs {got}, expected one (n, C, H, W)")
        self.eval()

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        found = self.by_name(x)
        return found if len(found) > 1 else next(iter(found.values()))

    def by_name(self, x: Tensor) -> dict[str, Tensor]:
        """All outputs, on the device of ``x``."""
        (given,) = self.inputs
        if x.dtype != given.dtype:
            raise TypeError(f"{given.name}: got {x.dtype}, expected {given.dtype}")
        found = self._session.run(None, {given.name: x.detach().contiguous().numpy(force=True)})
        return {port.name: torch.from_numpy(one).to(x.device) for port, one in zip(self.outputs, found, strict=True)}

    def extra_repr(self) -> str:
        return str(self.path)

    def __reduce__(self) -> tuple:
        return type(self), (self.path,)

    def __deepcopy__(self, memo: dict) -> OnnxSession:
        return type(self)(self.path)

    def _ports(self, several: list) -> tuple[Port, ...]:
        if odd := [one.type for one in several if one.type not in _DTYPES]:
            raise ValueError(f"{self.path}: got a {odd[0]}, expected tensors of {[*_DTYPES]}")
        sizes = ((one, (n if isinstance(n, int) else -1 for n in one.shape)) for one in several)
        return tuple(Port(one.name, _DTYPES[one.type], tuple(shape)) for one, shape in sizes)


def _opened(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 4  # what fails is told by the exception
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a class of its own for each kind of damage
        told = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: got a file that ONNX Runtime does not open ({told}), expected ONNX") from error
