"""Streaming statistics of a layer's outputs: sums only, so memory is constant and parts can be merged exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass
class Profile:
    """First and second moments of each output position and channel; shapes (P, O), float64 sums.

    ``images`` counts the samples seen (each call of a module that is called twice is one), ``calls`` the calls of
    one forward pass.
    """

    size: tuple[int, int]
    total: Tensor
    square: Tensor
    images: int = 0
    calls: int = 1

    @classmethod
    def empty(cls, channels: int, size: tuple[int, int], device: torch.device) -> Profile:
        zeros = torch.zeros(size[0] * size[1], channels, dtype=torch.float64, device=device)
        return cls(size, zeros, zeros.clone())

    def add(self, y: Tensor) -> None:
        """y: (N, O, Ho, Wo)."""
        rows = y.flatten(2).transpose(1, 2).double()  # [N, P, O]
        self.total += rows.sum(0)
        self.square += (rows * rows).sum(0)
        self.images += y.shape[0]

    def merge(self, other: Profile) -> None:
        """Adds what another worker saw."""
        if other.total.shape != self.total.shape:
            raise ValueError(f"profile: got {tuple(other.total.shape)}, expected {tuple(self.total.shape)} to merge")
        self.total += other.total
        self.square += other.square
        self.images += other.images

    def mean(self) -> Tensor:
        return self.total / self.images

    def std(self) -> Tensor:
        return (self.square / self.images - self.mean() ** 2).clamp_min(0).sqrt()


class RegionMoments(NamedTuple):
    """Moments of one region (float64): of the outputs x that can be computed and of the outputs y that are wanted.

    Both are the dense layer's outputs; they differ when x comes from a compressed prefix.
    """

    count: float
    mean: Tensor  # [O] of x
    covariance: Tensor  # [O, O] of x
    target_mean: Tensor  # [O] of y
    cross: Tensor  # [O, O] E (y - mean y)(x - mean x)^T


@dataclass
class Moments:
    """Second moments over (sample, position) pairs, region by region; float64 sums about a fixed ``shift`` (R, O)."""

    labels: Tensor
    shift: Tensor
    count: Tensor
    total: Tensor
    outer: Tensor
    target_total: Tensor
    cross: Tensor

    @classmethod
    def empty(cls, labels: Tensor, shift: Tensor) -> Moments:
        """labels: (P,) region of each position; shift: (R, O), any guess of the means, the same on all workers."""
        regions, channels = shift.shape
        zeros = shift.new_zeros
        outer = zeros(regions, channels, channels)
        return cls(labels, shift, zeros(regions), torch.zeros_like(shift), outer, zeros(shift.shape), outer.clone())

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """x, y: (N, O, Ho, Wo) computable and wanted outputs; y None means the same."""
        x = x.flatten(2).float()
        y = x if y is None else y.flatten(2).float()
        for region, shift in enumerate(self.shift.float()):
            place = (self.labels == region).nonzero().squeeze(1)
            x_r = x[:, :, place].transpose(1, 2).flatten(0, 1) - shift  # [N p, O]
            y_r = x_r if y is x else y[:, :, place].transpose(1, 2).flatten(0, 1) - shift
            outer = (x_r.T @ x_r).double()
            self.count[region] += x_r.shape[0]
            self.total[region] += x_r.double().sum(0)
            self.outer[region] += outer
            self.target_total[region] += y_r.double().sum(0)
            self.cross[region] += outer if y is x else (y_r.T @ x_r).double()

    def merge(self, other: Moments) -> None:
        """Adds what another worker saw with the same labels and shift."""
        if not (torch.equal(self.labels, other.labels) and torch.equal(self.shift, other.shift)):
            raise ValueError("moments: got other labels or another shift, expected the same to merge")
        for name in ("count", "total", "outer", "target_total", "cross"):
            getattr(self, name).add_(getattr(other, name))

    def region(self, index: int) -> RegionMoments:
        count = max(self.count[index].item(), 1.0)
        mean, target = self.total[index] / count, self.target_total[index] / count
        return RegionMoments(
            count,
            mean + self.shift[index],
            self.outer[index] / count - torch.outer(mean, mean),
            target + self.shift[index],
            self.cross[index] / count - torch.outer(target, mean),
        )
