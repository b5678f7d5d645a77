"""The Triton backend on the host: checks, the kernel's constants, the choice of a tile and the launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..arguments import check
from ..plan import DENSE, ClusterItem, Geometry
from . import autotune
from .configs import TALLEST, Chip, Config, Problem
from .kernel import lowrank_conv2d_kernel

_largest_slices = WeakTensorKeyDictionary()  # a table of clusters -> rows of its largest low-rank slice


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

    A plan's first call reads its table of clusters, later ones no tensor.
    """
    check(x, bias, v, u, positions, rows, channels, work, clusters, sizes, activation)
    geometry, out_size = Geometry.unflat(sizes), tuple(sizes[-2:])
    size = (x.shape[0], channels.shape[1], *out_size)
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    problem = Problem(
        dtype=x.dtype,
        in_channels=x.shape[1],
        out_channels=size[1],
        geometry=geometry,
        pairs=x.shape[0] * positions.shape[0],
        regions=work.shape[0],
        clusters=clusters.shape[0],
        rows=rows.shape[0],
        pool=v.shape[0],
        slice_rows=_largest_slice(clusters),
        # A low-rank cluster that is alone has rank * O values of U: beside a dense one, some rows lack theirs.
        dense=u.shape[0] != rows.shape[0] * size[1],
        wide=_needs_64_bits(x, out, u),
    )
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
    constants = specialization(problem, bias is not None, activation)

    def launch(config: Config) -> None:
        grid = min(triton.cdiv(problem.pairs, config.BP) + problem.regions, chip.programs(config))
        lowrank_conv2d_kernel[(grid,)](*arguments, **constants, **config.meta(chip.hip))

    with torch.cuda.device_of(x):
        launch(config or autotune.choose(problem, chip, launch, out))
    return out


def specialization(problem: Problem, has_bias: bool, activation: str) -> dict:
    """The kernel's constants but for the tile; each combination of values is compiled."""
    return {
        "GEOMETRY": tuple(problem.geometry.flat()),
        "WHOLE_ROW": problem.whole_row,
        "ONE_CLUSTER": problem.one_cluster,
        "HAS_BIAS": has_bias,
        "RELU": activation == "relu",
        "PRECISION": precision(problem.dtype),
        "OFFSET": tl.int64 if problem.wide else tl.int32,
    }


def precision(dtype: torch.dtype) -> str:
    """fp32 products are exact unless PyTorch was told that TF32 will do for matrix products."""
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def _largest_slice(clusters: Tensor) -> int | None:
    """Rows of the largest low-rank slice, None where waiting for the device to tell is not allowed."""
    known = _largest_slices.get(clusters)
    if known is None and not (clusters.is_cuda and torch.cuda.is_current_stream_capturing()):
        items = (ClusterItem(*row) for row in clusters.tolist())
        known = _largest_slices[clusters] = max((item.rank for item in items if item.u_start != DENSE), default=0)
    return known


def _needs_64_bits(x: Tensor, out: Tensor, u: Tensor) -> bool:
    """Offsets count from a tile's first image, and a tile may reach over as many images as it has pairs."""
    image = max(x.numel(), out.numel()) // x.shape[0]
    return max(TALLEST * image, u.numel()) >= 2**31
