"""Prices decide ranks: at prices for all that is limited, take every direction that gains more than it costs."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DENSE = -1


class Cost(NamedTuple):
    """FLOPs of one image, numbers and bytes stored, seconds of a call; as a price, gain per unit of each."""

    flops: float
    parameters: float
    bytes: float = 0
    seconds: float = 0

    def at(self, price: Cost) -> float:
        (flops, parameters, size, seconds), (a, b, c, d) = self, price  # written out: the search lives here
        return flops * a + parameters * b + size * c + seconds * d

    def times(self, factor: float) -> Cost:
        return Cost(*(amount * factor for amount in self))

    def plus(self, other: Cost) -> Cost:
        return Cost(*map(operator.add, self, other))

    def within(self, limit: Cost) -> bool:
        return all(map(operator.le, self, limit))

    def against(self, limit: Cost) -> str:
        """For messages: what of this is limited."""
        units = ("FLOPs", "parameters", "bytes", "seconds")
        limited = zip(self, units, limit, strict=True)
        return ", ".join(f"{amount:.4g} {unit}" for amount, unit, most in limited if math.isfinite(most))


UNLIMITED = Cost(math.inf, math.inf, math.inf, math.inf)


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
    """What a layer gets at a price: total gain, cost, and the rank of each group (or region, with shared rows).

    ``slower`` is the seconds of factors that were passed over because the dense layer takes no more.
    """

    gain: float
    cost: Cost
    ranks: tuple[int, ...]
    pool: int | None = None
    slower: float | None = None

    def value(self, price: Cost) -> float:
        return self.gain - self.cost.at(price)


class Own(NamedTuple):
    """Every cluster has rows of its own.

    ``base`` is what the region biases alone gain, ``fixed`` what the structure costs at rank 0, ``dense`` the layer's
    cost as it is.
    """

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


class Faster(NamedTuple):
    """An option of a layer that stays dense where that takes no more time, or is worth more."""

    option: Own | Shared
    dense: Cost

    def at(self, price: Cost) -> Choice:
        choice = self._unless_slower(self.option.at(price))
        return max(choice, self._as_it_is(choice), key=lambda c: c.value(price))

    def keeping(self, share: float) -> Choice:
        return self._unless_slower(self.option.keeping(share))

    def _unless_slower(self, choice: Choice) -> Choice:
        if choice.cost.seconds < self.dense.seconds:
            return choice
        dense = self._as_it_is(choice)
        return dense if choice.ranks == dense.ranks else dense._replace(slower=choice.cost.seconds)

    def _as_it_is(self, choice: Choice) -> Choice:
        return Choice(1.0, self.dense, (DENSE,) * len(choice.ranks))
