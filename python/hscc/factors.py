"""Low-rank factors of one cluster of one region, rank by rank. Derivations: ``docs/math.md``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .stats import RegionMoments


class Spectrum(NamedTuple):
    """All singular directions of a cluster, strongest first: cut at a rank, y ~ target + U A (y' - mean), V = A W.

    Args:
        gains: (m,) output energy of each direction, per position.
        energy: output energy of the whole cluster, per position.
        u: (n, m) second stage; a: (m, O) rows over the dense layer's outputs.
        target_mean: (n,) of the wanted outputs; mean: (O,) of the computable ones.
    """

    gains: Tensor
    energy: float
    u: Tensor
    a: Tensor
    target_mean: Tensor
    mean: Tensor

    def bias(self, bias: Tensor, rank: int) -> Tensor:
        """The cluster's bias (n,) when cut at that rank; ``bias`` (O,) is the dense layer's."""
        return self.target_mean + self.u[:, :rank] @ (self.a[:rank] @ (bias - self.mean))


def from_activations(moments: RegionMoments, channels: Tensor) -> Spectrum:
    """Directions that explain most output energy: eigenvectors of the covariance of the cluster's outputs."""
    covariance = moments.covariance[channels][:, channels]
    gains, u = _eigen(covariance)
    return Spectrum(
        gains,
        covariance.diagonal().sum().item(),
        u,
        u.T @ _select(channels, len(moments.mean)),
        moments.target_mean[channels],
        moments.mean,
    )


def from_regression(moments: RegionMoments, channels: Tensor, energy: float, ridge: float) -> Spectrum:
    """Reduced-rank regression of the wanted outputs on the computable ones (Zhang et al. 2015, in O x O moments).

    ``energy`` is that of the wanted outputs; ``ridge`` is relative to the mean variance of the computable ones.
    """
    cross = moments.cross[channels]  # [n, O]
    variance = moments.covariance.diagonal().mean().clamp_min(1e-30)
    regularised = moments.covariance + ridge * variance * torch.eye(len(moments.mean)).to(moments.covariance)
    g = torch.linalg.solve(regularised, cross.T).T  # [n, O]
    explained = g @ cross.T
    gains, u = _eigen((explained + explained.T) / 2)
    return Spectrum(gains, energy, u, u.T @ g, moments.target_mean[channels], moments.mean)


def from_weight(weight: Tensor, bias: Tensor, channels: Tensor) -> Spectrum:
    """Plain SVD of the cluster's weight rows (O, D); the bias stays."""
    block = weight[channels]
    u, s, _ = torch.linalg.svd(block, full_matrices=False)
    a = u.T @ _select(channels, weight.shape[0])
    return Spectrum(s**2, (block**2).sum().item(), u, a, bias[channels], bias)


def _eigen(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (not below 0) and eigenvectors, largest first, with signs fixed so that runs agree."""
    values, vectors = torch.linalg.eigh(symmetric)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * largest.sign()


def _select(channels: Tensor, total: int) -> Tensor:
    """(n, O) rows of the identity."""
    return torch.eye(total, dtype=torch.float64, device=channels.device)[channels]
