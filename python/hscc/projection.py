"""Projection: fewer input channels for the convolution that follows; SqueezedConv2d: the two of them."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from hscc_kernels import PackedPlan

from .layer import HSCConv2d


class Projection(nn.Module):
    """Input channels (N, C, H, W) or (C, H, W) to c of them by ``weight`` (C, c): one matrix product."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return project(x, self.weight)

    def extra_repr(self) -> str:
        return "{}, {}".format(*self.weight.shape)


class SqueezedConv2d(nn.Sequential):
    """What a squeezed convolution becomes, two layers: ``squeeze`` (:class:`Projection`), then ``conv`` (HSCConv2d)."""

    @classmethod
    def of(cls, squeeze: Projection, conv: HSCConv2d) -> SqueezedConv2d:
        return cls(OrderedDict(squeeze=squeeze, conv=conv))

    @property
    def in_channels(self) -> int:
        return self.squeeze.weight.shape[0]

    @property
    def out_channels(self) -> int:
        return self.conv.out_channels

    @property
    def plan(self) -> PackedPlan:
        """Of ``conv``."""
        return self.conv.plan


def project(x: Tensor, matrix: Tensor) -> Tensor:
    """Input channels (N, C, H, W) or (C, H, W) to c of them by (C, c), laid out as x; a 1 x 1 convolution is slower."""
    if x.ndim == 3:
        return project(x[None], matrix)[0]
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.matmul(x.permute(0, 2, 3, 1), matrix).permute(0, 3, 1, 2)
    matrices = matrix.T.expand(x.shape[0], -1, -1)  # for bmm, as matmul would copy them
    return torch.bmm(matrices, x.flatten(2)).unflatten(2, x.shape[2:])
