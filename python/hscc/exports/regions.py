"""A layer of several regions in plain modules, in one of two forms: masked maps or gathered patches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hscc_kernels import PackedPlan

from .plain import conv, first_stage, fresh, linear, rows_of, second_stage


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
        self.first, self.second = linear(first), linear(second, bias)

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


def masked(plan: PackedPlan, bias: Tensor) -> Masked:
    """``bias`` (R, O)."""
    items = plan.work_items()
    owner = torch.tensor([item.region for item in items for _ in range(item.row_count)], dtype=torch.int64)
    rows = torch.cat([rows_of(plan, item) for item in items])
    u = torch.cat([second_stage(plan, item) for item in items], 1)
    if not len(rows):
        owner, rows, u = owner.new_zeros(1), rows.new_zeros(1), u.new_zeros(len(u), 1)
    pool, places = (rows[:0], rows) if not plan.v.numel() else rows.unique(return_inverse=True)
    if len(pool) == len(rows):  # none is used twice: as they come
        pool, places = rows, torch.arange(len(rows), device=rows.device)
    index = {"rows": places, "owner": owner.to(rows.device)[:, None, None], "labels": plan.labels()}
    return Masked(first_stage(plan, pool), conv(u[:, :, None, None]), bias.T, index)


def gathered(plan: PackedPlan, bias: Tensor) -> Gathered:
    """``bias`` (R, O)."""
    (kh, kw), (sh, sw), _, (dh, dw) = plan.geometry
    columns, device = _reads(plan)[1], plan.v.device
    taps = torch.arange(kh, device=device)[:, None] * dh * columns + torch.arange(kw, device=device) * dw
    made, places = [], []
    for item in plan.work_items():
        place = plan.positions[item.position_start : item.position_start + item.position_count].long()
        if not len(place):
            continue
        corner = place // plan.out_size[1] * sh * columns + place % plan.out_size[1] * sw
        v, u = plan.v.detach()[rows_of(plan, item)], second_stage(plan, item)
        if not len(v):
            v, u = v.new_zeros(1, v.shape[1]), u.new_zeros(len(u), 1)
        made.append(Region(corner[:, None] + taps.flatten(), v, u, bias[item.region]))
        places.append(place)
    return Gathered(made, torch.cat(places).argsort(), plan)


def _reads(plan: PackedPlan) -> tuple[int, int]:
    """(rows, columns) of the padded map that the outputs read."""
    kernel, stride, _, dilation = plan.geometry
    sides = zip(plan.out_size, stride, dilation, kernel, strict=True)
    return tuple((n - 1) * s + d * (k - 1) + 1 for n, s, d, k in sides)
