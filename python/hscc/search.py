"""Chooses the structure and the ranks of every layer: the most gain under all budgets at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .ranks import Choice, Cost, Own, Shared

FLOPS_PER_PARAMETER = (
    12.0  # what one number stored weighs where only FLOPs are limited: rows for few positions are not free
)
DIRECTIONS = 7  # price ratios tried when FLOPs and parameters are both limited

Options = Mapping[str, Sequence[Own | Shared]]
Chosen = dict[str, tuple[int, Choice]]


def choose(options: Options, dense: Cost, limit: Cost) -> Chosen:
    """For each layer the number of its option and what it takes; all within ``limit`` (infinite where there is none).

    A Lagrangian search: at given prices layers decide alone; prices rise until the limits hold. Where both FLOPs and
    parameters are limited, several ratios of the prices are tried and the best result is taken.
    """
    best: tuple[float, Chosen] | None = None
    for direction in _directions(dense, limit):
        chosen = _within(options, direction, limit, 20)
        narrowed = {name: [options[name][index]] for name, (index, _) in chosen.items()}
        filled = _within(narrowed, direction, limit, 40)  # structures fixed, the last of the budget goes into ranks
        gain = sum(choice.gain for _, choice in filled.values())
        if best is None or gain > best[0]:
            best = gain, {name: (chosen[name][0], filled[name][1]) for name in chosen}
    return best[1]


def _directions(dense: Cost, limit: Cost) -> list[Cost]:
    flops, parameters = 1 / dense.flops, 1 / dense.parameters
    read = FLOPS_PER_PARAMETER / dense.flops
    if np.isinf(limit.flops):
        return [Cost(0.05 * flops, parameters)]
    return [Cost((1 - t) * flops, t * parameters + (1 - t) * read) for t in np.linspace(0, 0.98, DIRECTIONS)]


def _within(options: Options, direction: Cost, limit: Cost, steps: int) -> Chosen:
    """The choices at the lowest price along ``direction`` that keeps the limits, after ``steps`` of bisection."""

    def at(level: float) -> Chosen:
        price = direction.times(level)
        chosen = {}
        for name, several in options.items():
            choices = [option.at(price) for option in several]
            index = max(range(len(choices)), key=lambda i: choices[i].value(price))
            chosen[name] = index, choices[index]
        return chosen

    def fits(chosen: Chosen) -> bool:
        costs = [choice.cost for _, choice in chosen.values()]
        return sum(c.flops for c in costs) <= limit.flops and sum(c.parameters for c in costs) <= limit.parameters

    low, high = -16.0, 8.0  # powers of ten
    result = at(10**low)
    if fits(result):
        return result
    result = at(10**high)
    if not fits(result):
        costs = [choice.cost for _, choice in result.values()]
        raise ValueError(
            f"budget: got a limit of {limit.flops:.4g} FLOPs and {limit.parameters:.4g} parameters, expected at least "
            f"{sum(c.flops for c in costs):.4g} and {sum(c.parameters for c in costs):.4g}, which biases alone take"
        )
    for _ in range(steps):
        middle = (low + high) / 2
        chosen = at(10**middle)
        if fits(chosen):
            high, result = middle, chosen
        else:
            low = middle
    return result
