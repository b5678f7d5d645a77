"""The few directions of a layer's outputs in which structures are compared, and moments of regions in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .factors import ENOUGH, Metric, eigen, regress
from .moments import RegionMoments, pooled

LOST = 1e-5  # of the outputs' energy, that may lie outside


class Seen(NamedTuple):
    """Moments of a region: ``part`` (float32) in the coordinates of a frame; the wanted outputs' ``mean`` (O,), in the
    metric, and the energy about it in all directions."""

    part: RegionMoments
    mean: Tensor
    energy: float

    def energy_about(self, other: Seen) -> float:
        """Per unit of weight, about the other's mean."""
        return self.energy + (self.mean - other.mean).square().sum().item()


class Frame(NamedTuple):
    """Coordinates z = into y (m,) of outputs y (O,), in which errors are plain squares: the leading ones in a metric.

    Args:
        into: (m, O). root: (O, O) of the metric.
    """

    into: Tensor
    root: Tensor

    @classmethod
    def of(cls, metric: Metric, moments: RegionMoments, most: int) -> Frame:
        """At most ``most`` directions of the outputs' covariance, and no more than all but :data:`LOST` of it needs."""
        values, vectors = torch.linalg.eigh(metric.root @ moments.covariance @ metric.root)
        lost = values.clamp_min(0).cumsum(0)  # smallest first
        needed = int((lost > LOST * lost[-1]).sum())
        return cls(vectors[:, len(values) - max(min(needed, most), 1) :].T @ metric.root, metric.root)

    def seen(self, moments: RegionMoments) -> Seen:
        """Of a region, where the computable values are the wanted outputs."""
        mean, covariance = self.into @ moments.mean, self.into @ moments.covariance @ self.into.T
        part = RegionMoments(moments.count, mean, covariance, mean, covariance)
        energy = ((self.root @ moments.covariance) * self.root).sum().item()
        return Seen(single(part), self.root @ moments.mean, energy)


def single(part: RegionMoments) -> RegionMoments:
    """In float32, which is enough to compare."""
    return RegionMoments(part.count, *(t.float() for t in part[1:]))


class Directions(NamedTuple):
    """Of a region, strongest first: z ~ target_mean + u a (x - mean), u (m, k), a (k, m)."""

    u: Tensor
    a: Tensor
    mean: Tensor
    target_mean: Tensor
    paired: bool = True  # computable values are others than the wanted ones

    @classmethod
    def of(cls, part: RegionMoments, ridge: float | None) -> Directions:
        """``ridge`` None: computable and wanted values are the same; else as for ``factors.from_regression``."""
        if ridge is None:
            _, u = eigen(part.covariance)
            return cls(u, u.T, part.mean, part.target_mean, paired=False)
        g = regress(part.cross - part.covariance, part.covariance, ridge * (1 + ENOUGH / max(part.count, 1.0)))
        g.diagonal().add_(1)
        _, u = eigen(g @ part.cross.T)
        return cls(u, u.T @ g, part.mean, part.target_mean)

    def gains(self, part: RegionMoments, falling: bool = True) -> Tensor:
        """(k,) what each explains of other data; ``falling``: never rising."""
        shift, target_shift = part.mean - self.mean, part.target_mean - self.target_mean
        gains = (self.a @ (part.covariance + torch.outer(shift, shift)) * self.a).sum(1)
        if self.paired:
            gains = 2 * (self.u.T @ (part.cross + torch.outer(target_shift, shift)) * self.a).sum(1) - gains
        gains = gains.clamp_min(0)
        return gains.cummin(0).values if falling else gains


def union(cells: Sequence[Seen]) -> Seen:
    """Of the union of regions, exactly."""
    if len(cells) == 1:
        return cells[0]
    count = sum(cell.part.count for cell in cells)
    shares = [(cell.part.count / max(count, 1), cell) for cell in cells]
    mean = sum(share * cell.mean for share, cell in shares)
    about = sum(share * (cell.energy + (cell.mean - mean).square().sum().item()) for share, cell in shares)
    return Seen(pooled([cell.part for cell in cells]), mean, about)
