"""The few directions of a layer's outputs in which structures are compared, and moments of regions in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .factors import ENOUGH, Metric, eigen, regress
from .moments import RegionMoments, pooled

FLOOR = 1e-12  # of the mean sensitivity: what all have, so that a root exists
LOST = 1e-5  # of the outputs' energy, that may lie outside
LARGE = 512  # outputs for which it pays to look at a matrix of low rank in its own space
ROUNDING = 1e-6  # of the strongest direction's energy


class Seen(NamedTuple):
    """Of a region: ``part`` (float32), moments in the coordinates of a frame; ``energy`` of the wanted outputs about
    their mean in all directions."""

    part: RegionMoments
    energy: float

    def energy_about(self, other: Seen) -> float:
        """Per unit of weight, about the other's mean."""
        return self.energy + (self.part.target_mean - other.part.target_mean).square().sum().item()


class Frame(NamedTuple):
    """Coordinates z = into y (m,) of outputs y (O,), in which errors are plain squares: the leading ones in a metric.

    Args:
        into: (m, O); back: (O, m), so that y ~ back z + rest.
        rest: (O,) the mean of what lies outside; lost: its energy about that, in the metric.
    """

    into: Tensor
    back: Tensor
    rest: Tensor
    lost: float

    @classmethod
    def of(cls, gram: Tensor, mean: Tensor, covariance: Tensor, most: int) -> Frame:
        """At most ``most`` directions of such outputs, and no more than all but :data:`LOST` of them needs.

        ``gram`` (O, O) has the squares of errors; any root of it gives the same directions, Cholesky's at once.
        """
        floor = FLOOR * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        root = torch.linalg.cholesky(gram + floor, upper=True)
        energy = root @ covariance @ root.T
        values, vectors = strongest(energy, most)
        total = energy.trace()
        left = total - values.cumsum(0)  # outside of the first, the first two, ...
        kept = max(min(int((left + values > LOST * total).sum()), most), 1)
        u = vectors[:, :kept].flip(1)  # weakest first
        into, back = u.T @ root, torch.linalg.solve_triangular(root, u, upper=True)
        return cls(into, back, mean - back @ (into @ mean), left[kept - 1].clamp_min(0).item())

    @classmethod
    def whole(cls, metric: Metric) -> Frame:
        """All directions, the channels themselves in the metric."""
        return cls(metric.root, metric.inverse, metric.root.new_zeros(len(metric.root)), 0.0)

    def seen(self, part: RegionMoments) -> Seen:
        """Of a region, from moments in these coordinates."""
        return Seen(single(part), part.covariance.trace().item() + self.lost)

    def outputs(self, part: RegionMoments) -> RegionMoments:
        """Moments of the outputs themselves, float64, from those in these coordinates."""
        mean = self.back @ part.mean.double() + self.rest
        covariance = self.back @ part.covariance.double() @ self.back.T
        return RegionMoments(part.count, mean, covariance, mean, covariance)


def strongest(matrix: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (not below 0) and eigenvectors of a symmetric (n, n) of rank ``most`` at most, largest first.

    A large one of low rank, as the outputs of a 1 x 1 layer with few inputs have it, is looked at in the space that it
    maps random vectors to, which is all that it has (Halko et al. 2011); others whole.
    """
    if len(matrix) < LARGE or 2 * most > len(matrix):
        values, vectors = torch.linalg.eigh(matrix)
    else:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(len(matrix), most, generator=generator, dtype=matrix.dtype).to(matrix.device)
        for _ in range(2):  # the second time rounding leaves less of what is weak
            drawn = torch.linalg.qr(matrix @ drawn).Q
        values, vectors = torch.linalg.eigh(drawn.T @ matrix @ drawn)
        vectors = drawn @ vectors
    return values.flip(0).clamp_min(0), vectors.flip(1)


def project(y: Tensor, into: Tensor) -> Tensor:
    """(N, O, H, W) outputs as (N, m, H, W) coordinates: float32 at least, as half types lack their range."""
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    with torch.autocast(y.device.type, enabled=False):
        return F.conv2d(y, into.to(y)[..., None, None])


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


def of_cluster(old: RegionMoments, new: RegionMoments, metric: Tensor) -> tuple[Tensor, float]:
    """(k,) what the directions of some channels, made from ``old``, explain of ``new``, never rising; all there is.

    ``metric`` (m, m) has the squares of errors of these channels in the coordinates of the frame.
    """
    values, vectors = eigen(old.covariance)
    root = vectors * values.sqrt()
    found, v = eigen(root.T @ metric @ root)
    a = metric @ root @ (v * torch.where(found > ROUNDING * found[0], found.rsqrt(), 0))  # (m, k), of unit length
    shift = new.mean - old.mean
    about = new.covariance + torch.outer(shift, shift)
    gains = (a * (about @ a)).sum(0).clamp_min(0)
    return gains.cummin(0).values, (metric * about).sum().item()


def union(cells: Sequence[Seen]) -> Seen:
    """Of the union of regions, exactly."""
    if len(cells) == 1:
        return cells[0]
    part = pooled([cell.part for cell in cells])
    about = [cell.energy + (cell.part.target_mean - part.target_mean).square().sum().item() for cell in cells]
    weighted = sum(cell.part.count * energy for cell, energy in zip(cells, about, strict=True))
    return Seen(part, weighted / max(part.count, 1))
