"""Streaming statistics of a layer's outputs: sums only, so memory is constant and parts can be merged exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

CONSTANT = 1e-6  # of the square of the mean: a smaller variance is rounding, as products are float32


@dataclass
class Profile:
    """First and second moments of each output position and channel; shapes (P, O), float64 sums.

    ``images`` counts the samples seen (each call of a module that is called twice is one), ``calls`` the calls of
    one forward pass. From the first map of another size on all positions are one: ``size`` is (1, 1), and ``rows``, the
    values of each of the P positions, are as many as the maps have positions. A map that counts when costs are told has
    ``repeats`` times P positions.
    """

    size: tuple[int, int]
    total: Tensor
    square: Tensor
    images: int = 0
    rows: int = 0
    calls: int = 1
    repeats: float = 1

    @classmethod
    def empty(cls, channels: int, size: tuple[int, int], device: torch.device) -> Profile:
        zeros = torch.zeros(size[0] * size[1], channels, dtype=torch.float64, device=device)
        return cls(size, zeros, zeros.clone())

    def add(self, y: Tensor) -> None:
        """y: (N, O, Ho, Wo)."""
        self.images += len(y)
        if self.size != tuple(y.shape[2:]):
            self.pool_()
            y = y.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        mean = y.mean(0)  # about it float32 is enough
        square = (y - mean).square_().sum(0).double() / len(y) + mean.double().square()
        self.total += len(y) * mean.double().flatten(1).T
        self.square += len(y) * square.flatten(1).T
        self.rows += len(y)

    def pool_(self) -> None:
        """From now on all positions are one."""
        self.rows *= len(self.total)
        self.total, self.square = self.total.sum(0, keepdim=True), self.square.sum(0, keepdim=True)
        self.size = (1, 1)

    @property
    def pooled(self) -> bool:
        return self.rows > self.images

    def count_(self, positions: int) -> None:
        """From now on a sample has so many in all calls of a pass, where all are one; as many as on average, if 0."""
        self.repeats = positions / self.calls if positions else self.rows / self.images

    @property
    def positions(self) -> int:
        """Of a sample in all calls of a pass."""
        return round(self.calls * len(self.total) * self.repeats)

    def merge(self, other: Profile) -> None:
        """Adds what another worker saw."""
        if other.total.shape != self.total.shape:
            raise ValueError(f"profile: got {tuple(other.total.shape)}, expected {tuple(self.total.shape)} to merge")
        self.total += other.total
        self.square += other.square
        self.images += other.images
        self.rows += other.rows

    def mean(self) -> Tensor:
        return self.total / self.rows

    def std(self) -> Tensor:
        return (self.square / self.rows - self.mean() ** 2).clamp_min(0).sqrt()


@dataclass
class Outer:
    """Uncentred second moments (C, C) of the channels of maps, float64 sum; ``positions`` of one map."""

    outer: Tensor
    positions: int

    @classmethod
    def empty(cls, channels: int, device: torch.device) -> Outer:
        return cls(torch.zeros(channels, channels, dtype=torch.float64, device=device), 0)

    def add(self, x: Tensor) -> None:
        """x: (N, C, H, W)."""
        rows = x.transpose(0, 1).flatten(1).float()
        self.outer += (rows @ rows.T).double()
        self.positions = x.shape[2:].numel()


class RegionMoments(NamedTuple):
    """Moments of one region (float64): of values x that can be computed (X of them) and of outputs y that are wanted.

    y is the dense layer's; x is what it gives on the inputs at hand, or the patches that it reads there.
    """

    count: float
    mean: Tensor  # [X] of x
    covariance: Tensor  # [X, X] of x
    target_mean: Tensor  # [O] of y
    cross: Tensor  # [O, X] E (y - mean y)(x - mean x)^T


@dataclass
class Moments:
    """Second moments over (sample, position) pairs, region by region; float64 sums about fixed shifts: (R, X) of the
    computable values, (R, O) of the wanted outputs."""

    labels: Tensor
    shift: Tensor
    target_shift: Tensor
    count: Tensor
    total: Tensor
    outer: Tensor
    target_total: Tensor
    cross: Tensor

    @classmethod
    def empty(cls, labels: Tensor, shift: Tensor, paired: bool = True, width: int | None = None) -> Moments:
        """labels: (P,) region of each position, or one of all positions of maps of any size; shift: (R, O), any guess
        of the means, the same on all workers.

        Where computable and wanted outputs will be the same (not ``paired``), their sums are too, and are held once.
        ``width`` X says that the computable values are others than the layer's outputs; they are not shifted.
        """
        own = shift if width is None else shift.new_zeros(len(shift), width)
        total, outer = torch.zeros_like(own), own.new_zeros(*own.shape, own.shape[1])
        target = (torch.zeros_like(shift), shift.new_zeros(*shift.shape, own.shape[1])) if paired else (total, outer)
        return cls(labels, own, shift, shift.new_zeros(len(shift)), total, outer, *target)

    def single(self) -> Moments:
        """Empty ones whose sums are float32, which is enough to compare."""
        return Moments.empty(self.labels, self.target_shift.float(), self.paired)

    @property
    def paired(self) -> bool:
        return self.cross is not self.outer

    def add(self, x: Tensor, y: Tensor | list[Tensor] | None = None) -> None:
        """x (N, X, Ho, Wo) computable, y (N, O, Ho, Wo) wanted, or what :meth:`wanted` made of it.

        y None: the same, and must be where not paired.
        """
        if y is not None and not self.paired:
            raise ValueError("moments: got wanted outputs of their own, expected paired moments for that")
        x_parts = self._split(x, self.shift)
        y_parts = x_parts if y is None else y if isinstance(y, list) else self.wanted(y)
        for region, (x_r, y_r) in enumerate(zip(x_parts, y_parts, strict=True)):
            outer = (x_r.T @ x_r).double()
            self.count[region] += x_r.shape[0]
            self.total[region] += x_r.sum(0, dtype=torch.float64)
            self.outer[region] += outer
            if self.paired:
                self.target_total[region] += y_r.sum(0, dtype=torch.float64)
                self.cross[region] += outer if y is None else (y_r.T @ x_r).double()

    def wanted(self, y: Tensor) -> list[Tensor]:
        """Of each region, for several moments of one map with the same shift."""
        return self._split(y, self.target_shift)

    def add_change(self, x: Tensor, change: Tensor) -> None:
        """Of the wanted outputs (N, O, Ho, Wo) of samples x that were added before."""
        parts = zip(self._split(x, self.shift), self._split(change), strict=True)
        for region, (x_r, change_r) in enumerate(parts):
            self.target_total[region] += change_r.sum(0, dtype=torch.float64)
            self.cross[region] += (change_r.T @ x_r).double()

    def _split(self, t: Tensor, shift: Tensor | None = None) -> list[Tensor]:
        """(N, X, Ho, Wo) -> [N p, X] of each region, about its shift."""
        rows = t.flatten(2).permute(2, 0, 1)
        if len(self.labels) == 1:
            parts = [rows.flatten(0, 1).float()]
        else:
            order, sizes = self.labels.argsort(stable=True), self.labels.bincount(minlength=len(self.shift)).tolist()
            parts = [part.flatten(0, 1) for part in rows[order].float().split(sizes)]
        return parts if shift is None else [part - s for part, s in zip(parts, shift.float(), strict=True)]

    def merge(self, other: Moments) -> None:
        """Adds what another worker saw with the same labels and shift."""
        fixed = ((m.labels, m.shift, m.target_shift) for m in (self, other))
        if not all(torch.equal(mine, others) for mine, others in zip(*fixed, strict=True)):
            raise ValueError("moments: got other labels or another shift, expected the same to merge")
        for mine, others in zip(self.sums, other.sums, strict=True):
            mine += others

    @property
    def sums(self) -> tuple[Tensor, ...]:
        """What adds up over parts of the data."""
        return self.count, self.total, self.outer, *((self.target_total, self.cross) if self.paired else ())

    def region(self, index: int) -> RegionMoments:
        seen = self.count[index].item()
        count = max(seen, 1.0)
        mean, target = self.total[index] / count, self.target_total[index] / count
        covariance = self.outer[index] / count - torch.outer(mean, mean)
        varies = (covariance.diagonal() > CONSTANT * mean.square()).to(covariance)
        covariance *= torch.outer(varies, varies)
        cross = (self.cross[index] / count - torch.outer(target, mean)) * varies if self.paired else covariance
        return RegionMoments(seen, mean + self.shift[index], covariance, target + self.target_shift[index], cross)


@dataclass
class SplitMoments:
    """Moments of two halves of the samples, so that gains are predicted on data that no factor has seen."""

    halves: tuple[Moments, Moments]
    seen: int = 0

    @property
    def labels(self) -> Tensor:
        return self.halves[0].labels

    @property
    def target_shift(self) -> Tensor:
        return self.halves[0].target_shift

    def total(self) -> Moments:
        """Of all samples."""
        total = Moments.empty(self.labels, self.target_shift, self.halves[0].paired)
        for half in self.halves:
            total.merge(half)
        return total

    @property
    def sums(self) -> tuple[Tensor, ...]:
        return tuple(total for half in self.halves for total in half.sums)

    def add(self, x: Tensor, y: Tensor | list[list[Tensor]] | None = None) -> None:
        """x, y: (N, O, Ho, Wo) as for :class:`Moments`; every other sample goes to the other half."""
        wanted = (None, None) if y is None else y if isinstance(y, list) else self.wanted(y)
        for start, (half, part) in enumerate(zip(self._order, wanted, strict=True)):
            half.add(x[start::2], part)
        self.seen += x.shape[0]

    def wanted(self, y: Tensor) -> list[list[Tensor]]:
        """As that of :class:`Moments`, of the samples that come next."""
        return [half.wanted(y[start::2]) for start, half in enumerate(self._order)]

    @property
    def _order(self) -> tuple[Moments, Moments]:
        """The half that the next sample goes to, and the other."""
        first = self.seen % 2
        return self.halves[first], self.halves[1 - first]


def pooled(parts: Sequence[RegionMoments]) -> RegionMoments:
    """Moments of the union of regions, exactly."""
    count = sum(part.count for part in parts)
    share = [part.count / max(count, 1) for part in parts]

    def mean(name: str) -> Tensor:
        return sum(w * getattr(part, name) for w, part in zip(share, parts, strict=True))

    x, y = mean("mean"), mean("target_mean")
    covariance, cross = mean("covariance"), mean("cross")
    for w, part in zip(share, parts, strict=True):
        covariance = covariance + w * torch.outer(part.mean - x, part.mean - x)
        cross = cross + w * torch.outer(part.target_mean - y, part.mean - x)
    return RegionMoments(count, x, covariance, y, cross)
