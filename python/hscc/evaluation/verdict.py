"""Whether a compressed model is as good as the dense one: non-inferiority at a margin that is stated before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .paired import bounds

Answer = Literal["equivalent", "worse", "not enough data"]
WORST_FIRST: tuple[Answer, ...] = ("worse", "not enough data", "equivalent")
OVERALL = "all"
POWER = 0.8
NAMED = 5  # scopes that a sentence names where it may be short
MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class Verdict:
    """The answer for some of the images.

    ``drop`` is what accuracy has lost, ``low`` and ``high`` are one-sided confidence bounds of it, ``margin`` is the
    loss that is allowed: all in points (percent), NaN without images. "equivalent": ``high`` is within the margin;
    "worse": ``low`` is beyond it; else "not enough data", and about ``needed`` images like these would settle it; None
    where more than ten million would be.
    """

    scope: str
    images: int
    drop: float
    low: float
    high: float
    margin: float
    answer: Answer
    needed: int | None = None


def check(margin: float, confidence: float) -> None:
    """Raises ValueError for a margin or a confidence that decide nothing."""
    if not 0 < margin < 100:
        raise ValueError(f"margin: got {margin}, expected points between 0 and 100")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence: got {confidence}, expected a share between 0.5 and 1")


def judge(scope: str, before: np.ndarray, after: np.ndarray, margin: float, confidence: float) -> Verdict:
    """The verdict on paired scores (n,), 0 or 1 where they say whether an image is classified correctly.

    Args:
        margin: points, above 0.
        confidence: of each of the two bounds, by :func:`hscc.evaluation.paired.bounds`.
    """
    if not len(before):
        return Verdict(scope, 0, math.nan, math.nan, math.nan, margin, "not enough data")
    lost = np.asarray(before, float) - np.asarray(after, float)
    low, high = (100 * bound for bound in bounds(np.asarray(before, float), np.asarray(after, float), confidence))
    answer: Answer = "equivalent" if high <= margin else "worse" if low > margin else "not enough data"
    needed = images_needed(lost, margin / 100, confidence) if answer == "not enough data" else None
    return Verdict(scope, len(lost), 100 * float(lost.mean()), low, high, margin, answer, needed)


def judge_all(
    before: np.ndarray, after: np.ndarray, scopes: Mapping[str, np.ndarray], margin: float, confidence: float
) -> tuple[Verdict, ...]:
    """The verdict on all images, then one on each of the ``scopes``: bool (n,), which images are of it.

    The overall verdict stands alone. Those of scopes share the chance of error by Bonferroni: every bound then holds
    together with the others, whichever scope one picks afterwards, and is printed as it decides; Holm's has no such
    bounds. It never makes an answer "equivalent" that was not.
    """
    number = sum(1 for chosen in scopes.values() if chosen.any())
    each = 1 - (1 - confidence) / max(number, 1)
    parts = (judge(scope, before[chosen], after[chosen], margin, each) for scope, chosen in scopes.items())
    return (judge(OVERALL, before, after, margin, confidence), *parts)


def images_needed(lost: np.ndarray, margin: float, confidence: float) -> int | None:
    """About how many images, to two digits, settle the question with a power of 0.8; shares (n,), not points.

    The usual size of a one-sided test of a mean, if all are like these, for the bound as ``bounds`` has it, with four
    images more. The variance is that of these images and of one more, half lost and half won: that ten images agree
    does not say that no image differs.
    """
    from scipy.stats import norm

    reach = np.abs(lost).max() or 1.0
    variance = (((lost - lost.mean()) ** 2).sum() + reach**2) / (len(lost) + 1)
    images = np.geomspace(1, MOST_IMAGES, 2000)
    bound = norm.ppf(confidence) * np.sqrt(images * variance + 4 * reach**2)
    enough = bound + norm.ppf(POWER) * np.sqrt(images * variance) <= images * abs(margin - lost.mean())
    if not enough.any():
        return None
    number = images[enough.argmax()]
    digits = 10 ** max(math.floor(math.log10(number)) - 1, 0)
    return math.ceil(number / digits) * digits


def worst(verdicts: tuple[Verdict, ...]) -> Answer:
    """The worst answer of all."""
    return min((verdict.answer for verdict in verdicts), key=WORST_FIRST.index)


def sentence(verdicts: tuple[Verdict, ...]) -> str:
    """All in one sentence, the overall verdict first; each scope that is worse is named."""
    overall, *parts = verdicts
    if parts and worst(verdicts) == "equivalent":
        return "equivalent overall, in every class" + " and every group" * any(" = " in part.scope for part in parts)
    more = f" (about {overall.needed:,} images would settle it)" if overall.needed else ""
    told = [f"{overall.answer} overall{more}"]
    for answer in WORST_FIRST[:2]:
        of_it = [part.scope for part in parts if part.answer == answer]
        shown = of_it if answer == "worse" else of_it[:NAMED]
        rest = [f"{len(of_it) - len(shown)} more"] if len(of_it) > len(shown) else []
        told += [f"{answer} in {_listed([*shown, *rest])}"] if of_it else []
    return ", ".join(told)


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
