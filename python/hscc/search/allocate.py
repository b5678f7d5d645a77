"""Chooses the structure and the ranks of every layer: the most gain under all budgets at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from ..config import Budget
from .cost import Cost, total
from .ranks import Choice, Faster, Own, Shared

FLOPS_PER_PARAMETER = 4.0  # what a number stored weighs where only FLOPs are limited: it has to be read, too
DIRECTIONS = 12  # ratios of the prices of work (FLOPs, seconds) and storage (parameters, bytes) tried
BLENDS = 3  # and those of FLOPs and seconds, where both are limited

Options = Mapping[str, Sequence[Own | Shared | Faster]]
Chosen = dict[str, tuple[int, Choice]]


def within_budget(options: Options, dense: Cost, limit: Cost, budget: Budget) -> Chosen:
    """For each layer the number of its option and what it takes: all within ``limit``, or what keeps the energy."""
    if budget.energy is not None:
        return {name: (0, several[0].keeping(budget.energy)) for name, several in options.items()}
    return choose(options, dense, limit)


def choose(options: Options, dense: Cost, limit: Cost) -> Chosen:
    """For each layer the number of its option and what it takes; all within ``limit`` (infinite where there is none).

    A Lagrangian search: at given prices layers decide alone; prices rise until the limits hold. Where storage runs out
    before work, the ratio of their prices is bisected until both do, and the best result on the way is taken.
    """
    best: tuple[float, Chosen] | None = None
    work, storage = _prices(dense, limit)
    for price in work:
        low, high, share = 0.0, 1.0, 0.0
        for _ in range(DIRECTIONS):
            direction = price.times(1 - share).plus(storage.times(share))
            chosen = _within(options, direction, limit, 20)
            narrowed = {name: [options[name][index]] for name, (index, _) in chosen.items()}
            filled = _within(narrowed, direction, limit, 40)  # structures fixed, the last of the budget goes into ranks
            gain = sum(choice.gain for _, choice in filled.values())
            if best is None or gain > best[0]:
                best = gain, {name: (index, _told(filled[name][1], was)) for name, (index, was) in chosen.items()}
            used = Cost(*np.divide(_total(filled), limit))
            if max(used.parameters, used.bytes) > max(used.flops, used.seconds):
                low = share
            else:
                high = share
            if high == 0 or not (np.isfinite(limit.flops) or np.isfinite(limit.seconds)):
                break
            share = (low + high) / 2
    return best[1]


def _prices(dense: Cost, limit: Cost) -> tuple[list[Cost], Cost]:
    """Directions of the price of work, and the one of storage, where the dense model takes one unit of each."""

    def unit(name: str) -> Cost:
        return Cost(0, 0)._replace(**{name: 1 / getattr(dense, name)})

    def limited(*names: str) -> list[str]:
        return [name for name in names if np.isfinite(getattr(limit, name))]

    flops = unit("flops")._replace(parameters=FLOPS_PER_PARAMETER / dense.flops)
    work = [flops if name == "flops" else unit(name) for name in limited("flops", "seconds")]
    storage = functools.reduce(Cost.plus, map(unit, limited("parameters", "bytes") or ["parameters"]))
    if not work:
        return [storage._replace(flops=0.05 / dense.flops)], storage
    if len(work) == 2:
        work = [work[0].times(1 - t).plus(work[1].times(t)) for t in np.linspace(0, 1, BLENDS)]
    return work, storage


def _told(choice: Choice, before: Choice) -> Choice:
    """``choice``, and where the layer stays as it is, the reason that it had ``before``."""
    return choice._replace(slower=choice.slower or before.slower) if choice.stays else choice


def _within(options: Options, direction: Cost, limit: Cost, steps: int) -> Chosen:
    """The choices at the lowest price along ``direction`` that keeps the limits, after ``steps`` of bisection."""

    def at(level: float) -> Chosen:
        price = direction.times(level)
        chosen = {}
        for name, several in options.items():
            choices = [option.at(price) for option in several]
            best = [
                (choice.value(price), choice.slower is not None) for choice in choices
            ]  # of equals, one with a reason
            index = best.index(max(best))
            chosen[name] = index, choices[index]
        return chosen

    def fits(chosen: Chosen) -> bool:
        return _total(chosen).within(limit)

    low, high = -16.0, 8.0  # powers of ten
    result = at(10**low)
    if fits(result):
        return result
    result = at(10**high)
    if not fits(result):
        raise ValueError(
            f"budget: got a limit of {limit.against(limit)}, expected at least {_total(result).against(limit)}, which "
            "the layers take with biases alone, or dense where factors would not be faster"
        )
    for _ in range(steps):
        middle = (low + high) / 2
        chosen = at(10**middle)
        if fits(chosen):
            high, result = middle, chosen
        else:
            low = middle
    return result


def _total(chosen: Chosen) -> Cost:
    return total(choice.cost for _, choice in chosen.values())
