"""Clusters the channels of a region by co-activation."""

from __future__ import annotations

import torch
from torch import Tensor


def split(covariance: Tensor, count: int, seed: int) -> tuple[Tensor, ...]:
    """Partitions channels into at most ``count`` clusters by the correlation of their activations.

    Args:
        covariance: (O, O) of one region.

    Returns:
        Index tensors (n,) int64, each sorted, that partition 0..O-1.
    """
    channels = covariance.shape[0]
    if count == 1 or channels <= count:
        return (torch.arange(channels),)
    from sklearn.cluster import SpectralClustering

    scale = covariance.diagonal().clamp_min(1e-12).rsqrt()
    correlation = (covariance * scale[:, None] * scale[None, :]).abs().clamp(0, 1)
    affinity = (correlation + correlation.T) / 2 + 1e-3  # one connected component, also with dead channels
    model = SpectralClustering(count, affinity="precomputed", assign_labels="cluster_qr", random_state=seed)
    labels = torch.from_numpy(model.fit_predict(affinity.cpu().numpy())).long()
    return tuple((labels == label).nonzero().squeeze(1) for label in labels.unique())
