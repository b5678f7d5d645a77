"""What goes into a model and what comes out, in the Open Inference Protocol's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import BadRequest

DATATYPES = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
DTYPES = {name: dtype for dtype, name in DATATYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor; ``dtype`` is the protocol's, e.g. ``"FP32"``, and -1 in ``shape`` is any size."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def check(self, x: Tensor) -> None:
        """Raises BadRequest for a tensor of another dtype or shape, and for NaN or infinite values."""
        if not isinstance(x, Tensor):
            raise BadRequest(f"{self.name}: got {type(x).__name__}, expected a tensor")
        wanted = f"expected {self.dtype} {_shape(self.shape)}"
        fits = x.ndim == len(self.shape) and all(w in (-1, n) for w, n in zip(self.shape, x.shape, strict=True))
        if not fits or x.dtype != self.torch_dtype:
            got = DATATYPES.get(x.dtype, str(x.dtype).removeprefix("torch."))
            raise BadRequest(f"{self.name}: got {got} {_shape(tuple(x.shape))}, {wanted}")
        if x.layout != torch.strided or x.device.type != "cpu":
            raise BadRequest(f"{self.name}: got a {x.layout} tensor on {x.device}, {wanted} on the CPU")
        if x.is_floating_point() and not finite(x):
            raise BadRequest(f"{self.name}: got NaN or infinite values, expected finite ones")


@dataclass(frozen=True)
class Answer:
    """On the CPU, one row an image, in the request's order; read it, as the rows of a batch share memory.

    ``guard`` are the guard's scores, float32 (n,), higher is more foreign; ``flagged`` says which are above its
    threshold, bool (n,). Both are None without a guard.
    """

    outputs: dict[str, Tensor]
    guard: Tensor | None = None
    flagged: Tensor | None = None


def finite(x: Tensor) -> bool:
    """By NumPy where it can: the caller may be an event loop, which should not wake PyTorch's threads."""
    if x.dtype in (torch.float32, torch.float64):
        return bool(np.isfinite(x.detach().numpy()).all())
    return bool(x.isfinite().all())


def named(outputs: object) -> dict[str, Tensor]:
    """A model's outputs by name: ``output`` for one tensor, ``output_0`` ... for several, or the keys it gives.

    Raises:
        TypeError: neither a tensor nor a tuple, list or mapping of tensors.
    """
    if isinstance(outputs, Tensor):
        return {"output": outputs}
    if isinstance(outputs, (tuple, list)):
        outputs = {"output" if len(outputs) == 1 else f"output_{i}": one for i, one in enumerate(outputs)}
    if not isinstance(outputs, Mapping) or not outputs or not all(isinstance(o, Tensor) for o in outputs.values()):
        raise TypeError(f"model: got outputs that are {type(outputs).__name__}, expected a tensor or several of them")
    return {str(name): one for name, one in outputs.items()}


def _shape(sizes: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, sizes))})"
