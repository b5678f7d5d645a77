"""Which output position is of which region: positions in the order in which they are computed, for any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .layout import Geometry, WorkItem


def _walk(labels: Tensor, geometry: Geometry, patch: int) -> Tensor:
    """All flat positions of a map (Ho, Wo): two rows at a time, to and fro, or row by row, where patches are short.

    Neighbours in this order are computed together, and patches of 2 x 3 positions share more input than of 1 x 6.
    Large maps of short patches gain nothing by that, as their rows are easier to fetch ahead one by one.
    """
    index = torch.arange(labels.numel(), device=labels.device).view(labels.shape)
    if min(geometry.kernel) == 1 or (patch < 1024 and labels.numel() > 4096):
        return index.flatten()
    strips = (strip.flip(1) if i % 2 else strip for i, strip in enumerate(index.split(2)))
    return torch.cat([strip.T.flatten() for strip in strips])


class Mapped(NamedTuple):
    """What of a plan depends on the region map; see :class:`PackedPlan`."""

    positions: Tensor
    work: Tensor
    sizes: tuple[int, ...]


def mapped(work: Tensor, labels: Tensor, geometry: Geometry, patch: int) -> Mapped:
    """A work list on a map (Ho, Wo) of region numbers; ``patch`` is the length of a row of V."""
    flat = labels.reshape(-1).long()
    counts = torch.bincount(flat, minlength=len(work))
    starts = counts.cumsum(0) - counts
    work = work.clone()
    region = work[:, 0].long()
    work[:, 1] = starts.to(work)[region]
    work[:, 2] = counts.to(work)[region]
    order = _walk(labels, geometry, patch)
    positions = order[flat[order].argsort(stable=True)].to(work)
    return Mapped(positions, work, (*geometry.flat(), *labels.shape))


def labels_of(positions: Tensor, work: Tensor, sizes: Sequence[int]) -> Tensor:
    """The map (Ho, Wo) int64; ValueError for a region that there is not."""
    items = [WorkItem(*row) for row in work.tolist()]
    if wrong := [item.region for item in items if not 0 <= item.region < len(items)]:
        raise ValueError(f"work: got region {wrong[0]}, expected 0..{len(items) - 1}")
    labels = torch.zeros(positions.shape, dtype=torch.int64, device=positions.device)
    for item in items:
        labels[positions[item.position_start : item.position_start + item.position_count].long()] = item.region
    return labels.view(*sizes[-2:])


def resized(
    positions: Tensor, work: Tensor, sizes: Sequence[int], patch: int, size: tuple[int, int], block: int = 1
) -> Mapped:
    """As :meth:`PackedPlan.resized`, of what it needs."""
    labels = labels_of(positions, work, sizes)
    row, column = (
        _nearest(torch.arange(new, device=labels.device), new, old, along)
        for new, old, along in zip(size, labels.shape, (1, block), strict=True)
    )
    return mapped(work, labels[row[:, None], column[None, :]], Geometry.unflat(sizes), patch)


def _nearest(index: Tensor, new: int, old: int, block: int) -> Tensor:
    """Of ``old`` positions the one nearest to each index of ``new``; ``block`` neighbours keep their order."""
    new, old_blocks = -(-new // block), -(-old // block)
    nearest = ((index // block + 0.5) * old_blocks / new).long().clamp_max(old_blocks - 1)
    return (nearest * block + index % block).clamp_max(old - 1)
