"""Distances from calibrated images: what is usual and how it varies, and a threshold that new images seldom pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FOLDS, FEWEST = 20, 10
_LEAST_SPREAD = 0.01  # of the root mean square: what never varied is no infinitely sharp instrument


class Whitening(NamedTuple):
    """Squared Mahalanobis distance of rows x: ``((x @ matrix - offset) ** 2).sum(1)``; float64 (d, d) and (d,)."""

    matrix: Tensor
    offset: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Whitening:
        """For float64 (n, d): the covariance is of features of spread 1, shrunk by Ledoit and Wolf (2004)."""
        mean, spread = x.mean(0), x.std(0, correction=0)
        least = _LEAST_SPREAD * spread.square().mean().sqrt() + 1e-4 * mean.square().mean().sqrt() + 1e-12
        spread = (spread.square() + least.square()).sqrt()
        lower = torch.linalg.cholesky(torch.linalg.inv(_shrunk((x - mean) / spread)))
        matrix = lower / spread[:, None]
        return cls(matrix, mean @ matrix)

    def distance(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,)."""
        return (x @ self.matrix - self.offset).square().sum(1)

    def over(self, scale: float) -> Whitening:
        """With squared distances divided by that."""
        return Whitening(self.matrix / scale**0.5, self.offset / scale**0.5)


def fitted(blocks: Sequence[Tensor]) -> tuple[list[Whitening], Tensor]:
    """The score is a distance: squared, the sum of the blocks' squared ones, each over how far its upper tail reaches.

    Args:
        blocks: float64 (n, d) each, of the same n images.

    Returns:
        A whitening a block, from all images; and the images' scores, each by fits without its twentieth: float64 (n,).

    Raises ValueError for fewer than :data:`FEWEST` images.
    """
    count = len(blocks[0])
    if count < FEWEST:
        raise ValueError(f"guard: got {count} images, expected at least {FEWEST}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    folds = order.tensor_split(min(FOLDS, count))
    whitenings, scores = [], torch.zeros(count, dtype=torch.float64)
    for block in blocks:
        held = torch.empty(count, dtype=torch.float64)
        for fold in folds:
            rest = torch.ones(count, dtype=torch.bool).index_fill(0, fold, False)
            held[fold] = Whitening.of(block[rest]).distance(block[fold])
        reach = max(float(held.quantile(0.95) - held.median()), 1.0)  # less is rounding
        whitenings.append(Whitening.of(block).over(reach))
        scores += held / reach
    return whitenings, scores.sqrt()


def threshold(scores: Tensor, false_alarms: float) -> float:
    """That a new image passes with at most about this probability, if it is of the kind of those of ``scores`` (n,).

    The conformal quantile of held-out scores; as each fit lacked a twentieth, these are a little too high.

    Raises ValueError for a share outside of 0..1, or one that takes more images than there are.
    """
    if not 0 < false_alarms < 1:
        raise ValueError(f"false_alarms: got {false_alarms}, expected a share between 0 and 1")
    rank = math.ceil((len(scores) + 1) * (1 - false_alarms) - 1e-9)
    if rank > len(scores):
        needed = math.ceil(1 / false_alarms - 1 - 1e-9)
        raise ValueError(f"guard: got {len(scores)} images, expected at least {needed} for false_alarms={false_alarms}")
    return float(scores.sort().values[rank - 1])


def _shrunk(z: Tensor) -> Tensor:
    """Ledoit and Wolf's covariance of (n, d) with mean 0: towards a multiple of the identity, which always inverts."""
    count, size = z.shape
    sample = z.T @ z / count
    mean = sample.trace() / size
    identity = torch.eye(size, dtype=z.dtype)
    distance = (sample - mean * identity).square().sum()
    noise = (z.square().sum(1).square().sum() / count - sample.square().sum()) / count
    share = float((noise / distance).clamp(0, 1)) if distance > 0 else 1.0
    return (1 - share) * sample + (share * mean + 1e-3) * identity
