"""Bounds of a mean drop: they hold as often as they say, and nothing is proven by a few images."""

from __future__ import annotations

import numpy as np
import pytest
from hscc.evaluation.paired import bounds


@pytest.mark.parametrize(("n", "lost", "won"), [(50, 0.05, 0.02), (300, 0.02, 0.01), (2000, 0.01, 0.005)])
def test_both_bounds_hold(n: int, lost: float, won: float) -> None:
    """In 19 of 20 draws, as nearly as 300 draws tell."""
    generator, above, below = np.random.default_rng(0), 0, 0
    for _ in range(300):
        u = generator.random(n)
        low, high = bounds(u < 1 - won, u >= lost, 0.95)
        above += low > lost - won
        below += high < lost - won
    assert above <= 25  # of 15 expected
    assert below <= 25


@pytest.mark.parametrize("n", [10, 1000])
def test_no_difference_is_no_proof(n: int) -> None:
    """The exact bound of a share never seen in n is 1 - 0.05^(1/n)."""
    low, high = bounds(np.ones(n), np.ones(n), 0.95)
    assert 0.8 * (1 - 0.05 ** (1 / n)) <= high <= 1.5 * (1 - 0.05 ** (1 / n))
    assert low == -high


def test_scores_of_any_size() -> None:
    generator = np.random.default_rng(0)
    before = generator.uniform(0.8, 1, 400)
    lost = generator.normal(0.01, 0.02, 400)
    low, high = bounds(before, before - lost, 0.95)
    error = 1.645 * lost.std() / 400**0.5
    assert high - lost.mean() == pytest.approx(error, rel=0.15)
    assert lost.mean() - low == pytest.approx(error, rel=0.15)
    assert bounds(before, before - lost, 0.95) == (low, high)


def test_more_confidence_is_wider() -> None:
    u = np.random.default_rng(0).random(500)
    assert bounds(u >= 0, u >= 0.02, 0.99)[1] > bounds(u >= 0, u >= 0.02, 0.95)[1]
