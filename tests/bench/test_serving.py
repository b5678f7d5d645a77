"""The load of ``bench.serving`` notices wrong answers."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from bench.serving.load import closed
from bench.serving.targets import WrongAnswer, checked

EXPECTED = [np.full((2, 3), value, np.float32) for value in (1.0, 2.0, 3.0)]


def asked(found: list[np.ndarray]) -> None:
    async def one(question: int) -> np.ndarray:
        return found[question]

    async def all_of_them() -> None:
        ask = checked(one, EXPECTED)
        for _ in EXPECTED:
            await ask()

    asyncio.run(all_of_them())


def test_answers_as_expected() -> None:
    asked([value * (1 + 1e-4) for value in EXPECTED])


@pytest.mark.parametrize(
    "found",
    [[EXPECTED[0], EXPECTED[2], EXPECTED[1]], [EXPECTED[0] * np.nan, *EXPECTED[1:]], [EXPECTED[0][:1], *EXPECTED[1:]]],
    ids=["another one's", "NaN", "a row is missing"],
)
def test_wrong_ones(found: list[np.ndarray]) -> None:
    with pytest.raises(WrongAnswer):
        asked(found)


def test_they_are_counted_as_refused() -> None:
    async def one(question: int) -> np.ndarray:
        await asyncio.sleep(0.001)
        return EXPECTED[0]

    load = asyncio.run(closed(checked(one, EXPECTED), 3, 0.1))
    assert load.refused["WrongAnswer"] == pytest.approx(2 * len(load.latencies), abs=3)
