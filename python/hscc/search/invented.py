"""Layers that nobody has, of all the shapes and structures that a machine's speed is measured with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors, project

from ..nn.conv2d import HSCConv2d
from .stopwatch import images
from .work import Work


class _Shape(NamedTuple):
    """Of an invented layer: channels in and out, square kernel, stride, height and width of the output."""

    channels: int
    outputs: int
    kernel: int
    stride: int
    side: int

    @property
    def geometry(self) -> Geometry:
        return Geometry((self.kernel,) * 2, (self.stride,) * 2, (self.kernel // 2,) * 2)


class _Kind(NamedTuple):
    """Of its plan: how many regions, clusters in each, and times fewer FLOPs."""

    regions: int
    clusters: int
    fewer: float


SHAPES = (
    *((3, 64, 7, 2, 56), (3, 32, 3, 1, 96), (16, 32, 3, 1, 56), (32, 64, 3, 1, 56), (64, 64, 3, 1, 56)),
    *((64, 192, 5, 1, 27), (96, 96, 3, 1, 28), (128, 256, 3, 2, 14), (192, 384, 3, 1, 13), (384, 256, 3, 1, 13)),
    *((64, 64, 3, 1, 112), (128, 128, 3, 1, 112)),  # maps that no cache of a core's own holds
    *((512, 512, 3, 1, 7), (64, 256, 1, 1, 28), (256, 64, 1, 1, 28), (1024, 256, 1, 1, 14), (256, 512, 1, 2, 14)),
)
KINDS = ((1, 1, 3.0), (1, 1, 30.0), (4, 1, 5.0), (4, 2, 16.0), (8, 2, 8.0), (16, 1, 4.0))


def layers(like: Tensor, batch: int) -> tuple[list[int], list[Work], list[Callable[[], object]]]:
    """Of each invented layer the number of its shape, its work, and a call."""
    groups, works, calls = [], [], []
    for group, shape in enumerate(map(_Shape._make, SHAPES)):
        x = images((shape.channels, *[shape.stride * shape.side] * 2), batch, like)
        for kind in map(_Kind._make, KINDS):
            plan = _plan(shape, kind).to(like.device, like.dtype)
            bias = torch.zeros(kind.regions, shape.outputs).to(like)
            groups.append(group)
            works.append(Work.of(plan))
            layer = HSCConv2d(plan, bias).requires_grad_(False)
            calls.append(functools.partial(layer.forward, x))  # as networks call it: its Python is cold there, too
        matrix = torch.randn(shape.channels, shape.outputs).to(like)
        groups.append(group)
        works.append(Work.of_pointwise(x[0, 0].numel(), shape.channels, shape.outputs))
        calls.append(lambda x=x, matrix=matrix: project(x, matrix))
    return groups, works, calls


def _plan(shape: _Shape, kind: _Kind) -> PackedPlan:
    """Random factors; equal regions are level sets of a smooth field, as clustering gives them."""
    (channels, outputs, kernel, _, side), (regions, clusters, fewer) = shape, kind
    across = torch.linspace(0, 1, side)
    field = torch.sin(5 * across[:, None] + 1) * torch.cos(4 * across[None]) + 1e-3 * across
    labels = (field.flatten().argsort().argsort() * regions // side**2).view(side, side)
    patch = channels * kernel * kernel
    rank = max(round(patch * outputs / fewer / (clusters * patch + outputs)), 1)
    parts = []
    for region in range(regions):
        split = [torch.arange(k, outputs, clusters) for k in range(clusters)]
        factors = (ClusterFactors(c, k * rank, torch.randn(len(c), rank)) for k, c in enumerate(split))
        rows = torch.arange(clusters * rank) + region * clusters * rank
        parts.append(RegionFactors(rows, tuple(factors)))
    return PackedPlan.pack(torch.randn(regions * clusters * rank, patch), parts, labels, shape.geometry)
