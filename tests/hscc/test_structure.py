"""Regions, clusters, factors and ranks, each against what it claims to be."""

from __future__ import annotations

import itertools

import pytest
import torch
from hscc import clusters, factors, ranks, regions
from hscc.stats import Profile, RegionMoments


def profile_of(y: torch.Tensor) -> Profile:
    profile = Profile.empty(y.shape[1], tuple(y.shape[2:]), y.device)
    profile.add(y)
    return profile


def test_kmeans_finds_the_dark_border() -> None:
    y = torch.randn(20, 6, 8, 8)
    y[..., :3] *= 0.01
    labels = regions.split(profile_of(y), "kmeans", 2, seed=0).labels
    assert labels[:, :3].unique().numel() == labels[:, 3:].unique().numel() == 1
    assert labels[0, 0] != labels[0, 7]


def test_grid_is_nearly_square() -> None:
    labels = regions.split(profile_of(torch.randn(2, 3, 6, 8)), "grid", 4, 0).labels
    assert labels[0, 0] != labels[0, 7] != labels[5, 7] != labels[5, 0]
    assert torch.bincount(labels.flatten()).tolist() == [12] * 4


@pytest.mark.parametrize(("method", "size"), [("kmeans", (1, 1)), ("grid", (1, 2)), ("none", (5, 5)), ("grid", (2, 1))])
def test_no_region_is_empty(method: str, size: tuple[int, int]) -> None:
    found = regions.split(profile_of(torch.randn(3, 4, *size)), method, 8, 0)
    assert min(found.sizes()) > 0
    assert sum(found.sizes()) == size[0] * size[1]


def test_kmeans_on_constant_profiles_is_one_region() -> None:
    assert regions.split(profile_of(torch.ones(3, 4, 5, 5)), "kmeans", 4, 0).count == 1


def test_clusters_find_channels_that_go_together() -> None:
    hidden = torch.randn(2000, 2, dtype=torch.float64)
    activations = hidden[:, torch.tensor([0, 1, 0, 1, 0, 1])] + 0.1 * torch.randn(2000, 6)
    found = clusters.split(torch.cov(activations.T), 2, seed=0)
    assert sorted(part.tolist() for part in found) == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("count", [1, 3, 7, 12])
def test_clusters_partition_also_dead_channels(count: int) -> None:
    covariance = torch.cov(torch.randn(9, 100)).double()
    covariance[4] = covariance[:, 4] = 0
    found = clusters.split(covariance, count, seed=0)
    assert torch.cat(found).sort().values.tolist() == list(range(9))
    assert len(found) <= count


def moments(x: torch.Tensor, y: torch.Tensor) -> RegionMoments:
    """x, y: (samples, O)."""
    dx, dy = x - x.mean(0), y - y.mean(0)
    return RegionMoments(len(x), x.mean(0), dx.T @ dx / len(x), y.mean(0), dy.T @ dx / len(x))


def reconstruct(spectrum: factors.Spectrum, x: torch.Tensor, rank: int) -> torch.Tensor:
    return spectrum.target_mean + (x - spectrum.mean) @ spectrum.a[:rank].T @ spectrum.u[:, :rank].T


def test_activation_factors_are_the_best_of_their_rank() -> None:
    y = torch.randn(500, 4, dtype=torch.float64) @ torch.randn(4, 10, dtype=torch.float64) + torch.rand(10) * 5
    y += 0.1 * torch.randn_like(y)
    channels = torch.tensor([1, 2, 5, 8, 9])
    spectrum = factors.from_activations(moments(y, y), channels)
    for rank in range(6):
        error = (reconstruct(spectrum, y, rank) - y[:, channels]).square().sum(1).mean().item()
        assert error == pytest.approx(spectrum.gains[rank:].sum().item(), abs=1e-9)
        centred = y[:, channels] - y[:, channels].mean(0)
        best = torch.linalg.svdvals(centred)[rank:].square().sum().item() / len(y)
        assert error == pytest.approx(best, abs=1e-9)


def test_regression_beats_projection_on_a_changed_input() -> None:
    y = torch.randn(800, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    x = y @ (torch.eye(8) + 0.3 * torch.randn(8, 8)).double() + 0.2 * torch.randn_like(y)
    channels = torch.arange(8)
    fitted = factors.from_regression(moments(x, y), channels, y.var(0, correction=0).sum().item(), ridge=1e-9)
    plain = factors.from_activations(moments(x, x), channels)
    for rank in (1, 3, 6):
        error, other = ((reconstruct(s, x, rank) - y).square().sum(1).mean().item() for s in (fitted, plain))
        assert error < other
        assert error == pytest.approx(fitted.energy - fitted.gains[:rank].sum().item(), rel=1e-6)


def test_weight_factors_are_the_plain_svd() -> None:
    weight, bias = torch.randn(6, 20, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    spectrum = factors.from_weight(weight, bias, torch.arange(6))
    got = spectrum.u[:, :3] @ (spectrum.a[:3] @ weight)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(got, u[:, :3] @ torch.diag(s[:3]) @ vt[:3])
    torch.testing.assert_close(spectrum.bias(bias, 3), bias)


def group(gains, cost, dense, rest=0.0) -> ranks.Group:
    return ranks.Group(torch.tensor(gains, dtype=torch.float64), rest, cost, dense)


def test_budget_is_kept_and_spent_best() -> None:
    groups = [group([5, 3, 1, 0.5], 2.0, 100), group([4, 2, 0.1], 3.0, 100), group([0.9, 0.8, 0.7], 1.0, 100)]
    for budget in (0, 3, 7, 12, 20):
        chosen = ranks.by_cost(groups, budget, 1)
        spent = sum(rank * g.cost for rank, g in zip(chosen, groups, strict=True))
        gain = sum(g.gains[:rank].sum().item() for rank, g in zip(chosen, groups, strict=True))
        assert spent <= budget
        options = itertools.product(*(range(len(g.gains) + 1) for g in groups))
        best = max(
            sum(g.gains[:r].sum().item() for r, g in zip(option, groups, strict=True))
            for option in options
            if sum(r * g.cost for r, g in zip(option, groups, strict=True)) <= budget
        )
        assert gain >= 0.85 * best


def test_more_budget_never_gains_less() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = [
        group(torch.rand(9, generator=generator).sort(descending=True).values.tolist(), c, 9.5 * c) for c in (1, 2, 5)
    ]
    gains = []
    for budget in range(0, 90, 5):
        chosen = ranks.by_cost(groups, budget, 1)
        gains.append(
            sum(g.gains[: len(g.gains) if r < 0 else r].sum().item() for r, g in zip(chosen, groups, strict=True))
        )
    assert gains == sorted(gains)
    assert ranks.by_cost(groups, 1e9, 1) == [9] * 3  # lossless and cheaper than dense


def test_dense_where_factors_are_not_cheaper() -> None:
    assert ranks.by_cost([group([3, 2, 1], 4.0, 10.0)], 10.0, 1) == [ranks.DENSE]
    assert ranks.by_cost([group([3, 2, 1], 4.0, 10.0)], 9.0, 1) == [2]
    assert ranks.by_energy([group([3, 2, 1], 4.0, 10.0)], 0.99, 1) == [ranks.DENSE]


def test_energy_threshold_and_multiples() -> None:
    groups = [group([6, 3, 0.9, 0.1], 1.0, 99), group([0, 0], 1.0, 99)]
    assert ranks.by_energy(groups, 0.9, 1) == [2, 0]
    assert ranks.by_energy(groups, 0.91, 1) == [3, 0]
    assert ranks.by_energy(groups, 0.91, 4) == [4, 0]
    assert ranks.by_cost(groups, 3.0, 2) == [2, 0]
