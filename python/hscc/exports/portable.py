"""Portable forms: what computes as our layers do, of nothing but PyTorch's own modules, for exporters and runtimes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hscc_kernels import Geometry, PackedPlan
from hscc_kernels.layout import DENSE, WorkItem

from ..nn.chain import ConvChain
from ..nn.conv2d import HSCConv2d
from ..nn.groups import Wide
from ..nn.int8 import Int8Conv2d
from ..nn.padding import SAME, padded
from ..nn.projection import Projection
from ..nn.surgery import Student

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


class Masked(nn.Module):
    """Every region's rows V everywhere, those of other regions set to zero, then all U at once; for one size.

    ``rows`` (S,) int64 are the outputs of ``first`` that the regions use, one after the other; ``owner`` (S, 1, 1) the
    region of each, ``labels`` (Ho, Wo) that of each position, int64; ``bias`` (O, R).
    """

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d, bias: Tensor, index: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.bias = first, second, fresh(bias)
        for name in ("rows", "owner", "labels"):
            self.register_buffer(name, index[name])
        self.shared = len(self.rows) > first.out_channels

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        z = z.index_select(-3, self.rows) if self.shared else z
        return self.second(z.masked_fill(self.owner != self.labels, 0)) + self.bias[:, self.labels]


class Region(nn.Module):
    """One region: the patches of its positions, then two linear layers; (N, Hp * Wp, C) -> (N, positions, O).

    ``index`` (positions * taps,) int64 says which pixels of the padded map the patches are made of.
    """

    def __init__(self, index: Tensor, first: Tensor, second: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index.flatten())
        self.positions = len(index)
        self.first, self.second = _linear(first), _linear(second, bias)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = pixels.index_select(1, self.index).unflatten(1, (self.positions, -1)).flatten(2)
        return self.second(self.first(patches))


class Gathered(nn.Module):
    """Regions one after the other, each on gathered patches, then put in their places: right for one size only."""

    def __init__(self, regions: list[Region], order: Tensor, plan: PackedPlan) -> None:
        """``order`` (Ho * Wo,) int64: where each output position is among those of all regions."""
        super().__init__()
        self.regions, self.size, self.padding = nn.ModuleList(regions), plan.out_size, plan.geometry.padding
        self.reads = _reads(plan)
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        (rows, columns), (height, width) = self.padding, self.reads
        x = F.pad(x, (columns, columns, rows, rows))[:, :, :height, :width]  # a stride may leave some pixels unread
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        y = torch.cat([region(pixels) for region in self.regions], 1).index_select(1, self.order)
        return y.transpose(1, 2).contiguous().unflatten(2, self.size)  # pools after other strides export badly


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
        return _conv(layer.weight.T[:, :, None, None])
    plan, modules = layer.plan, []
    if any(layer.pad) or layer.padding_mode == SAME:
        modules.append(Pad(layer))
    if regions(layer) == 1:
        modules += _grouped(layer) if layer.wide else _convolutions(plan, layer.bias.detach()[0])
    else:
        make = _masked if form(layer) == "masks" else _gathered
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


def _rows(plan: PackedPlan, item: WorkItem) -> Tensor:
    """The rows of V that a region uses, int64 (s,)."""
    return plan.rows[item.row_start : item.row_start + item.row_count].long()


def _second(plan: PackedPlan, item: WorkItem) -> Tensor:
    """U (O, s) of a region; ones where a cluster has no second stage."""
    u = plan.v.new_zeros(plan.out_channels, item.row_count)
    for c in plan.cluster_items(item):
        channels = plan.channels[item.region, c.channel_start : c.channel_start + c.channel_count].long()
        columns = torch.arange(c.row_start, c.row_start + c.rank, device=u.device)
        if c.u_start == DENSE:
            u[channels, columns] = 1
        else:
            block = plan.u.detach()[c.u_start : c.u_start + c.rank * c.channel_count].view(c.rank, c.channel_count)
            u[channels[:, None], columns] = block.T
    return u


def _first(plan: PackedPlan, rows: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """The convolution of these rows of V; of a row of zeros where there is none, as runtimes know no layer of none."""
    v = plan.v.detach()[rows] if len(rows) else plan.v.new_zeros(1, plan.v.shape[1])
    return _rows_conv(v, plan.in_channels, plan.geometry, 1, bias)


def _rows_conv(v: Tensor, channels: int, geometry: Geometry, groups: int = 1, bias: Tensor | None = None) -> nn.Conv2d:
    """The convolution of rows (q, D) that read so many channels each."""
    kernel, stride, padding, dilation = geometry
    weight = v.unflatten(1, (*kernel, channels)).permute(0, 3, 1, 2)
    return _conv(weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def _convolutions(plan: PackedPlan, bias: Tensor) -> list[nn.Conv2d]:
    item = plan.work_items()[0]
    rows, u = _rows(plan, item), _second(plan, item)
    if all(c.u_start == DENSE for c in plan.cluster_items(item)):
        return [_first(plan, rows[u.argmax(1)], bias)]
    return [_first(plan, rows), _conv((u if len(rows) else u.new_zeros(len(u), 1))[:, :, None, None], bias)]


def _grouped(layer: HSCConv2d) -> list[nn.Conv2d]:
    """Of one region a group, which come in order: two grouped convolutions, or one where no group has a U.

    All groups get as many rows as the one with the most; those that it lacks are zeros.
    """
    plan, groups, bias = layer.plan, layer.groups, layer.bias.detach()[: layer.groups].flatten()
    items = sorted(plan.work_items())[:groups]
    firsts, seconds = [plan.v.detach()[_rows(plan, item)] for item in items], [_second(plan, item) for item in items]
    if all(c.u_start == DENSE for item in items for c in plan.cluster_items(item)):
        weight = torch.cat([v[u.argmax(1)] for v, u in zip(firsts, seconds, strict=True)])
        return [_rows_conv(weight, plan.in_channels, layer.geometry, groups, bias)]
    rank = max(1, *(item.row_count for item in items))
    weight = torch.cat([F.pad(v, (0, 0, 0, rank - len(v))) for v in firsts])
    u = torch.cat([F.pad(u, (0, rank - u.shape[1])) for u in seconds])[:, :, None, None]
    return [_rows_conv(weight, plan.in_channels, layer.geometry, groups), _conv(u, bias, groups=groups)]


def _masked(plan: PackedPlan, bias: Tensor) -> Masked:
    items = plan.work_items()
    owner = torch.tensor([item.region for item in items for _ in range(item.row_count)], dtype=torch.int64)
    rows, u = torch.cat([_rows(plan, item) for item in items]), torch.cat([_second(plan, item) for item in items], 1)
    if not len(rows):
        owner, rows, u = owner.new_zeros(1), rows.new_zeros(1), u.new_zeros(len(u), 1)
    pool, places = (rows[:0], rows) if not plan.v.numel() else rows.unique(return_inverse=True)
    if len(pool) == len(rows):  # none is used twice: as they come
        pool, places = rows, torch.arange(len(rows), device=rows.device)
    index = {"rows": places, "owner": owner.to(rows.device)[:, None, None], "labels": plan.labels()}
    return Masked(_first(plan, pool), _conv(u[:, :, None, None]), bias.T, index)


def _gathered(plan: PackedPlan, bias: Tensor) -> Gathered:
    (kh, kw), (sh, sw), _, (dh, dw) = plan.geometry
    columns, device = _reads(plan)[1], plan.v.device
    taps = torch.arange(kh, device=device)[:, None] * dh * columns + torch.arange(kw, device=device) * dw
    made, places = [], []
    for item in plan.work_items():
        place = plan.positions[item.position_start : item.position_start + item.position_count].long()
        if not len(place):
            continue
        corner = place // plan.out_size[1] * sh * columns + place % plan.out_size[1] * sw
        v, u = plan.v.detach()[_rows(plan, item)], _second(plan, item)
        if not len(v):
            v, u = v.new_zeros(1, v.shape[1]), u.new_zeros(len(u), 1)
        made.append(Region(corner[:, None] + taps.flatten(), v, u, bias[item.region]))
        places.append(place)
    return Gathered(made, torch.cat(places).argsort(), plan)


def _reads(plan: PackedPlan) -> Size:
    """(rows, columns) of the padded map that the outputs read."""
    kernel, stride, _, dilation = plan.geometry
    sides = zip(plan.out_size, stride, dilation, kernel, strict=True)
    return tuple((n - 1) * s + d * (k - 1) + 1 for n, s, d, k in sides)


def _channels_first(conv: nn.Module) -> nn.Module:
    """The same with a weight of that layout; parametrised ones as they are."""
    if set(conv._parameters) != {"weight", "bias"}:
        return conv
    own = copy.copy(conv)
    own._parameters = {**conv._parameters, "weight": fresh(conv.weight)}
    return own


def _conv(weight: Tensor, bias: Tensor | None = None, **options) -> nn.Conv2d:
    channels = weight.shape[1] * options.get("groups", 1)
    conv = nn.utils.skip_init(  # initialising would draw from the user's random generator
        nn.Conv2d, channels, weight.shape[0], tuple(weight.shape[2:]), bias=bias is not None, **options
    )
    return _filled(conv, weight, bias)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    return _filled(nn.utils.skip_init(nn.Linear, *weight.shape[::-1], bias=bias is not None), weight, bias)


def _filled(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    module.weight = fresh(weight)
    if bias is not None:
        module.bias = fresh(bias)
    return module


def fresh(tensor: Tensor) -> nn.Parameter:
    """A copy with the usual strides: those of a size of 1 are free, and say "channels last" where they are."""
    own = tensor.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(own, requires_grad=False)
