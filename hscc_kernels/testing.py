"""Cases, plans and the tolerance that tests and benches share; nothing in the package imports this file."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import reference, reference_int8
from .int8_plan import Int8Plan
from .layout import Geometry
from .plan import ClusterFactors, PackedPlan, RegionFactors


class Case(NamedTuple):
    """One call of the op. ``ranks[r][k]`` is a cluster's rank, None a dense one; clusters are near-equal parts.

    ``shared`` > 0 gives a pool of that many rows from which every region picks its own.
    """

    name: str
    why: str
    shape: tuple[int, int, int, int]
    out_channels: int
    geometry: Geometry
    ranks: tuple[tuple[int | None, ...], ...]
    layout: str = "channels_last"
    bias: str = "region"
    activation: str = "relu"
    shared: int = 0
    unequal: bool = False


def _same(kernel: int, stride: int = 1, dilation: int = 1) -> Geometry:
    pad = dilation * (kernel - 1) // 2
    return Geometry(*((a, a) for a in (kernel, stride, pad, dilation)))


CASES = (
    Case("plain", "one region, one cluster", (2, 8, 9, 9), 12, _same(3), ((5,),)),
    Case(
        "regions",
        "unequal regions and ranks",
        (3, 16, 10, 8),
        24,
        _same(3),
        ((7,), (3,), (16,)),
        unequal=True,
    ),
    Case("clusters", "clusters that divide nothing", (2, 16, 7, 7), 23, _same(3), ((4, 1, 3), (2, 6, 5))),
    Case("odd channels", "7 and 13 fill no vector", (2, 7, 6, 5), 13, _same(3), ((5, 3), (2, 4))),
    Case("rank 0", "a dead region costs only a store", (2, 8, 8, 8), 10, _same(3), ((0,), (4,))),
    Case("all rank 0", "an empty pool of rows", (2, 4, 5, 5), 6, _same(3), ((0, 0),)),
    Case("rank 1", "a single row", (2, 5, 6, 6), 9, _same(3), ((1,), (1,))),
    Case("dense", "clusters without second stage", (2, 8, 8, 8), 20, _same(3), ((None,), (None, 3))),
    Case("one dense cluster", "a dense region beside a low-rank one", (2, 8, 7, 7), 12, _same(3), ((None,), (4,))),
    Case("empty cluster", "more clusters than channels", (2, 4, 5, 5), 2, _same(3), ((1, 2, 1),)),
    Case("batch 0", "nothing to do", (0, 4, 6, 6), 8, _same(3), ((3,), (2,))),
    Case("one pixel", "1 x 1 image, border only", (3, 6, 1, 1), 8, _same(3), ((3,),)),
    Case("kernel over image", "no patch inside, hardly two pixels a region", (2, 16, 4, 4), 9, _same(7), ((2,),) * 40),
    Case("pointwise", "a 1 x 1 kernel", (2, 33, 7, 9), 18, _same(1), ((6, 4), (9, 2))),
    Case(
        "stride",
        "stride 2, even kernel",
        (2, 8, 11, 9),
        16,
        Geometry((4, 2), (2, 3), (1, 0), (1, 1)),
        ((6,), (5,)),
    ),
    Case(
        "long runs",
        "40 channels: kernel rows of several vectors",
        (2, 40, 9, 8),
        16,
        Geometry((3, 3), (2, 1), (1, 2)),
        ((6,), (5,)),
    ),
    Case("dilation", "dilation 2", (2, 8, 12, 10), 16, _same(3, dilation=2), ((6,), (3,))),
    Case(
        "first layer",
        "3 channels, 11 x 11, stride 4",
        (1, 3, 35, 35),
        16,
        Geometry((11, 11), (4, 4), (2, 2)),
        ((9,), (4,)),
    ),
    Case(
        "padding",
        "more padding than kernel",
        (1, 4, 3, 3),
        5,
        Geometry((3, 3), (1, 1), (4, 3), (1, 1)),
        ((2,), (3,)),
    ),
    Case(
        "shared rows",
        "regions pick from one pool",
        (2, 12, 9, 9),
        20,
        _same(3),
        ((6, 3), (9,), (2, 2)),
        shared=14,
    ),
    Case(
        "non-contiguous",
        "a slice of a larger tensor",
        (2, 8, 7, 7),
        12,
        _same(3),
        ((5,), (2,)),
        layout="sliced",
    ),
    Case("contiguous", "NCHW input", (2, 8, 7, 7), 12, _same(3), ((5,), (2,)), layout="contiguous"),
    Case(
        "no bias",
        "no bias, no activation",
        (2, 8, 7, 7),
        12,
        _same(3),
        ((5,), (2,)),
        bias="none",
        activation="none",
    ),
    Case("one bias", "one bias for all regions", (2, 8, 7, 7), 12, _same(3), ((5,), (2,)), bias="channel"),
    Case(
        "short patches",
        "a first layer with more rows than patch elements in a vector",
        (2, 3, 17, 15),
        70,
        Geometry((5, 5), (1, 1), (2, 2)),
        ((None,), (20,), (33, 9), (None, 5)),
    ),
    Case(
        "wide",
        "several tiles and chunks everywhere",
        (2, 64, 20, 18),
        96,
        _same(3),
        ((40, 33), (70,), (17, 64)),
    ),
)
_LARGE_SHAPE = (1, 32, 120, 120)
LARGE = (
    Case("large", "outputs past the caches, in order or not", _LARGE_SHAPE, 128, _same(3), ((3,), (2, 1), (6,))),
    Case("large batch", "the same by many images", (9, 32, 40, 40), 128, _same(3), ((3,), (2, 1), (6,))),
    Case("large, odd channels", "outputs that fill no line", _LARGE_SHAPE, 124, _same(3), ((3,), (2, 1), (6,))),
)


class Inputs(NamedTuple):
    """Arguments of ``hscc_kernels.lowrank_conv2d`` for a case."""

    x: Tensor
    plan: PackedPlan
    bias: Tensor | None


def make_inputs(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu") -> Inputs:
    """Fresh random inputs of a case; values are exact in every dtype down to bfloat16."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float32) * scale
        return values.bfloat16().to(device, dtype)

    plan = make_plan(case, draw, generator)
    n, c, height, width = case.shape
    if case.layout == "sliced":
        x = draw(n, c + 3, height, 2 * width)[:, 1 : c + 1, :, ::2]
    elif case.layout == "contiguous":
        x = draw(*case.shape)
    else:
        x = draw(*case.shape).contiguous(memory_format=torch.channels_last)
    shapes = {"none": None, "channel": (case.out_channels,), "region": (len(case.ranks), case.out_channels)}
    bias_shape = shapes[case.bias]
    return Inputs(x, plan, None if bias_shape is None else draw(*bias_shape))


def make_plan(case: Case, draw, generator: torch.Generator) -> PackedPlan:
    """A random plan of the case: random region map, random channel clusters, random factors."""
    taps = case.geometry.kernel[0] * case.geometry.kernel[1]
    patch = case.shape[1] * taps
    regions, start = [], 0
    for ranks in case.ranks:
        parts = torch.randperm(case.out_channels, generator=generator).tensor_split(len(ranks))
        counts = [len(part) if rank is None else rank for part, rank in zip(parts, ranks, strict=True)]
        clusters, row = [], 0
        for part, rank, count in zip(parts, ranks, counts, strict=True):
            u = None if rank is None else draw(len(part), rank, scale=max(rank, 1) ** -0.5)
            clusters.append(ClusterFactors(part, row, u))
            row += count
        if case.shared:
            rows = torch.randperm(case.shared, generator=generator)[:row]
        else:
            rows = torch.arange(start, start + row)
        start += row
        regions.append(RegionFactors(rows, tuple(clusters)))
    v = draw(case.shared or start, patch, scale=patch**-0.5)
    size = case.geometry.out_size(*case.shape[2:])
    labels = torch.randint(len(case.ranks), size, generator=generator)
    if case.unequal:
        labels[torch.rand(size, generator=generator) < 0.7] = 0
    return PackedPlan.pack(v, regions, labels, case.geometry)


class Int8(NamedTuple):
    """How a case is quantised: bits of V, and of the inputs the zero point; 0 for inputs behind a ReLU."""

    bits: int
    zero_point: int


INT8 = (Int8(8, 0), Int8(8, 113), Int8(7, 0), Int8(7, 255))


class Int8Inputs(NamedTuple):
    """Arguments of ``hscc_kernels.lowrank_conv2d_int8`` for a case."""

    x: Tensor
    plan: Int8Plan
    bias: Tensor | None


def make_int8_inputs(case: Case, int8: Int8, seed: int = 0) -> Int8Inputs:
    """Fresh random inputs of a case, some of them beyond what 8 bits reach."""
    x, plan, bias = make_inputs(case, torch.float32, seed)
    return Int8Inputs(x, Int8Plan.quantised(plan, 1 / 37, int8.zero_point, int8.bits), bias)


def exact_int8(x: Tensor, plan: Int8Plan, bias: Tensor | None, activation: str) -> Tensor:
    """The specification with a second stage in float64."""
    plan = plan._replace(u=plan.u.double(), v_scale=plan.v_scale.double())
    return plain_int8(x, plan, None if bias is None else bias.double(), activation)


def plain_int8(x: Tensor, plan: Int8Plan, bias: Tensor | None, activation: str) -> Tensor:
    return reference_int8.lowrank_conv2d_int8(x, bias, *plan, activation)


def exact(x: Tensor, plan: PackedPlan, bias: Tensor | None, activation: str) -> Tensor:
    """The reference in float64, differentiable."""
    return plain(x.double(), plan.to(torch.float64), None if bias is None else bias.double(), activation)


def plain(x: Tensor, plan: PackedPlan, bias: Tensor | None, activation: str) -> Tensor:
    """The reference in the inputs' own dtype, differentiable: what plain PyTorch would give."""
    return reference.lowrank_conv2d(x, bias, *plan, activation)


def error_ratio(got: Tensor, plain: Tensor, exact: Tensor) -> float:
    """Error of ``got`` over twice that of plain PyTorch at the same dtype, both against float64: at most 1 passes.

    The larger of two ratios. The root mean squares tell how a kernel rounds: equally exact ones give 0.5 to 0.6, and
    dropped bits or sums kept in 16 bits double it. The largest errors find a single wrong value. Luck is left out:
    - Plain PyTorch's mean counts as at least one rounding of each value, a fifth of eps.
    - The quotient of two means over n values varies by 1 / sqrt(n): three times that is allowed for.
    - The largest of a few hundred errors is one draw: sums in another order, no worse on average, are off by three
      times as much. Plain PyTorch's counts as at least eight times its mean.
    Values that are not finite, or a wrong shape or dtype, give infinity.
    """
    if got.shape != exact.shape or got.dtype != plain.dtype or not (got.isfinite().all() and plain.isfinite().all()):
        return float("inf")
    if got.numel() == 0:
        return 0.0
    error, usual = got.double() - exact, plain.double() - exact
    mean = max(_mean(usual), torch.finfo(plain.dtype).eps / 5 * _mean(exact), 1e-300)
    mean *= 1 + 3 / got.numel() ** 0.5
    largest = max(usual.abs().max().item(), 8 * mean)
    return max(_mean(error) / mean, error.abs().max().item() / largest) / 2


def _mean(values: Tensor) -> float:
    """The root of the mean square."""
    return values.square().mean().sqrt().item()
