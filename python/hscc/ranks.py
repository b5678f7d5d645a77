"""Prices decide ranks: at a price for FLOPs and for parameters, take every direction that gains more than it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DENSE = -1


class Cost(NamedTuple):
    """FLOPs of one image and numbers stored; as a price, gain per FLOP and per number."""

    flops: float
    parameters: float

    def at(self, price: Cost) -> float:
        return self.flops * price.flops + self.parameters * price.parameters

    def times(self, factor: float) -> Cost:
        return Cost(self.flops * factor, self.parameters * factor)

    def plus(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.parameters + other.parameters)


class Group(NamedTuple):
    """One cluster of one region.

    Args:
        gains: (m,) what each further rank buys, falling; shares of the layer's output energy.
        rest: what a dense cluster buys beyond all the gains.
        cost: of one rank; dense: of the cluster without factorization.
    """

    gains: np.ndarray
    rest: float
    cost: Cost
    dense: Cost

    def rank_at(self, price: Cost, multiple: int) -> int:
        """The rank (or DENSE) of most gain less cost."""
        unit = self.cost.at(price)
        steps = len(self.gains) // multiple
        taken = int((self.gains[: steps * multiple].reshape(steps, multiple).sum(1) > unit * multiple).sum()) * multiple
        factored = self.gains[:taken].sum() - taken * unit
        return DENSE if self.gains.sum() + self.rest - self.dense.at(price) >= factored else taken

    def rank_keeping(self, share: float, multiple: int) -> int:
        """The smallest rank that keeps ``share`` of the energy, or DENSE where that takes no more FLOPs."""
        kept = self.gains.cumsum()
        wanted = share * (kept[-1] + self.rest)
        if wanted <= 0:
            return 0
        rank = int((kept < wanted * (1 - 1e-9)).sum()) + 1
        rank = -(-rank // multiple) * multiple
        return rank if rank <= len(kept) and rank * self.cost.flops < self.dense.flops else DENSE

    def gain(self, rank: int) -> float:
        return float(self.gains.sum() + self.rest if rank == DENSE else self.gains[:rank].sum())

    def total(self, rank: int) -> Cost:
        return self.dense if rank == DENSE else self.cost.times(rank)


class Choice(NamedTuple):
    """What a layer gets at a price: total gain, cost, and the rank of each group (or region, with shared rows)."""

    gain: float
    cost: Cost
    ranks: tuple[int, ...]
    pool: int | None = None

    def value(self, price: Cost) -> float:
        return self.gain - self.cost.at(price)


class Own(NamedTuple):
    """Every cluster has rows of its own; ``base`` is what the region biases alone gain, ``dense`` the layer's cost."""

    groups: Sequence[Group]
    base: float
    fixed: Cost
    multiple: int
    dense: Cost | None = None

    def at(self, price: Cost) -> Choice:
        return self.choice([group.rank_at(price, self.multiple) for group in self.groups])

    def keeping(self, share: float) -> Choice:
        return self.choice([group.rank_keeping(share, self.multiple) for group in self.groups])

    def choice(self, ranks: Sequence[int]) -> Choice:
        if self.dense and all(rank == DENSE for rank in ranks):  # then the layer stays as it is
            return Choice(1.0, self.dense, tuple(ranks))
        gain, cost = self.base, self.fixed
        for group, rank in zip(self.groups, ranks, strict=True):
            gain += group.gain(rank)
            cost = cost.plus(group.total(rank))
        return Choice(gain, cost, tuple(ranks))


class Shared(NamedTuple):
    """Regions pick from one pool of rows.

    Args:
        gains: (R, q) what each row buys in each region.
        use: of a row, region by region; row: of having it in the pool.
    """

    gains: np.ndarray
    use: Sequence[Cost]
    row: Cost
    base: float
    fixed: Cost

    def at(self, price: Cost) -> Choice:
        net = self.gains - np.array([[use.at(price)] for use in self.use])
        wanted = net > 0
        wanted &= (np.where(wanted, net, 0).sum(0) > self.row.at(price))[None]
        ranks = wanted.sum(1)
        pool = int(wanted.any(0).sum())
        cost = self.row.times(pool).plus(self.fixed)
        for rank, use in zip(ranks, self.use, strict=True):
            cost = cost.plus(use.times(int(rank)))
        return Choice(self.base + float(self.gains[wanted].sum()), cost, tuple(map(int, ranks)), pool)
