"""Low-rank factors of the outputs of one region. Derivations: ``docs/math.md``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .moments import RegionMoments

ENOUGH = 1e4  # samples and positions of a region at which its ridge is twice that of many
ROUNDING = 1e-9  # of the mean: what eigenvalues of a metric are at least
SENSITIVITY_FLOOR = 0.1  # of the mean: a channel that looks irrelevant on few images still counts a little


class Metric(NamedTuple):
    """Symmetric root T (n, n) of the metric in which errors are measured, and its inverse."""

    root: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, gram: Tensor) -> Metric:
        """From the sensitivity (n, n) of some channels."""
        values, vectors = torch.linalg.eigh(gram)
        values = values.clamp_min(ROUNDING * gram.diagonal().mean())
        return cls((vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T)

    @classmethod
    def plain(cls, count: int, like: Tensor) -> Metric:
        """Of coordinates that all count the same."""
        one = torch.eye(count).to(like)
        return cls(one, one)


class Basis(NamedTuple):
    """What rows are made of: X values x = weight p + offset of a patch p (D,), weight (X, D), offset (X,).

    ``dense`` (O, X) gives the dense layer's outputs from them, up to a constant.
    """

    weight: Tensor
    offset: Tensor
    dense: Tensor

    @classmethod
    def outputs(cls, rows: Tensor, bias: Tensor) -> Basis:
        """The outputs of the dense layer of weight rows (O, D)."""
        return cls(rows, bias, torch.eye(len(rows)).to(rows))

    @classmethod
    def patches(cls, rows: Tensor) -> Basis:
        """The patches themselves."""
        return cls(torch.eye(rows.shape[1]).to(rows), rows.new_zeros(rows.shape[1]), rows)


class Ridge(NamedTuple):
    """What a regression is drawn towards, and how strongly.

    ``strength`` is relative to the mean variance of the computable values, more where samples are few; ``dense`` (O, X)
    is that of a :class:`Basis`, or None: the computable outputs as they are.
    """

    strength: float
    dense: Tensor | None = None


class Spectrum(NamedTuple):
    """All directions of a cluster, strongest first: cut at a rank, y ~ target + U A (x - mean).

    Args:
        gains: (m,) what each direction explains, per position.
        u: (n, m) second stage; a: (m, X) rows over a basis.
        target_mean: (n,) of the wanted outputs; mean: (X,) of the computable values.
    """

    gains: Tensor
    u: Tensor
    a: Tensor
    target_mean: Tensor
    mean: Tensor

    def bias(self, offset: Tensor, rank: int) -> Tensor:
        """The cluster's bias (n,) when cut at that rank; ``offset`` (X,) is the basis's."""
        return self.target_mean + self.u[:, :rank] @ (self.a[:rank] @ (offset - self.mean))


def floored(gram: Tensor, units: Tensor) -> Tensor:
    """The sensitivity (n, n) of some channels, each of which counts a little, in its unit (n,)."""
    of_channels = gram.diagonal() / units.square()
    return gram + torch.diag(SENSITIVITY_FLOOR * of_channels.mean().clamp_min(1e-30) * units.square())


def from_activations(moments: RegionMoments, channels: Tensor, metric: Metric) -> Spectrum:
    """Directions that explain most output energy: eigenvectors of the covariance of the cluster's outputs."""
    gains, u = eigen(metric.root @ moments.covariance[channels][:, channels] @ metric.root)
    a = u.T @ metric.root @ _select(channels, len(moments.mean))
    return Spectrum(gains, metric.inverse @ u, a, moments.target_mean[channels], moments.mean)


def from_regression(moments: RegionMoments, channels: Tensor, metric: Metric, ridge: Ridge) -> Spectrum:
    """Reduced-rank regression of the wanted outputs on the computable values (Zhang et al. 2015, in moments)."""
    prior = _select(channels, len(moments.mean)) if ridge.dense is None else ridge.dense[channels]
    left = moments.cross[channels] - prior @ moments.covariance
    g = prior + regress(left, moments.covariance, ridge.strength * (1 + ENOUGH / max(moments.count, 1.0)))
    gains, u = eigen(metric.root @ g @ moments.cross[channels].T @ metric.root)
    return Spectrum(gains, metric.inverse @ u, u.T @ metric.root @ g, moments.target_mean[channels], moments.mean)


def from_weight(weight: Tensor, bias: Tensor, channels: Tensor) -> Spectrum:
    """Plain SVD of the cluster's weight rows (O, D); the bias stays."""
    u, s, _ = torch.linalg.svd(weight[channels], full_matrices=False)
    return Spectrum(s**2, u, u.T @ _select(channels, weight.shape[0]), bias[channels], bias)


def held_out_gains(
    spectrum: Spectrum, metric: Metric, moments: RegionMoments, channels: Tensor, falling: bool = True
) -> Tensor:
    """(m,) gain of each direction on other data than the spectrum's; ``falling``: never rising."""
    shift, target_shift = moments.mean - spectrum.mean, (moments.target_mean[channels] - spectrum.target_mean)
    covariance = moments.covariance + torch.outer(shift, shift)
    cross = moments.cross[channels] + torch.outer(target_shift, shift)
    wanted = (metric.root @ spectrum.u).T @ metric.root @ cross  # [m, X]; metric.root @ u is orthonormal
    gains = (2 * (wanted * spectrum.a).sum(1) - (spectrum.a @ covariance * spectrum.a).sum(1)).clamp_min(0)
    return gains.cummin(0).values if falling else gains


def shared_rows(moments: RegionMoments, metric: Metric, count: int, ridge: Ridge) -> Tensor:
    """(count, X) rows that serve all regions: those of the pooled within-region moments."""
    everything = torch.arange(len(moments.target_mean), device=moments.mean.device)
    return from_regression(moments, everything, metric, ridge).a[:count]


def pick_rows(moments: RegionMoments, rows: Tensor, count: int, ridge: float, metric: Metric) -> tuple[Tensor, Tensor]:
    """The ``count`` of the shared rows (q, X) that explain most in a region, and U (O, count) by least squares.

    Orthogonal forward selection: each step takes the row that explains most of what is left.
    """
    gram = rows @ moments.covariance @ rows.T  # [q, q]
    target = metric.root @ moments.cross @ rows.T  # [O, q]
    floor = 1e-9 * gram.diagonal().max().clamp_min(1e-30)
    left, toward, chosen = gram.clone(), target.clone(), []
    for _ in range(count):
        score = toward.square().sum(0) / left.diagonal().clamp_min(floor)
        score[chosen] = -1.0
        best = int(score.argmax())
        chosen.append(best)
        column = left[:, best] / left[best, best].clamp_min(floor)
        toward = toward - torch.outer(toward[:, best], column)
        left = left - torch.outer(left[:, best], column)
    index = torch.tensor(sorted(chosen), dtype=torch.int64, device=rows.device)
    return index, regress(moments.cross @ rows[index].T, gram[index][:, index], ridge)


def regress(cross: Tensor, covariance: Tensor, ridge: float) -> Tensor:
    """cross (covariance + ridge)^-1; the tiny floor keeps dead channels solvable."""
    if not len(covariance):
        return cross
    variance = covariance.diagonal().mean().clamp_min(1e-30)
    regularised = covariance + max(ridge, 1e-10) * variance * torch.eye(len(covariance)).to(covariance)
    return torch.linalg.solve(regularised, cross.T).T


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (not below 0) and eigenvectors, largest first, with signs fixed so that runs agree."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * largest.sign()


def _select(channels: Tensor, total: int) -> Tensor:
    """(n, O) rows of the identity."""
    return torch.eye(total, dtype=torch.float64, device=channels.device)[channels]
