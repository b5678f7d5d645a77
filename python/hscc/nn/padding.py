"""Padding of convolutions: what the kernel does itself, what is done before it, and "same" as TensorFlow has it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hscc_kernels import Geometry

SAME = "same"  # the padding mode of zeros such that an output has ceil(input / stride) rows and columns


class SameConv2d(nn.Conv2d):
    """``nn.Conv2d`` whose padding depends on the size of its input, as of networks that come from TensorFlow.

    So that ceil(input / stride) outputs come of it; where that is odd, the further zero is below and to the right.
    Source: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
    """

    def __init__(self, *args, padding_mode: str = SAME, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.padding_mode = padding_mode

    def forward(self, input: Tensor) -> Tensor:
        geometry = Geometry(self.kernel_size, self.stride, (0, 0), self.dilation)
        x = padded(input, (0, 0, 0, 0), self.padding_mode, geometry)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def split_padding(conv: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """(padding inside the kernel, padding before it as for ``F.pad``): the kernel knows symmetric zeros only.

    What is before it in the mode "same" depends on the input (:func:`padded`); zeros here.
    """
    if isinstance(conv.padding, str):
        spans = zip(conv.dilation, conv.kernel_size, strict=True)
        total = [d * (k - 1) if conv.padding == "same" else 0 for d, k in spans]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in conv.padding]
    if conv.padding_mode == "zeros" and all(a == b for a, b in sides):
        return (sides[0][0], sides[1][0]), (0, 0, 0, 0)
    return (0, 0), (*sides[1], *sides[0])


def stays_open(*sides: int) -> bool:
    """Whether one of them is of a graph of any size that is being exported, of which PyTorch can prove little."""
    return torch.compiler.is_exporting() and any(isinstance(side, torch.SymInt) for side in sides)


def padded(x: Tensor, pad: Sequence[int], mode: str, geometry: Geometry) -> Tensor:
    """(..., H, W) as it goes to the kernel."""
    left, right, top, bottom = around(pad, mode, geometry, x.shape[-2], x.shape[-1])
    if not (mode == SAME and stays_open(*x.shape[-2:])) and not any((left, right, top, bottom)):
        return x
    return F.pad(x, (left, right, top, bottom), "constant" if mode in ("zeros", SAME) else mode)


def around(pad: Sequence[int], mode: str, geometry: Geometry, height: int, width: int) -> Sequence[int]:
    """(left, right, top, bottom) of an input of that size."""
    if mode != SAME:
        return pad
    (kh, kw), (sh, sw), _, (dh, dw) = geometry
    rows = max((-(-height // sh) - 1) * sh + dh * (kh - 1) + 1 - height, 0)
    columns = max((-(-width // sw) - 1) * sw + dw * (kw - 1) + 1 - width, 0)
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
