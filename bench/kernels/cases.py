"""Named layers, and plans for them: any number of regions and clusters at a wanted FLOP reduction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors


class Layer(NamedTuple):
    """A convolution of a known network at its usual input size."""

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    size: int  # input height and width

    @property
    def geometry(self) -> Geometry:
        pad = 2 if self.kernel == 5 else self.kernel // 2
        return Geometry((self.kernel,) * 2, (self.stride,) * 2, (pad, pad))

    @property
    def patch(self) -> int:
        return self.in_channels * self.kernel**2

    @property
    def out_side(self) -> int:
        return self.geometry.out_size(self.size, self.size)[0]

    def flops(self, batch: int) -> int:
        return 2 * batch * self.out_side**2 * self.patch * self.out_channels


LAYERS = {
    layer.name: layer
    for layer in (
        Layer("alexnet2", 64, 192, 5, 1, 27),
        Layer("alexnet3", 192, 384, 3, 1, 13),
        Layer("alexnet4", 384, 256, 3, 1, 13),
        Layer("alexnet5", 256, 256, 3, 1, 13),
        Layer("vgg16_1_2", 64, 64, 3, 1, 224),
        Layer("vgg16_2_2", 128, 128, 3, 1, 112),
        Layer("vgg16_3_2", 256, 256, 3, 1, 56),
        Layer("vgg16_4_2", 512, 512, 3, 1, 28),
        Layer("vgg16_5_2", 512, 512, 3, 1, 14),
        Layer("resnet18_2", 64, 64, 3, 1, 56),
        Layer("resnet18_3", 128, 128, 3, 1, 28),
        Layer("resnet18_4", 256, 256, 3, 1, 14),
        Layer("resnet18_5", 512, 512, 3, 1, 7),
        Layer("resnet18_3_down", 64, 128, 3, 2, 56),
        Layer("resnet18_4_down", 128, 256, 3, 2, 28),
        Layer("resnet50_3_down", 128, 128, 3, 2, 56),
        Layer("resnet50_2_reduce", 256, 64, 1, 1, 56),
        Layer("resnet50_2_expand", 64, 256, 1, 1, 56),
        Layer("resnet50_4_reduce", 1024, 256, 1, 1, 14),
        Layer("resnet50_4_expand", 256, 1024, 1, 1, 14),
        Layer("resnet50_4_skip", 512, 1024, 1, 2, 28),
        Layer("unet_1", 64, 64, 3, 1, 128),
        Layer("unet_2", 128, 128, 3, 1, 64),
        Layer("unet_up", 256, 128, 3, 1, 64),
    )
}
REGIONS = ("1", "4", "8", "unequal")
CLUSTERS = (1, 2, 4)
REDUCTIONS = (3.0, 5.3, 10.0, 20.0)
SHORT = (("1", 5.3), *(("4", reduction) for reduction in REDUCTIONS), ("unequal", 5.3))  # of the grid, for every layer
_UNEQUAL_AREA = (0.5, 0.25, 0.15, 0.1)
_UNEQUAL_RANK = (0.25, 1.0, 2.0, 2.5)  # relative: large quiet regions, small busy ones


class Case(NamedTuple):
    """A layer with regions ("1", "4", "8" or "unequal"), clusters and a FLOP reduction."""

    layer: Layer
    regions: str
    clusters: int
    reduction: float

    @property
    def name(self) -> str:
        return f"{self.layer.name}/R{self.regions}/K{self.clusters}/{self.reduction:g}x"


def select(
    every: bool = False,
    names: list[str] | None = None,
    kernel: int | None = None,
    reductions: Sequence[float] = REDUCTIONS,
) -> list[Case]:
    """The short default list, all cases, or those whose name starts with one of ``names``."""
    grid = [Case(layer, r, k, f) for layer in LAYERS.values() for r in REGIONS for k in CLUSTERS for f in reductions]
    if names:
        cases = [case for case in grid if case.name.startswith(tuple(names))]
    elif every:
        cases = grid
    else:
        cases = [case for case in grid if case.clusters == 1 and (case.regions, case.reduction) in SHORT]
    return [case for case in cases if kernel is None or case.layer.kernel == kernel]


def region_map(side: int, regions: str) -> Tensor:
    """Labels (side, side): level sets of a smooth field, as clustering of activations gives; areas equal or not."""
    areas = _UNEQUAL_AREA if regions == "unequal" else (1 / int(regions),) * int(regions)
    across = torch.linspace(0, 1, side, dtype=torch.float64)
    y, x = across[:, None], across[None]
    field = torch.sin(5 * x + 1) * torch.cos(4 * y) + 0.5 * torch.sin(9 * y + 3 * x) + 1e-3 * x + 1e-4 * y
    order = field.flatten().argsort().argsort().double() / side**2
    edges = torch.tensor(areas, dtype=torch.float64).cumsum(0)[:-1]
    return torch.bucketize(order, edges, right=True).view(side, side)


def make_plan(case: Case, seed: int = 0) -> PackedPlan:
    """Random factors, each region with its own rows; ranks spend the case's budget evenly over the clusters."""
    generator = torch.Generator().manual_seed(seed)
    layer = case.layer
    labels = region_map(layer.out_side, case.regions)
    areas = torch.bincount(labels.flatten()) / labels.numel()
    weights = _UNEQUAL_RANK if case.regions == "unequal" else (1.0,) * len(areas)
    mean = sum(w * a for w, a in zip(weights, areas.tolist(), strict=True))
    dense = layer.patch * layer.out_channels
    row_cost = layer.patch + layer.out_channels / case.clusters
    regions, start = [], 0
    for weight in weights:
        total = max(round(dense / case.reduction * weight / mean / row_cost), case.clusters)
        ranks = [total // case.clusters + (k < total % case.clusters) for k in range(case.clusters)]
        order = torch.arange(layer.out_channels)
        if case.clusters > 1:
            order = torch.randperm(layer.out_channels, generator=generator)
        parts, row = [], 0
        for channels, rank in zip(order.tensor_split(case.clusters), ranks, strict=True):
            u = torch.randn(len(channels), rank, generator=generator) / math.sqrt(rank)
            parts.append(ClusterFactors(channels.sort().values, row, u))
            row += rank
        regions.append(RegionFactors(torch.arange(start, start + row), tuple(parts)))
        start += row
    v = torch.randn(start, layer.patch, generator=generator) / math.sqrt(layer.patch)
    return PackedPlan.pack(v, regions, labels, layer.geometry)


def make_input(layer: Layer, batch: int, seed: int = 1) -> Tensor:
    """Activations after a ReLU, channels last."""
    x = torch.randn(batch, layer.in_channels, layer.size, layer.size, generator=torch.Generator().manual_seed(seed))
    return x.relu_().contiguous(memory_format=torch.channels_last)
