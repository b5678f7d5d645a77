"""Regions, clusters, factors and ranks, each against what it claims to be."""

from __future__ import annotations

import itertools
from dataclasses import replace

import hscc
import numpy as np
import pytest
import torch
from hscc.maths import clusters, factors, regions
from hscc.maths.factors import Metric
from hscc.maths.moments import Moments, Profile, RegionMoments, pooled
from hscc.search import allocate as search
from hscc.search import options, ranks
from hscc.search.cost import UNLIMITED, Cost


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


def plain(count: int) -> Metric:
    return Metric(torch.eye(count).double(), torch.eye(count).double())


def reconstruct(spectrum: factors.Spectrum, x: torch.Tensor, rank: int) -> torch.Tensor:
    return spectrum.target_mean + (x - spectrum.mean) @ spectrum.a[:rank].T @ spectrum.u[:, :rank].T


def low_rank_outputs(samples: int, rank: int, channels: int) -> torch.Tensor:
    y = torch.randn(samples, rank, dtype=torch.float64) @ torch.randn(rank, channels, dtype=torch.float64)
    return y + torch.rand(channels) * 5 + 0.1 * torch.randn_like(y)


def test_activation_factors_are_the_best_of_their_rank() -> None:
    y = low_rank_outputs(500, 4, 10)
    channels = torch.tensor([1, 2, 5, 8, 9])
    spectrum = factors.from_activations(moments(y, y), channels, plain(5))
    for rank in range(6):
        error = (reconstruct(spectrum, y, rank) - y[:, channels]).square().sum(1).mean().item()
        assert error == pytest.approx(spectrum.gains[rank:].sum().item(), abs=1e-9)
        centred = y[:, channels] - y[:, channels].mean(0)
        best = torch.linalg.svdvals(centred)[rank:].square().sum().item() / len(y)
        assert error == pytest.approx(best, abs=1e-9)


def test_a_metric_moves_the_error_to_channels_that_matter_less() -> None:
    y = low_rank_outputs(500, 6, 8)
    gram = torch.diag(torch.tensor([100.0, 100, 1, 1, 1, 1, 1, 1]).double())
    channels = torch.arange(8)
    metric = Metric.of(gram)
    torch.testing.assert_close(metric.root @ metric.inverse, torch.eye(8).double())
    errors = {}
    for name, chosen in (("plain", plain(8)), ("weighted", metric)):
        spectrum = factors.from_activations(moments(y, y), channels, chosen)
        errors[name] = (reconstruct(spectrum, y, 3) - y).square().mean(0)
        weighted = errors[name] @ (metric.root @ metric.root).diagonal()
        errors[name + " total"] = weighted
    assert errors["weighted"][:2].sum() < errors["plain"][:2].sum()
    assert errors["weighted total"] < errors["plain total"]
    assert errors["weighted"].sum() > errors["plain"].sum()


def test_regression_beats_projection_on_a_changed_input() -> None:
    y = torch.randn(800, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    x = y @ (torch.eye(8) + 0.3 * torch.randn(8, 8)).double() + 0.2 * torch.randn_like(y)
    channels = torch.arange(8)
    fitted = factors.from_regression(moments(x, y), channels, plain(8), factors.Ridge(1e-9))
    projected = factors.from_activations(moments(x, x), channels, plain(8))
    for rank in (1, 3, 6):
        error, other = ((reconstruct(s, x, rank) - y).square().sum(1).mean().item() for s in (fitted, projected))
        assert error < other
        energy = y.var(0, correction=0).sum().item()
        assert error == pytest.approx(energy - fitted.gains[:rank].sum().item(), rel=1e-6)


def test_weight_factors_are_the_plain_svd() -> None:
    weight, bias = torch.randn(6, 20, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    spectrum = factors.from_weight(weight, bias, torch.arange(6))
    got = spectrum.u[:, :3] @ (spectrum.a[:3] @ weight)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(got, u[:, :3] @ torch.diag(s[:3]) @ vt[:3])
    torch.testing.assert_close(spectrum.bias(bias, 3), bias)


def test_held_out_gains_are_those_of_the_other_data() -> None:
    y = low_rank_outputs(400, 4, 8)
    first, second = y[:200], y[200:]
    channels = torch.arange(8)
    spectrum = factors.from_activations(moments(first, first), channels, plain(8))
    gains = factors.held_out_gains(spectrum, plain(8), moments(second, second), channels)
    about = second - first.mean(0)
    kept = (about @ spectrum.u).square().mean(0)
    torch.testing.assert_close(gains, kept.cummin(0).values)


def test_picked_rows_explain_what_they_claim() -> None:
    y = low_rank_outputs(600, 5, 9)
    m = moments(y, y)
    rows = factors.shared_rows(m, plain(9), 6, factors.Ridge(0.0))
    errors = []
    for count in range(7):
        index, u = factors.pick_rows(m, rows, count, 0.0, plain(9))
        assert len(set(index.tolist())) == count
        errors.append((y - m.mean - (y - m.mean) @ rows[index].T @ u.T).square().sum(1).mean().item())
    assert errors == sorted(errors, reverse=True)
    direct = factors.from_activations(m, torch.arange(9), plain(9))
    assert errors[6] == pytest.approx(direct.gains[6:].sum().item(), rel=1e-6)


def group(gains, flops, dense, rest=0.0) -> ranks.Group:
    return ranks.Group(np.array(gains, dtype=float), rest, Cost(flops, flops), Cost(dense, dense))


def own(*groups: ranks.Group, multiple: int = 1) -> ranks.Own:
    return ranks.Own(groups, 0.0, Cost(0, 0), multiple)


def best_within(groups, budget: float) -> float:
    options = itertools.product(*(range(len(g.gains) + 1) for g in groups))
    return max(
        sum(g.gains[:r].sum() for r, g in zip(option, groups, strict=True))
        for option in options
        if sum(r * g.cost.flops for r, g in zip(option, groups, strict=True)) <= budget
    )


def test_budget_is_kept_and_spent_well() -> None:
    groups = [group([5, 3, 1, 0.5], 2.0, 100), group([4, 2, 0.1], 3.0, 100), group([0.9, 0.8, 0.7], 1.0, 100)]
    for budget in (0, 3, 7, 12, 20):
        chosen = search.choose({"a": [own(*groups)]}, Cost(300, 300), UNLIMITED._replace(flops=budget))
        choice = chosen["a"][1]
        assert choice.cost.flops <= budget
        assert choice.gain >= 0.8 * best_within(groups, budget)


def test_more_budget_never_gains_less() -> None:
    generator = np.random.default_rng(0)
    layers = {str(c): [own(group(np.sort(generator.random(9))[::-1], c, 9.5 * c))] for c in (1, 2, 5)}
    dense = Cost(76, 76)
    gains = [
        sum(choice.gain for _, choice in search.choose(layers, dense, UNLIMITED._replace(flops=budget)).values())
        for budget in range(0, 90, 5)
    ]
    assert gains == sorted(gains)
    assert gains[-1] == pytest.approx(sum(several[0].groups[0].gains.sum() for several in layers.values()))


def test_both_limits_hold() -> None:
    narrow = [ranks.Group(np.array([3.0, 2, 1]) + 0.1 * i, 0.0, Cost(1, 9), Cost(99, 99)) for i in range(4)]
    wide = [ranks.Group(np.array([3.0, 2, 1]) + 0.13 * i, 0.0, Cost(9, 1), Cost(99, 99)) for i in range(4)]
    for flops, parameters in ((20, 20), (40, 15), (15, 40)):
        limit = UNLIMITED._replace(flops=flops, parameters=parameters)
        _, choice = search.choose({"a": [own(*narrow, *wide)]}, Cost(792, 792), limit)["a"]
        assert choice.cost.flops <= limit.flops
        assert choice.cost.parameters <= limit.parameters
        assert choice.gain > 0


def test_the_better_structure_is_taken() -> None:
    poor, rich = own(group([1.0, 0.5], 1.0, 99)), own(group([2.0, 0.5], 1.0, 99))
    assert search.choose({"a": [poor, rich]}, Cost(99, 99), UNLIMITED._replace(flops=1))["a"][0] == 1


def test_a_budget_below_the_biases_is_refused() -> None:
    costly = ranks.Own([group([1.0], 1.0, 99)], 0.0, Cost(0, 50), 1)
    with pytest.raises(ValueError, match="got a limit of 20 parameters, expected at least 50 parameters, which"):
        search.choose({"a": [costly]}, Cost(99, 99), UNLIMITED._replace(parameters=20))


def test_a_regression_on_few_samples_stays_near_the_dense_layer() -> None:
    """Forty patch elements and twelve samples: what these do not show is as it was."""
    dense = torch.randn(8, 40, dtype=torch.float64)
    x = torch.randn(12, 40, dtype=torch.float64)
    found = factors.from_regression(
        moments(x, x @ dense.T * 1.05), torch.arange(8), plain(8), factors.Ridge(1e-3, dense)
    )
    fresh = torch.randn(99, 40, dtype=torch.float64)
    wanted, got = fresh @ dense.T, fresh @ (found.u @ found.a).T
    assert (got - wanted).square().mean() < 0.01 * wanted.square().mean()


def test_shared_rows_open_when_enough_regions_want_them() -> None:
    gains = np.array([[1.0, 0.4, 0.0], [1.0, 0.4, 0.9]])
    shared = ranks.Shared(gains, [Cost(1, 0), Cost(1, 0)], Cost(0, 1), 0.0, Cost(0, 0))
    choice = shared.at(Cost(0.1, 0.5))
    assert choice.ranks == (2, 3)
    assert choice.pool == 3
    choice = shared.at(Cost(0.1, 0.7))
    assert choice.ranks == (1, 2)
    assert choice.cost == Cost(3, 2)
    assert choice.gain == pytest.approx(2.9)


def test_dense_where_factors_are_not_cheaper() -> None:
    expensive = group([3, 2, 1], 4.0, 12.0)
    assert own(expensive).at(Cost(1e-9, 0)).ranks == (ranks.DENSE,)
    assert own(expensive).at(Cost(0.3, 0)).ranks == (2,)
    assert expensive.rank_keeping(0.99, 1) == ranks.DENSE


def test_energy_threshold_and_multiples() -> None:
    first, dead = group([6, 3, 0.9, 0.1], 1.0, 99), group([0, 0], 1.0, 99)
    assert [g.rank_keeping(0.9, 1) for g in (first, dead)] == [2, 0]
    assert first.rank_keeping(0.91, 1) == 3
    assert first.rank_keeping(0.91, 4) == 4
    assert own(first, multiple=2).at(Cost(2.0, 0)).ranks == (2,)


def test_merging_cells_keeps_their_moments() -> None:
    y = torch.randn(30, 5, 6, 6)
    y[..., 3:] += 4
    profile = profile_of(y)
    cells = regions.split(profile, "kmeans", 6, 0)
    empty = Moments.empty(cells.of_positions("cpu"), cells.means(profile))
    empty.add(y)
    merged, members = regions.merge(cells, profile, 2)
    assert merged.count == 2
    assert sorted(cell for part in members for cell in part) == list(range(cells.count))
    assert len(merged.labels[:, :3].unique()) == 1
    for region, part in enumerate(members):
        whole = pooled([empty.region(cell) for cell in part])
        rows = y.flatten(2)[:, :, (merged.labels.flatten() == region)].transpose(1, 2).flatten(0, 1).double()
        torch.testing.assert_close(whole.mean, rows.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(whole.covariance, torch.cov(rows.T, correction=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", [2, 4, 8, 30])
def test_structures_passed_over_are_hardly_missed(net, data, monkeypatch, reduction: float) -> None:
    """Squeezes that win at no price in one region are not looked at in several."""

    def error(plan: hscc.CompressionPlan) -> float:
        return sum(layer.error for layer in plan.layers.values())

    looked: list[int] = []
    of_layer = options._of_layer
    monkeypatch.setattr(options, "_of_layer", lambda *args: looked.append(len(found := of_layer(*args))) or found)
    config = hscc.Config(hscc.flops(reduction), regions=8)
    few, number = error(hscc.plan(net, data, config)), sum(looked)
    looked.clear()
    assert few <= 1.05 * error(hscc.plan(net, data, replace(config, effort="thorough"))) + 1e-4
    assert number < sum(looked)
