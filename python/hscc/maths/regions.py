"""Splits an output map into spatial regions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .moments import Profile


@dataclass(frozen=True)
class RegionMap:
    """labels: (Ho, Wo) int64 in [0, count); each region holds at least one position."""

    labels: Tensor
    count: int

    def sizes(self) -> list[int]:
        """Positions of each region."""
        return torch.bincount(self.labels.reshape(-1), minlength=self.count).tolist()

    def of_positions(self, device: torch.device) -> Tensor:
        """(P,) region of each position."""
        return self.labels.reshape(-1).to(device)

    def means(self, profile: Profile) -> Tensor:
        """(count, O) of the profiled outputs in each region."""
        labels = self.of_positions(profile.total.device)
        sums = profile.total.new_zeros(self.count, profile.total.shape[1]).index_add_(0, labels, profile.mean())
        return sums / torch.bincount(labels, minlength=self.count).clamp_min(1)[:, None]


def split(profile: Profile, method: str, count: int, seed: int) -> RegionMap:
    """At most ``count`` regions by "kmeans" on position profiles, by "grid", or one region ("none")."""
    if method == "none" or count == 1:
        labels = torch.zeros(profile.size, dtype=torch.int64)
    elif method == "grid":
        labels = _grid(profile.size, count)
    else:
        labels = _kmeans(profile, count, seed)
    values, labels = labels.unique(return_inverse=True)  # drops regions without a position
    return RegionMap(labels, len(values))


def _grid(size: tuple[int, int], count: int) -> Tensor:
    """The most nearly square grid of that many rectangles."""
    rows = max(n for n in range(1, count + 1) if count % n == 0 and n * n <= count)
    columns = count // rows
    row = torch.arange(size[0]) * rows // size[0]
    column = torch.arange(size[1]) * columns // size[1]
    return row[:, None] * columns + column[None, :]


def _kmeans(profile: Profile, count: int, seed: int) -> Tensor:
    """k-means on each position's mean and spread, channel by channel."""
    from sklearn.cluster import KMeans

    features = torch.cat([profile.mean(), profile.std()], dim=1).float().cpu()  # [P, 2 O]
    distinct = len(features.unique(dim=0))
    model = KMeans(min(count, distinct), n_init=4, random_state=seed)
    return torch.from_numpy(model.fit_predict(features.numpy())).long().view(profile.size)


def merge(cells: RegionMap, profile: Profile, count: int) -> tuple[RegionMap, tuple[tuple[int, ...], ...]]:
    """Joins the cells that look most alike (Ward) until ``count`` are left; also the cells of each region."""
    if count >= cells.count:
        return cells, tuple((cell,) for cell in range(cells.count))
    from scipy.cluster.hierarchy import fcluster, linkage

    labels = cells.labels.reshape(-1)
    features = torch.cat([profile.mean(), profile.std()], dim=1).cpu()
    means = torch.zeros(cells.count, features.shape[1], dtype=features.dtype).index_add_(0, labels, features)
    means /= torch.tensor(cells.sizes())[:, None]
    groups = torch.from_numpy(fcluster(linkage(means.numpy(), "ward"), count, "maxclust")).long()
    values, region = groups.unique(return_inverse=True)
    members = tuple(tuple((region == index).nonzero().squeeze(1).tolist()) for index in range(len(values)))
    return RegionMap(region[cells.labels], len(values)), members
