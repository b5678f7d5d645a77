"""Chooses the structure and the ranks of every layer: the most gain under all budgets at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from .ranks import Choice, Cost, Faster, Own, Shared

FLOPS_PER_PARAMETER = 4.0  # what a number stored weighs where only FLOPs are limited: it has to be read, too
DIRECTIONS = 7  # price ratios tried where work (FLOPs, seconds) and storage (parameters, bytes) are limited
BLENDS = 3  # and those of FLOPs and seconds

Options = Mapping[str, Sequence[Own | Shared | Faster]]
Chosen = dict[str, tuple[int, Choice]]


def choose(options: Options, dense: Cost, limit: Cost) -> Chosen:
    """For each layer the number of its option and what it takes; all within ``limit`` (infinite where there is none).

    A Lagrangian search: at given prices layers decide alone; prices rise until the limits hold. Where several things
    are limited, several ratios of the prices are tried and the best result is taken.
    """
    best: tuple[float, Chosen] | None = None
    for direction in _directions(dense, limit):
        chosen = _within(options, direction, limit, 20)
        narrowed = {name: [options[name][index]] for name, (index, _) in chosen.items()}
        filled = _within(narrowed, direction, limit, 40)  # structures fixed, the last of the budget goes into ranks
        gain = sum(choice.gain for _, choice in filled.values())
        if best is None or gain > best[0]:
            best = gain, {name: (index, _told(filled[name][1], was)) for name, (index, was) in chosen.items()}
    return best[1]


def _told(choice: Choice, before: Choice) -> Choice:
    """``choice``, and where the layer stays as it is, the reason that it had ``before``."""
    return choice._replace(slower=choice.slower or before.slower) if choice.stays else choice


def _directions(dense: Cost, limit: Cost) -> list[Cost]:
    def unit(name: str) -> Cost:
        return Cost(0, 0)._replace(**{name: 1 / getattr(dense, name)})

    def limited(*names: str) -> list[str]:
        return [name for name in names if np.isfinite(getattr(limit, name))]

    flops = unit("flops")._replace(parameters=FLOPS_PER_PARAMETER / dense.flops)
    work = [flops if name == "flops" else unit(name) for name in limited("flops", "seconds")]
    storage = functools.reduce(Cost.plus, map(unit, limited("parameters", "bytes") or ["parameters"]))
    if not work:
        return [storage._replace(flops=0.05 * flops.flops)]
    blends = work if len(work) == 1 else [_between(*work, t) for t in np.linspace(0, 1, BLENDS)]
    return [_between(price, storage, t) for price in blends for t in np.linspace(0, 0.98, DIRECTIONS)]


def _between(one: Cost, other: Cost, t: float) -> Cost:
    return one.times(1 - t).plus(other.times(t))


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
    return functools.reduce(Cost.plus, (choice.cost for _, choice in chosen.values()), Cost(0, 0))
