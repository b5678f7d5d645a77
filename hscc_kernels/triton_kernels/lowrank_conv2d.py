"""The Triton backend on the host: checks, the kernel's constants, the choice of a tile and the launch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from ..arguments import check
from ..layout import DENSE, ClusterItem, sized
from ..plan import PackedPlan
from . import autotune
from .configs import TALLEST, Chip, Config, Problem
from .kernel import lowrank_conv2d_kernel


class Structure(NamedTuple):
    """What a plan's index tensors say, for Problem's fields of the same names."""

    slice_rows: int | None = None
    one_cluster: bool = False


_structures = WeakTensorKeyDictionary()  # a plan's table of clusters -> its channels, versions of both, Structure


def lowrank_conv2d(
    x: Tensor,
    bias: Tensor | None,
    v: Tensor,
    u: Tensor,
    positions: Tensor,
    rows: Tensor,
    channels: Tensor,
    work: Tensor,
    clusters: Tensor,
    sizes: Sequence[int],
    activation: str,
    config: Config | None = None,
) -> Tensor:
    """x (N, C, H, W), bias (O,), (R, O) or None -> (N, O, Ho, Wo), channels last in memory.

    A plan's first call reads its index tensors, later ones no tensor.
    """
    check(x, bias, v, u, positions, rows, channels, work, clusters, sizes, activation)
    sizes = sized(sizes, x)
    out_size = sizes[-2:]
    size = (x.shape[0], channels.shape[1], *out_size)
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    problem = describe(x, PackedPlan(v, u, positions, rows, channels, work, clusters, sizes))
    chip = Chip.of(x.device)
    x = x.contiguous(memory_format=torch.channels_last)
    if bias is not None and bias.stride(-1) != 1:
        bias = bias.contiguous()
    bias_stride = bias.stride(0) if bias is not None and bias.ndim == 2 else 0  # 0: all regions share one
    tensors = [t.contiguous() for t in (positions, rows, channels, work, clusters)]
    arguments = (
        x, v.contiguous(), u.contiguous(), x if bias is None else bias, *tensors, out,
        x.shape[0], *x.shape[2:], x.shape[1], out_size[1], positions.shape[0], size[1], v.shape[0],
        rows.shape[0], u.shape[0], work.shape[0], clusters.shape[0], bias_stride,
    )  # fmt: skip

    def launch(config: Config) -> None:
        constants = specialization(problem, config, bias is not None, activation)
        grid = min(triton.cdiv(problem.pairs, config.BP) + problem.regions, chip.programs(config))
        lowrank_conv2d_kernel[(grid,)](*arguments, **constants, **config.meta(chip.hip))

    with torch.cuda.device_of(x):
        launch(config or autotune.choose(problem, chip, launch, out))
    return out


def describe(x: Tensor, plan: PackedPlan) -> Problem:
    """What the choice of a tile depends on; x may be any view of the call's shape."""
    images, in_channels, height, width = x.shape
    positions = plan.positions.shape[0]
    # Offsets count from a tile's first image, and a tile may reach over as many images as it has pairs.
    image = max(in_channels * height * width, plan.out_channels * positions)
    return Problem(
        dtype=x.dtype,
        in_channels=in_channels,
        geometry=plan.geometry,
        pairs=images * positions,
        regions=plan.regions,
        clusters=plan.clusters.shape[0],
        rows=plan.rows.shape[0],
        pool=plan.v.shape[0],
        out_channels=plan.out_channels,
        **_structure(plan.channels, plan.clusters)._asdict(),
        wide=max(TALLEST * image, plan.u.numel()) >= 2**31,
    )


def specialization(problem: Problem, config: Config, has_bias: bool, activation: str) -> dict:
    """The kernel's constants but for the tile; each combination of values is compiled."""
    return {
        "GEOMETRY": tuple(problem.geometry.flat()),
        "WHOLE_ROW": problem.whole_row,
        "TAP_BITS": not problem.whole_row and math.prod(problem.geometry.kernel) <= 32,
        "ONE_CLUSTER": problem.in_order(config),
        "HAS_BIAS": has_bias,
        "RELU": activation == "relu",
        "PRECISION": precision(problem.dtype),
        "OFFSET": tl.int64 if problem.wide else tl.int32,
    }


def precision(dtype: torch.dtype) -> str:
    """fp32 products are exact unless PyTorch was told that TF32 will do for matrix products."""
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def _structure(channels: Tensor, clusters: Tensor) -> Structure:
    """Read once, and again when a tensor was written to; unknown where waiting for the device is not allowed.

    Tensors of inference mode do not tell; one that was written to makes outputs NaN where its structure is another.
    """
    versions = [None if t.is_inference() else t._version for t in (channels, clusters)]
    known = _structures.get(clusters)
    if known is not None and known[0]() is channels and known[1] == versions:
        return known[2]
    if clusters.is_cuda and torch.cuda.is_current_stream_capturing():
        return Structure()
    items = [ClusterItem(*row) for row in clusters.tolist()]
    low_rank = [item.rank for item in items if item.u_start != DENSE]
    regions, out_channels = channels.shape
    alone = len(low_rank) == regions and all(item.channel_count == out_channels for item in items)
    in_order = torch.arange(out_channels, dtype=channels.dtype, device=channels.device)
    structure = Structure(max(low_rank, default=0), alone and bool((channels == in_order).all()))
    _structures[clusters] = TensorWeakRef(channels), versions, structure
    return structure
