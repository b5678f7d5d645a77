"""The input that a model is exported with, and which of its sizes stay open."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

AXES = {"batch": 0, "height": 2, "width": 3}


@dataclass(frozen=True)
class Sample:
    """``x`` (N, C, H, W), contiguous, dtype and device of the model; ``dynamic``: names from :data:`AXES`."""

    x: Tensor
    dynamic: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, example: Tensor | Sequence[int], dynamic: Sequence[str]) -> Sample:
        """``example`` is an input, or its shape: then standard normal numbers of a seed of their own.

        Raises TypeError or ValueError for what is neither, and for unknown axes.
        """
        dynamic = (dynamic,) if isinstance(dynamic, str) else tuple(dynamic)
        if unknown := [name for name in dynamic if name not in AXES]:
            raise ValueError(f"dynamic: got {unknown[0]!r}, expected some of {list(AXES)}")
        if not isinstance(example, Tensor):
            if not all(isinstance(size, int) and size > 0 for size in example):
                raise ValueError(f"example: got {example!r}, expected a tensor or its shape, such as (1, 3, 224, 224)")
            example = torch.randn(*example, generator=torch.Generator().manual_seed(0))
        if example.ndim != 4 or not example.numel():
            raise ValueError(f"example: got shape {tuple(example.shape)}, expected (N, C, H, W)")
        own = next((p for p in model.parameters() if p.is_floating_point()), example)
        return cls(example.detach().to(own.device, own.dtype, memory_format=torch.contiguous_format), dynamic)

    @property
    def traced(self) -> Tensor:
        """``x``, at least two images where their number stays open: ``torch.export`` takes one for a constant."""
        return torch.cat([self.x, self.x]) if "batch" in self.dynamic and len(self.x) == 1 else self.x

    @property
    def open(self) -> dict[int, object]:
        """The open axes of ``x``, as ``torch.export`` wants them."""
        return {AXES[name]: torch.export.Dim.DYNAMIC for name in self.dynamic}

    @property
    def checks(self) -> list[Tensor]:
        """Inputs that the exported file has to be right on: ``x``, and one of other sizes where some stay open."""
        if not self.dynamic:
            return [self.x]
        times = [2 if name in self.dynamic else 1 for name in ("height", "width")]
        other = self.x.repeat(1, 1, *times)  # twice the size: networks ask for sizes that 2, 4 or 8 divide
        return [self.x, torch.cat([other, other.flip(3), other]) if "batch" in self.dynamic else other]

    def signature(self, outputs: Sequence[Sequence[Tensor]]) -> str:
        """Names, dtypes and shapes of input and outputs as JSON, -1 where a size stays open; servers read it.

        ``outputs``: the model's on each of :attr:`checks`, which differ where sizes are open.
        """
        names = output_names(len(outputs[0]))
        return json.dumps(
            {
                "inputs": [_spec("x", self.checks)],
                "outputs": [_spec(name, each) for name, each in zip(names, zip(*outputs, strict=True), strict=True)],
            }
        )


def output_names(count: int) -> list[str]:
    return ["y"] if count == 1 else [f"y{i}" for i in range(count)]


def _spec(name: str, tensors: Sequence[Tensor]) -> dict[str, object]:
    shape = [sizes[0] if len({*sizes}) == 1 else -1 for sizes in zip(*(t.shape for t in tensors), strict=True)]
    return {"name": name, "dtype": str(tensors[0].dtype).removeprefix("torch."), "shape": shape}
