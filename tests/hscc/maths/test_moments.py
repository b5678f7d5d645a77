"""Streaming sums against the moments of all data at once; merging is exact."""

from __future__ import annotations

import pytest
import torch
from hscc.maths import factors
from hscc.maths.moments import Moments, Profile

Y = torch.randn(12, 5, 4, 3) * torch.rand(5, 1, 1) + 7.0
LABELS = torch.randint(3, (12,), generator=torch.Generator().manual_seed(0))
SHIFT = Y.double().mean((0, 2, 3)).expand(3, -1).contiguous()


def profile_of(*parts: torch.Tensor) -> Profile:
    profile = Profile.empty(5, (4, 3), torch.device("cpu"))
    for part in parts:
        profile.add(part)
    return profile


def moments_of(*parts: tuple[torch.Tensor, ...]) -> Moments:
    moments = Moments.empty(LABELS, SHIFT)
    for part in parts:
        moments.add(*part)
    return moments


def test_profile() -> None:
    profile = profile_of(*Y.split(5))
    rows = Y.double().flatten(2).transpose(1, 2)
    torch.testing.assert_close(profile.mean(), rows.mean(0), rtol=1e-5, atol=1e-6)  # of float32 batches
    torch.testing.assert_close(profile.std(), rows.std(0, correction=0), rtol=1e-5, atol=1e-6)


def test_a_profile_of_several_sizes_has_one_position() -> None:
    parts = Y, torch.randn(3, 5, 2, 7), torch.randn(4, 5, 4, 3)
    profile = profile_of(*parts)
    rows = torch.cat([y.double().flatten(2).transpose(1, 2).flatten(0, 1) for y in parts])
    assert (profile.size, profile.images, profile.rows) == ((1, 1), 19, len(rows))
    assert profile.pooled
    assert [profile.count_(n) or profile.positions for n in (7, 0)] == [7, round(len(rows) / 19)]
    torch.testing.assert_close(profile.mean(), rows.mean(0)[None], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(profile.std(), rows.std(0, correction=0)[None], rtol=1e-5, atol=1e-6)


def test_moments_of_maps_of_any_size() -> None:
    """One label is that of all positions."""
    parts = Y, torch.randn(3, 5, 2, 7)
    moments = Moments.empty(torch.zeros(1, dtype=torch.int64), SHIFT[:1])
    for y in parts:
        moments.add(y, 2 * y)
    rows = torch.cat([y.double().flatten(2).transpose(1, 2).flatten(0, 1) for y in parts])
    got = moments.region(0)
    assert got.count == len(rows)
    torch.testing.assert_close(got.mean, rows.mean(0))
    torch.testing.assert_close(got.cross, 2 * torch.cov(rows.T, correction=0), rtol=1e-5, atol=1e-6)


def test_profile_merge_is_exact() -> None:
    whole, first, second = profile_of(Y[:5], Y[5:]), profile_of(Y[:5]), profile_of(Y[5:])
    first.merge(second)
    assert torch.equal(first.total, whole.total)
    assert torch.equal(first.square, whole.square)
    assert first.images == whole.images == 12
    with pytest.raises(ValueError, match=r"profile: got \(12, 4\), expected \(12, 5\) to merge"):
        first.merge(Profile.empty(4, (4, 3), torch.device("cpu")))


def test_moments() -> None:
    x = Y + 0.3 * torch.randn_like(Y)
    moments = moments_of(*zip(x.split(5), Y.split(5), strict=True))
    for region in range(3):
        place = (region == LABELS).nonzero().squeeze(1)
        x_r, y_r = (t.flatten(2)[:, :, place].transpose(1, 2).flatten(0, 1).double() for t in (x, Y))
        got = moments.region(region)
        torch.testing.assert_close(got.mean, x_r.mean(0))
        torch.testing.assert_close(got.target_mean, y_r.mean(0))
        torch.testing.assert_close(got.covariance, torch.cov(x_r.T, correction=0), rtol=1e-5, atol=1e-6)
        cross = (y_r - y_r.mean(0)).T @ (x_r - x_r.mean(0)) / len(x_r)
        torch.testing.assert_close(got.cross, cross, rtol=1e-5, atol=1e-6)


def test_moments_of_other_values_than_outputs() -> None:
    """As many as there are; a change of the wanted outputs is as if they had been so from the start."""
    x, change = torch.randn(12, 2, 4, 3) + 5, torch.randn_like(Y)
    moments, changed = (Moments.empty(LABELS, SHIFT, width=2) for _ in range(2))
    moments.add(x, Y)
    changed.add(x, Y + change)
    moments.add_change(x, change)
    for region in range(3):
        for got, wanted in zip(moments.region(region), changed.region(region), strict=True):
            torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(wanted), rtol=1e-4, atol=1e-4)
        place = (region == LABELS).nonzero().squeeze(1)
        x_r, y_r = (t.flatten(2)[:, :, place].transpose(1, 2).flatten(0, 1).double() for t in (x, Y + change))
        torch.testing.assert_close(changed.region(region).mean, x_r.mean(0))
        cross = (y_r - y_r.mean(0)).T @ (x_r - x_r.mean(0)) / len(x_r)
        torch.testing.assert_close(changed.region(region).cross, cross, rtol=1e-4, atol=1e-4)


def test_moments_merge_is_exact() -> None:
    whole, first, second = moments_of((Y[:5],), (Y[5:],)), moments_of((Y[:5],)), moments_of((Y[5:],))
    first.merge(second)
    for name in ("count", "total", "outer", "target_total", "cross"):
        assert torch.equal(getattr(first, name), getattr(whole, name)), name
    with pytest.raises(ValueError, match="expected the same to merge"):
        first.merge(Moments.empty(LABELS, SHIFT + 1))
    with pytest.raises(ValueError, match="moments: got other labels or another shift"):
        Moments.empty(LABELS, SHIFT, width=2).merge(Moments.empty(LABELS, SHIFT + 1, width=2))


def test_moments_of_equal_outputs_are_held_once() -> None:
    paired, single = moments_of((Y,)), Moments.empty(LABELS, SHIFT, paired=False)
    single.add(Y[:5])
    rest = Moments.empty(LABELS, SHIFT, paired=False)
    rest.add(Y[5:])
    single.merge(rest)
    assert single.cross is single.outer
    assert len(single.sums) < len(paired.sums)
    for region in range(3):
        for one, other in zip(single.region(region), paired.region(region), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="expected paired moments"):
        single.add(Y, Y + 1)


def test_values_that_do_not_vary_have_no_moments_of_rounding() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 5, 5) + 3
    x[:, 1] = 1.2345  # whose float32 squares do not add up to the square of its mean
    paired = Moments.empty(torch.zeros(25, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.float64), width=3)
    for part in x.split(16):
        paired.add(part, part[:, :2] * 2)
    one = paired.region(0)
    assert not one.covariance[1].any()
    assert not one.covariance[:, 1].any()
    assert not one.cross[:, 1].any()
    variance = x[:, 0].double().var(correction=0)
    torch.testing.assert_close(one.covariance[0, 0], variance, rtol=1e-5, atol=0)


def test_a_region_where_nothing_varies_can_be_fitted() -> None:
    values = torch.full((16, 4, 3, 3), 0.7)
    moments = Moments.empty(torch.zeros(9, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.float64), width=4)
    for _ in range(7):
        moments.add(values, values)
    dense = torch.randn(4, 4, dtype=torch.float64)
    every, plain = torch.arange(4), factors.Metric.plain(4, dense)
    full = factors.from_regression(moments.region(0), every, plain, factors.Ridge(1e-3, dense))
    assert torch.isfinite(full.a).all()
