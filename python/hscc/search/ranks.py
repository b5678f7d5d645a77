"""Prices decide ranks: at prices for all that is limited, take every direction that gains more than it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .cost import Cost

DENSE = -1


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

    def rank_keeping(self, share: float, multiple: int) -> int:
        """The smallest rank that keeps ``share`` of the energy, or DENSE where that takes no more FLOPs."""
        kept = self.gains.cumsum()
        wanted = share * (kept[-1] + self.rest)
        if wanted <= 0:
            return 0
        rank = int((kept < wanted * (1 - 1e-9)).sum()) + 1
        rank = -(-rank // multiple) * multiple
        return rank if rank <= len(kept) and rank * self.cost.flops < self.dense.flops else DENSE


class Choice(NamedTuple):
    """What a layer gets at a price: total gain, cost, and the rank of each group (or region, with shared rows).

    ``stays`` where the layer stays as it is; ``slower`` is then the seconds of factors that were passed over because
    the dense layer takes no more.
    """

    gain: float
    cost: Cost
    ranks: tuple[int, ...]
    pool: int | None = None
    stays: bool = False
    slower: float | None = None

    def value(self, price: Cost) -> float:
        return self.gain - self.cost.at(price)


@dataclass(frozen=True)
class Own:
    """Every cluster has rows of its own.

    ``base`` is what the region biases alone gain, ``fixed`` what the structure costs at rank 0, ``dense`` what the
    layer costs where it can stay as it is.
    """

    groups: Sequence[Group]
    base: float
    fixed: Cost
    multiple: int
    dense: Cost | None = None

    @cached_property
    def _kept(self) -> np.ndarray:
        """(G, m + 1) what the first ranks of each group gain, and in the last column a dense cluster."""
        kept = np.zeros((len(self.groups), max(len(group.gains) for group in self.groups) + 2))
        for row, group in zip(kept, self.groups, strict=True):
            row[1 : len(group.gains) + 1] = group.gains.cumsum()
            row[len(group.gains) + 1 :] = row[len(group.gains)]
            row[DENSE] += group.rest
        return kept

    @cached_property
    def _costs(self) -> tuple[np.ndarray, np.ndarray]:
        """(G, fields of Cost) of one rank and of a dense cluster of each group."""
        return np.array([group.cost for group in self.groups]), np.array([group.dense for group in self.groups])

    def at(self, price: Cost) -> Choice:
        """In each group the rank (or DENSE) of most gain less cost."""
        unit, dense = (costs @ np.array(price) for costs in self._costs)
        whole = self._kept[:, :DENSE][:, :: self.multiple]
        taken = (np.diff(whole) > unit[:, None] * self.multiple).sum(1)
        factored = whole[np.arange(len(whole)), taken] - taken * self.multiple * unit
        return self.choice(np.where(self._kept[:, DENSE] - dense >= factored, DENSE, taken * self.multiple).tolist())

    def keeping(self, share: float) -> Choice:
        return self.choice([group.rank_keeping(share, self.multiple) for group in self.groups])

    def choice(self, ranks: Sequence[int]) -> Choice:
        if self.dense and all(rank == DENSE for rank in ranks):  # then the layer stays as it is
            return Choice(1.0, self.dense, tuple(ranks), stays=True)
        taken, (unit, dense) = np.array(ranks), self._costs
        gain = self.base + float(self._kept[np.arange(len(taken)), taken].sum())
        cost = Cost(*np.where(taken[:, None] == DENSE, dense, unit * taken[:, None]).sum(0).tolist())
        return Choice(gain, cost.plus(self.fixed), tuple(ranks))


@dataclass(frozen=True)
class Shared:
    """Regions pick from one pool of rows.

    Args:
        gains: (R, q) what each row buys in each region.
        use: of a row, region by region; row: of having it in the pool; fixed: whatever the ranks.
    """

    gains: np.ndarray
    use: Sequence[Cost]
    row: Cost
    base: float
    fixed: Cost

    @cached_property
    def _use(self) -> np.ndarray:
        return np.array(self.use)  # [R, fields of Cost]

    def at(self, price: Cost) -> Choice:
        net = self.gains - (self._use @ np.array(price))[:, None]
        wanted = net > 0
        wanted &= (np.where(wanted, net, 0).sum(0) > self.row.at(price))[None]
        ranks, pool = wanted.sum(1), int(wanted.any(0).sum())
        cost = Cost(*(ranks @ self._use).tolist()).plus(self.row.times(pool)).plus(self.fixed)
        return Choice(self.base + float(self.gains[wanted].sum()), cost, tuple(ranks.tolist()), pool)


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
        return choice if choice.stays else self._as_it_is(choice)._replace(slower=choice.cost.seconds)

    def _as_it_is(self, choice: Choice) -> Choice:
        return Choice(1.0, self.dense, (DENSE,) * len(choice.ranks), stays=True)
