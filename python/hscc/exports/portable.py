"""Portable forms: what computes as our layers do, of nothing but PyTorch's own modules, for exporters and runtimes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hscc_kernels import PackedPlan
from hscc_kernels.layout import DENSE

from ..nn.chain import ConvChain
from ..nn.conv2d import HSCConv2d
from ..nn.groups import Wide
from ..nn.int8 import Int8Conv2d
from ..nn.padding import SAME, padded
from ..nn.projection import Projection
from ..nn.surgery import Student
from .plain import conv, first_stage, fresh, rows_conv, rows_of, second_stage
from .regions import gathered, masked

Size = tuple[int, int]
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


class Pad(nn.Module):
    """What is done to the input of a layer before its op."""

    def __init__(self, layer: HSCConv2d) -> None:
        super().__init__()
        self.how = tuple(layer.pad), layer.padding_mode, layer.geometry

    def forward(self, x: Tensor) -> Tensor:
        return padded(x, *self.how)


class Widened(nn.Module):
    """A module on the wider map of a grouped convolution."""

    def __init__(self, wide: Wide, inner: nn.Module) -> None:
        super().__init__()
        self.wide, self.inner = wide, inner

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        return self.wide.written(self.inner(self.wide.read(x)))


def portable(layer: HSCConv2d | Projection, size: Size | None = None) -> nn.Module:
    """The layer as plain modules: the same function, in other kernels.

    A projection becomes a 1 x 1 convolution. A layer of one region becomes a convolution (rows V) and a 1 x 1 one (U,
    bias), or one convolution where it has no U, grouped ones where the layer was; these take any size. A layer of
    several becomes :class:`Masked` where that has fewer multiply-adds than the dense convolution, else
    :class:`Gathered`, which has no more than ours has.

    Args:
        size: (H, W) of the layer's input, before any padding, where there are several regions; default: the
            calibrated one. Ignored otherwise.
    """
    if isinstance(layer, Projection):
        return conv(layer.weight.T[:, :, None, None])
    plan, modules = layer.plan, []
    if any(layer.pad) or layer.padding_mode == SAME:
        modules.append(Pad(layer))
    if regions(layer) == 1:
        modules += _grouped(layer) if layer.wide else _convolutions(plan, layer.bias.detach()[0])
    else:
        make = masked if form(layer) == "masks" else gathered
        made = make(_resized(layer, size), layer.bias.detach())
        modules.append(Widened(layer.wide, made) if layer.wide else made)
    if layer.activation == "relu":
        modules.append(nn.ReLU())
    return ConvChain(*modules).train(layer.training)


def own_layers(model: nn.Module) -> dict[str, HSCConv2d | Projection]:
    """By first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (HSCConv2d, Projection))}


def sizes(model: nn.Module, x: Tensor) -> dict[str, set[Size]]:
    """(H, W) of what reaches each of our layers when the model runs on ``x``; an empty set where it does not run."""
    layers = own_layers(model)
    seen: dict[str, set[Size]] = {name: set() for name in layers}

    def watch(name: str):
        return lambda module, args: seen[name].add(tuple(args[0].shape[-2:]))

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@contextmanager
def as_portable(model: nn.Module, x: Tensor) -> Iterator[dict[str, str]]:
    """Inside, the model's own layers are in portable form for inputs of the size of ``x``; gives what each became.

    Convolutions are stored channels first there: exporters spell other layouts out in operators.

    Raises ValueError where a layer with regions runs at several sizes, whose positions differ.
    """
    seen, modules = sizes(model, x), dict(model.named_modules())
    if whole := [name for name in seen if isinstance(modules[name], Int8Conv2d)]:
        raise ValueError(
            f"model: got layer {whole[0]!r} in int8, expected float layers, which hscc.export_int8 rounds, "
            "or the format 'pt2' or 'export'"
        )
    for name, several in seen.items():
        if len(several) > 1 and regions(modules[name]) > 1:
            raise ValueError(f"model: got layer {name!r} with regions at sizes {sorted(several)}, expected one size")
    new = {name: portable(modules[name], next(iter(several), None)) for name, several in seen.items()}
    new |= {name: _channels_first(module) for name, module in modules.items() if type(module) in _CONVOLUTIONS}
    names: dict[nn.Module, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names[module] = (*names.get(module, ()), name)
    student = Student(model, {name: names[modules[name]] for name in new})
    for name, module in new.items():
        student.replace(name, module)
    with student.swapped():
        yield {name: form(modules[name]) for name in seen}


def form(layer: HSCConv2d | Projection) -> str:
    """What :func:`portable` makes of a layer, in a word: "convolutions", "masks" or "gathers"."""
    if regions(layer) == 1:
        return "convolutions"
    plan = layer.plan
    patch, outputs, rows = plan.v.shape[1], plan.out_channels, plan.rows
    return "masks" if len(rows.unique()) * patch + len(rows) * outputs < patch * outputs else "gathers"


def regions(layer: nn.Module) -> int:
    """Of a grouped convolution the most that a group has."""
    if not isinstance(layer, HSCConv2d):
        return 1
    return layer.wide.regions(layer.plan) if layer.wide else layer.plan.regions


def _resized(layer: HSCConv2d, size: Size | None) -> PackedPlan:
    return layer.plan if size is None else layer.plan_of(*size)


def _convolutions(plan: PackedPlan, bias: Tensor) -> list[nn.Conv2d]:
    item = plan.work_items()[0]
    rows, u = rows_of(plan, item), second_stage(plan, item)
    if all(c.u_start == DENSE for c in plan.cluster_items(item)):
        return [first_stage(plan, rows[u.argmax(1)], bias)]
    return [first_stage(plan, rows), conv((u if len(rows) else u.new_zeros(len(u), 1))[:, :, None, None], bias)]


def _grouped(layer: HSCConv2d) -> list[nn.Conv2d]:
    """Of one region a group, which come in order: two grouped convolutions, or one where no group has a U.

    All groups get as many rows as the one with the most; those that it lacks are zeros.
    """
    plan, groups, bias = layer.plan, layer.groups, layer.bias.detach()[: layer.groups].flatten()
    items = sorted(plan.work_items())[:groups]
    firsts = [plan.v.detach()[rows_of(plan, item)] for item in items]
    seconds = [second_stage(plan, item) for item in items]
    if all(c.u_start == DENSE for item in items for c in plan.cluster_items(item)):
        weight = torch.cat([v[u.argmax(1)] for v, u in zip(firsts, seconds, strict=True)])
        return [rows_conv(weight, plan.in_channels, layer.geometry, groups, bias)]
    rank = max(1, *(item.row_count for item in items))
    weight = torch.cat([F.pad(v, (0, 0, 0, rank - len(v))) for v in firsts])
    u = torch.cat([F.pad(u, (0, rank - u.shape[1])) for u in seconds])[:, :, None, None]
    return [rows_conv(weight, plan.in_channels, layer.geometry, groups), conv(u, bias, groups=groups)]


def _channels_first(conv: nn.Module) -> nn.Module:
    """The same with a weight of that layout; parametrised ones as they are."""
    if set(conv._parameters) != {"weight", "bias"}:
        return conv
    own = copy.copy(conv)
    own._parameters = {**conv._parameters, "weight": fresh(conv.weight)}
    return own
