"""Projection: fewer input channels for the convolution that follows; SqueezedConv2d: the two of them."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, fx, nn

from hscc_kernels import PackedPlan, project

from .conv2d import HSCConv2d, called


class Projection(nn.Module):
    """Input channels (N, C, H, W) or (C, H, W) to c of them by ``weight`` (C, c), by ``hscc_kernels.project``."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            return called(self, x)
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
