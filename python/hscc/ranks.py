"""Spends a budget on singular directions: the best gain for its cost first, over all clusters of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """One cluster of one region of one layer.

    Args:
        gains: (m,) what each further rank buys, descending (share of the layer's output energy).
        rest: what a dense cluster buys beyond all the gains, at least 0.
        cost: FLOPs of one rank; dense_cost: FLOPs of the cluster without factorization.
    """

    gains: Tensor
    rest: float
    cost: float
    dense_cost: float


DENSE = -1


def by_energy(groups: Sequence[Group], share: float, multiple: int) -> list[int]:
    """For each group the smallest rank that keeps ``share`` of its energy, or DENSE where that is cheaper."""
    ranks = []
    for group in groups:
        kept = group.gains.cumsum(0)
        wanted = share * (kept[-1].item() + group.rest)
        reached = (kept >= wanted * (1 - 1e-9)).nonzero()
        rank = int(reached[0]) + 1 if len(reached) else len(kept)
        rank = -(-rank // multiple) * multiple if wanted > 0 else 0
        ranks.append(rank if rank <= len(kept) and rank * group.cost < group.dense_cost else DENSE)
    return ranks


def by_cost(groups: Sequence[Group], budget: float, multiple: int) -> list[int]:
    """Ranks (DENSE where factors would cost more) whose cost stays within ``budget``.

    Steps are taken by gain per cost; gains descend, so this is the exact optimum of the relaxed problem.
    """
    ratio, cost, owner = [], [], []
    for index, group in enumerate(groups):
        steps = _steps(group, multiple)
        value = [gain / price for gain, price in steps]
        for i in range(1, len(value)):
            value[i] = min(value[i], value[i - 1])  # a step is never taken before the one below it
        ratio += value
        cost += [price for _, price in steps]
        owner += [index] * len(steps)
    taken = [0] * len(groups)
    closed = [False] * len(groups)
    for i in torch.tensor(ratio, dtype=torch.float64).argsort(descending=True, stable=True).tolist():
        group = owner[i]
        if closed[group] or ratio[i] <= 0:
            continue
        if cost[i] > budget * (1 + 1e-12):
            closed[group] = True
            continue
        budget -= cost[i]
        taken[group] += 1
    return [_rank(group, count, multiple) for group, count in zip(groups, taken, strict=True)]


def _factored_steps(group: Group, multiple: int) -> int:
    """Steps of ``multiple`` ranks while factors are cheaper than the dense cluster."""
    affordable = -(-group.dense_cost // group.cost) - 1
    return int(min(affordable, len(group.gains)) // multiple)


def _steps(group: Group, multiple: int) -> list[tuple[float, float]]:
    """(gain, cost) of each step; the last one makes the cluster dense."""
    count = _factored_steps(group, multiple)
    gains = group.gains[: count * multiple].view(count, multiple).sum(1).tolist()
    rest = group.gains[count * multiple :].sum().item() + group.rest
    price = group.cost * multiple
    return [*((gain, price) for gain in gains), (rest, group.dense_cost - count * price)]


def _rank(group: Group, taken: int, multiple: int) -> int:
    return DENSE if taken > _factored_steps(group, multiple) else taken * multiple
