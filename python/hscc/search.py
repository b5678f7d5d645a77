"""Chooses the structure and the ranks of every layer: the most gain under all budgets at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .ranks import Choice, Cost, Own, Shared

FLOPS_PER_PARAMETER = (
    12.0  # what one number stored weighs where only FLOPs are limited: rows for few positions are not free
)
DIRECTIONS = 12  # price ratios tried when FLOPs and parameters are both limited

Options = Mapping[str, Sequence[Own | Shared]]
Chosen = dict[str, tuple[int, Choice]]


def choose(options: Options, dense: Cost, limit: Cost) -> Chosen:
    """For each layer the number of its option and what it takes; all within ``limit`` (infinite where there is none).

    A Lagrangian search: at given prices layers decide alone; prices rise until the limits hold. Where parameters run
    out before FLOPs, the ratio of the prices is bisected until both do, and the best result on the way is taken.
    """
    best: tuple[float, Chosen] | None = None
    low, high, share = 0.0, 1.0, 0.0
    for _ in range(DIRECTIONS):
        direction = _direction(dense, limit, share)
        chosen = _within(options, direction, limit, 20)
        narrowed = {name: [options[name][index]] for name, (index, _) in chosen.items()}
        filled = _within(narrowed, direction, limit, 40)  # structures fixed, the last of the budget goes into ranks
        gain = sum(choice.gain for _, choice in filled.values())
        if best is None or gain > best[0]:
            best = gain, {name: (chosen[name][0], filled[name][1]) for name in chosen}
        flops, parameters = (sum(part) for part in zip(*(choice.cost for _, choice in filled.values()), strict=True))
        if parameters * limit.flops > flops * limit.parameters:
            low = share
        else:
            high = share
        if np.isinf(limit.flops) or high == 0:
            break
        share = (low + high) / 2
    return best[1]


def _direction(dense: Cost, limit: Cost, share: float) -> Cost:
    """Prices of which ``share`` is for parameters."""
    flops, parameters = 1 / dense.flops, 1 / dense.parameters
    if np.isinf(limit.flops):
        return Cost(0.05 * flops, parameters)
    return Cost((1 - share) * flops, share * parameters + (1 - share) * FLOPS_PER_PARAMETER / dense.flops)


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
