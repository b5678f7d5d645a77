"""Verdicts on constructed cases, how often they are wrong, and whether the number of images asked for is enough."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hscc.evaluation.verdict import check, images_needed, judge, judge_all, sentence, worst


def scores(n: int, lost: int, won: int, wrong: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correctness of n images before and after, so many of them lost, won, and wrong in both."""
    before, after = np.ones(n), np.ones(n)
    after[:lost] = before[lost : lost + won] = 0
    before[lost + won : lost + won + wrong] = after[lost + won : lost + won + wrong] = 0
    return before, after


@pytest.mark.parametrize(
    ("n", "lost", "won", "answer"),
    [
        (5000, 0, 0, "equivalent"),
        (5000, 10, 10, "equivalent"),
        (5000, 5, 60, "equivalent"),  # better
        (5000, 60, 5, "worse"),
        (5000, 30, 5, "not enough data"),  # 0.5 points: exactly the margin
        (20, 0, 0, "not enough data"),
        (20, 1, 0, "not enough data"),
        (1, 0, 0, "not enough data"),
    ],
)
def test_answers(n: int, lost: int, won: int, answer: str) -> None:
    verdict = judge("all", *scores(n, lost, won, n // 20), margin=0.5, confidence=0.95)
    assert (verdict.answer, verdict.images, verdict.margin) == (answer, n, 0.5)
    assert verdict.drop == pytest.approx(100 * (lost - won) / n)
    assert verdict.low <= verdict.high
    assert verdict.needed is None or verdict.needed > n


def test_no_images() -> None:
    verdict = judge("class a", np.zeros(0), np.zeros(0), 0.5, 0.95)
    assert (verdict.images, verdict.answer, verdict.needed) == (0, "not enough data", None)
    assert math.isnan(verdict.drop)


def test_a_drop_at_the_margin_is_equivalent_in_one_of_twenty() -> None:
    """The worst case of the promise: 0.5 points are lost and 0.5 are allowed."""
    generator, answers = np.random.default_rng(0), []
    for _ in range(400):
        u = generator.random(3000)
        answers.append(judge("all", u < 0.995, u >= 0.010, 0.5, 0.95).answer)
    for answer in ("equivalent", "worse"):
        assert 0.01 <= answers.count(answer) / 400 <= 0.085  # a standard error is 0.011


@pytest.mark.parametrize(("n", "lost", "won"), [(2000, 20, 16), (1000, 8, 8), (1000, 12, 2), (300, 0, 0)])
def test_the_images_asked_for_settle_it(n: int, lost: int, won: int) -> None:
    """In 7 of 10 draws or more of a population like the images seen; a quarter of them does not."""
    before, after = scores(n, lost, won)
    verdict = judge("all", before, after, 0.5, 0.95)
    assert verdict.answer == "not enough data"
    generator = np.random.default_rng(0)

    def settled(images: int) -> float:
        drawn = (generator.integers(n, size=images) for _ in range(80))
        answers = [judge("all", before[own], after[own], 0.5, 0.95).answer for own in drawn]
        return 1 - answers.count("not enough data") / 80

    assert settled(verdict.needed) >= 0.7
    assert settled(verdict.needed // 4) <= 0.6 or lost == 0


def test_images_needed_by_hand() -> None:
    """With many images (1.645 + 0.842)^2 times variance over squared distance, rounded up to two digits."""
    lost = np.zeros(999)
    lost[:50], lost[50:100] = 1, -1
    expected = 2.4865**2 * (101 / 1000) / 0.001**2
    assert 620_000 < expected < 625_000
    assert images_needed(lost, 0.001, 0.95) == 630_000
    lost[100:105] = 1
    assert images_needed(lost, 5 / 999, 0.95) is None
    assert images_needed(np.zeros(100_000), 0.005, 0.95) == pytest.approx(1.645 * 2 / 0.005, rel=0.1)


def judged(**parts: tuple[int, int, int]):
    """Verdicts on classes of (images, lost, won)."""
    pairs = [scores(*one) for one in parts.values()]
    before, after = (np.concatenate(own) for own in zip(*pairs, strict=True))
    of = np.repeat([*parts], [one[0] for one in parts.values()])
    return judge_all(before, after, {f"class {name}": of == name for name in parts}, 0.5, 0.95)


def test_worse_in_one_class_is_said() -> None:
    """By twice the margin, and hidden in the mean by classes that win."""
    verdicts = judged(glioma=(20_000, 240, 40), other=(20_000, 20, 120), third=(20_000, 40, 60))
    assert [one.answer for one in verdicts] == ["equivalent", "worse", "equivalent", "equivalent"]
    assert verdicts[1].drop == pytest.approx(1.0)
    assert sentence(verdicts) == "equivalent overall, worse in class glioma"
    assert worst(verdicts) == "worse"


def test_sentences() -> None:
    assert sentence(judged(a=(9000, 0, 0), b=(9000, 1, 1))) == "equivalent overall, in every class"
    assert worst(judged(a=(9000, 0, 0), b=(9000, 1, 1))) == "equivalent"
    small = judged(a=(9000, 0, 0), b=(50, 0, 0))
    assert worst(small) == "not enough data"
    assert sentence(small) == "equivalent overall, not enough data in class b"
    few = judged(a=(50, 0, 0))
    needed = f"{few[0].needed:,}"
    assert sentence(few).startswith(
        f"not enough data overall (about {needed} images would settle it), not enough data in"
    )
    many = judged(**{f"c{i:02}": (50, 0, 0) for i in range(12)})
    assert sentence(many).endswith("and 7 more")
    worse = judged(**{f"c{i:02}": (900, 90, 0) for i in range(12)})
    assert all(f"class c{i:02}" in sentence(worse) for i in range(12))
    both = judge_all(*scores(9000, 0, 0), {"class a": np.ones(9000, bool), "site = A": np.ones(9000, bool)}, 0.5, 0.95)
    assert sentence(both) == "equivalent overall, in every class and every group"
    assert sentence(judge_all(*scores(9000, 0, 0), {}, 0.5, 0.95)) == "equivalent overall"


def test_parts_share_the_chance_of_error() -> None:
    """Ten classes at the margin: one of them passes as equivalent in one of twenty comparisons, not in eight."""
    generator, some = np.random.default_rng(0), 0
    scopes = {f"class {i}": np.arange(20_000) // 2000 == i for i in range(10)}
    for _ in range(60):
        u = generator.random(20_000)
        verdicts = judge_all(u < 0.995, u >= 0.010, scopes, 0.5, 0.95)
        some += any(one.answer == "equivalent" for one in verdicts[1:])
    assert some <= 8
    alone = judge("class 0", *(own[:2000] for own in (u < 0.995, u >= 0.010)), 0.5, 0.95)
    assert verdicts[1].high > alone.high
    assert verdicts[0].high == judge("all", u < 0.995, u >= 0.010, 0.5, 0.95).high


@pytest.mark.parametrize(("margin", "confidence"), [(0, 0.95), (-1, 0.95), (float("nan"), 0.95), (0.5, 1), (0.5, 0.05)])
def test_what_decides_nothing(margin: float, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"^(margin|confidence): got"):
        check(margin, confidence)
