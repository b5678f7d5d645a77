"""Moments in few directions say of structures what those in all of them say."""

from __future__ import annotations

import pytest
import torch
from hscc.maths import factors, frame
from hscc.maths.factors import Metric, Ridge
from hscc.maths.frame import Directions, Frame
from hscc.maths.moments import RegionMoments, pooled
from torch import Tensor

O = 12  # noqa: E741


def moments(y: Tensor, x: Tensor | None = None) -> RegionMoments:
    x = y if x is None else x
    dx, dy = x - x.mean(0), y - y.mean(0)
    return RegionMoments(float(len(x)), x.mean(0), dx.T @ dx / len(x), y.mean(0), dy.T @ dx / len(x))


def framed(metric: Metric, y: Tensor, most: int = O) -> Frame:
    whole = moments(y)
    return Frame.of(metric.root @ metric.root, whole.mean, whole.covariance, most)


def outputs(count: int, rank: int = O, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(rank, O, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.randn(count, rank, generator=generator, dtype=torch.float64) @ mix + torch.arange(O)


@pytest.fixture
def lossless(monkeypatch) -> None:
    monkeypatch.setattr(frame, "LOST", 1e-12)


@pytest.fixture
def metric() -> Metric:
    jacobian = torch.randn(O, O, dtype=torch.float64)
    return Metric.of(jacobian @ jacobian.T)


@pytest.mark.parametrize("rank", [O, 4])
def test_gains_are_those_of_all_directions(metric: Metric, lossless, rank: int) -> None:
    old, new = moments(outputs(300, rank, 1)), moments(outputs(200, rank, 2))
    few = framed(metric, outputs(500, rank))
    assert len(few.into) == rank
    a, b = (few.seen(moments(outputs(count, rank, seed) @ few.into.T)) for count, seed in ((300, 1), (200, 2)))
    found = Directions.of(a.part, None).gains(b.part)
    channels = torch.arange(O)
    wanted = factors.held_out_gains(factors.from_activations(old, channels, metric), metric, new, channels)[:rank]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4 * wanted[0].item())
    about = new.covariance + torch.outer(new.mean - old.mean, new.mean - old.mean)
    assert b.energy_about(a) == pytest.approx((metric.root @ about @ metric.root).trace().item())


def test_gains_of_a_regression_are_those_of_all_directions(metric: Metric, lossless) -> None:
    y = outputs(500)
    x = y @ torch.randn(O, O, dtype=torch.float64) * 0.3 + y
    few, channels = framed(metric, y), torch.arange(O)
    inside = [moments(y[part] @ few.into.T, x[part] @ few.into.T) for part in (slice(300), slice(300, None))]
    old, new = (moments(y[part], x[part]) for part in (slice(300), slice(300, None)))
    found = Directions.of(inside[0], 1e-9).gains(inside[1], falling=False)
    spectrum = factors.from_regression(old, channels, metric, Ridge(1e-9))
    wanted = factors.held_out_gains(spectrum, metric, new, channels, falling=False)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * wanted[0].item())


def test_clusters_gain_what_their_channels_do(lossless) -> None:
    """In a metric of their own, from moments in few directions of all channels."""
    old, new, channels = outputs(300, 5, 1), outputs(200, 5, 2), torch.tensor([1, 4, 5, 9, 10, 11])
    jacobian = torch.randn(O, O, dtype=torch.float64)
    gram = jacobian @ jacobian.T
    few, block = framed(Metric.of(gram), outputs(500, 5)), gram[channels][:, channels]
    a, b = (few.seen(moments(y @ few.into.T)).part for y in (old, new))
    back = few.back[channels]
    gains, energy = frame.of_cluster(a, b, (back.T @ block @ back).float())
    metric, (a, b) = Metric.of(block), (moments(y) for y in (old, new))
    wanted = factors.held_out_gains(factors.from_activations(a, channels, metric), metric, b, channels)
    torch.testing.assert_close(gains.double(), wanted[:5], rtol=1e-3, atol=1e-4 * wanted[0].item())
    about = (b.covariance + torch.outer(b.mean - a.mean, b.mean - a.mean))[channels][:, channels]
    assert energy == pytest.approx((metric.root @ about @ metric.root).trace().item(), rel=1e-4)


def test_few_directions_lose_little_and_no_more_than_asked(metric: Metric) -> None:
    y = outputs(400) * torch.logspace(0, -6, O, dtype=torch.float64)
    few = framed(metric, y)
    assert 1 <= len(few.into) < O
    seen, whole = few.seen(moments(y @ few.into.T)), moments(y).covariance
    assert seen.energy == pytest.approx((metric.root @ whole @ metric.root).trace().item())
    assert seen.part.covariance.trace().item() == pytest.approx(seen.energy, rel=2 * frame.LOST)
    assert len(framed(metric, y, 2).into) == 2
    assert len(framed(metric, torch.ones_like(y), 2).into) == 1


@pytest.mark.parametrize("most", [O, 5])
def test_outputs_come_back(metric: Metric, lossless, most: int) -> None:
    y = outputs(300)
    few, wanted = framed(metric, y, most), moments(y)
    back = few.outputs(moments(y @ few.into.T))
    torch.testing.assert_close(back.mean, wanted.mean)
    left = (metric.root @ (wanted.covariance - back.covariance) @ metric.root).trace().item()
    assert left == pytest.approx(few.lost, abs=1e-9)
    whole = Frame.whole(metric)
    torch.testing.assert_close(whole.outputs(moments(y @ whole.into.T)).covariance, wanted.covariance)


def test_unions_are_exact(metric: Metric) -> None:
    parts = [outputs(count, seed=count) + count / 50 for count in (100, 40, 60)]
    few = framed(metric, torch.cat(parts), 5)
    inside = [moments(part @ few.into.T) for part in parts]
    found, whole = frame.union([*map(few.seen, inside)]), few.seen(pooled(inside))
    assert found.energy == pytest.approx(whole.energy)
    torch.testing.assert_close(found.part.covariance, whole.part.covariance, rtol=1e-4, atol=1e-4)
    assert found.part.count == 200


def test_large_outputs_of_few_inputs_have_the_same_frame(monkeypatch) -> None:
    """As of a 1 x 1 layer with more outputs than inputs; the energies of its directions are far apart."""
    torch.manual_seed(0)
    outputs, inputs = 160, 40
    weight = torch.randn(outputs, inputs, dtype=torch.float64) * torch.logspace(0, -2, inputs, dtype=torch.float64)
    jacobian, mean = torch.randn(2 * outputs, outputs, dtype=torch.float64), torch.randn(outputs, dtype=torch.float64)
    gram, covariance = jacobian.T @ jacobian, weight @ weight.T
    whole = Frame.of(gram, mean, covariance, inputs)
    monkeypatch.setattr(frame, "LARGE", 100)
    own = Frame.of(gram, mean, covariance, inputs)
    assert own.into.shape == whole.into.shape
    torch.testing.assert_close(own.back @ own.into, whole.back @ whole.into)
    torch.testing.assert_close(own.into @ covariance @ own.into.T, whole.into @ covariance @ whole.into.T)
    assert own.lost == pytest.approx(whole.lost, abs=1e-12 * (gram @ covariance).trace().item())
    torch.testing.assert_close(own.into.T @ own.into @ covariance, gram @ covariance, rtol=1e-2, atol=1e-2)
