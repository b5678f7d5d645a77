"""What a compressed model consists of, from its modules alone: for one whose report is not at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hscc_kernels.layout import DENSE

from .nn.chain import ConvChain
from .nn.conv2d import HSCConv2d
from .nn.projection import SqueezedConv2d
from .nn.surgery import unwrapped
from .observe.data import evaluation, watch
from .report import LayerReport, Report

_OURS = (HSCConv2d, SqueezedConv2d, ConvChain)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def summary(model: nn.Module, x: Tensor) -> Report:
    """One row for each convolution that runs on ``x``, compressed or not, by a forward pass in evaluation mode.

    Args:
        model: compressed or dense; it is not changed.
        x: (N, C, H, W) images, or what else the model's ``forward`` takes as its only argument.

    Returns:
        FLOPs of one image at the size of ``x``, by PyTorch's counter; numbers and bytes as they are stored. What the
        dense layer took is that of a convolution with bias of the same shape. Errors are not known, and 0.

    Raises TypeError where ``model`` is no module, ValueError where it has no convolution that runs.
    """
    model, images = unwrapped(model), len(x)
    layers = dict(_layers(model, ""))
    positions = dict.fromkeys(layers, 0)

    def see(name: str, x: Tensor, y: Tensor) -> None:
        layer = layers[name]
        seen = x if getattr(layer, "transposed", False) else y
        channels = layer.in_channels if seen is x else layer.out_channels
        positions[name] += seen.numel() // channels

    counter = FlopCounterMode(display=False)
    with evaluation(model), watch(layers, see), counter:
        model(x)
    counted = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    root = type(model).__name__
    rows = [
        _row(name, layers[name], positions[name] / images, counted.get(f"{root}.{name}", 0) / images)
        for name in layers
        if positions[name]
    ]
    if not rows:
        raise ValueError(f"model: got {root}, in which no convolution runs, expected one that has some")
    return Report(tuple(rows))


def _layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Ours and plain convolutions by first name, not what ours consist of."""
    seen: set[nn.Module] = set()
    for child, part in module.named_children():
        if part in seen:
            continue
        seen.add(part)
        path = f"{name}.{child}".lstrip(".")
        if isinstance(part, (*_OURS, *_CONVOLUTIONS)):
            yield path, part
        else:
            yield from _layers(part, path)


def _row(name: str, layer: nn.Module, positions: float, flops: float) -> LayerReport:
    tensors = [*layer.parameters(), *layer.buffers()]
    size = sum(t.nbytes for t in tensors)
    if not isinstance(layer, _OURS):
        numbers = sum(p.numel() for p in layer.parameters())
        return LayerReport(name, int(flops), int(flops), numbers, numbers, size, size, reason="dense")
    weights = layer.out_channels * layer.in_channels * torch.Size(layer.kernel_size).numel()
    weights //= getattr(layer, "groups", 1)
    dense, width = weights + layer.out_channels, next(layer.parameters()).element_size()
    numbers = sum(t.numel() for t in tensors if t.dtype != torch.int32)  # all but indices
    costs = int(2 * positions * weights), int(flops), dense, numbers, width * dense, size
    return LayerReport(name, *costs, **_structure(layer))


def _structure(layer: nn.Module) -> dict[str, Any]:
    if isinstance(layer, ConvChain):
        return {"ranks": (tuple(stage.out_channels for stage in list(layer)[:-1]),), "region_sizes": (1,)}
    squeeze = layer.squeeze.weight.shape[1] if isinstance(layer, SqueezedConv2d) else 0
    plan = layer.plan
    items = plan.work_items()
    clusters = [plan.cluster_items(item) for item in items]
    return {
        "ranks": tuple(tuple(None if c.u_start == DENSE else c.rank for c in several) for several in clusters),
        "rows": len(plan.v) if sum(item.row_count for item in items) > len(plan.v) else 0,
        "squeeze": squeeze,
        "region_sizes": tuple(item.position_count for item in items),
        "groups": getattr(layer, "groups", 1),
    }
