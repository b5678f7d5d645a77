"""What a layer costs, in all that a budget can limit; and what a budget leaves to the layers."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import nn

from ..config import REDUCTIONS, Budget
from ..report import LayerReport


class Cost(NamedTuple):
    """FLOPs of one image, numbers and bytes stored, seconds of a call; as a price, gain per unit of each."""

    flops: float
    parameters: float
    bytes: float = 0
    seconds: float = 0

    @classmethod
    def dense(cls, conv: nn.Module, positions: int, seconds: float = 0) -> Cost:
        """Of a convolution as it is, every weight of which meets that many positions of one image."""
        numbers = sum(t.numel() for t in (conv.weight, conv.bias) if t is not None)
        return cls(2 * positions * conv.weight.numel(), numbers, numbers * conv.weight.element_size(), seconds)

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


def total(costs: Iterable[Cost]) -> Cost:
    """Of all together."""
    return functools.reduce(Cost.plus, costs, Cost(0, 0))


def remaining(dense: Cost, fixed: Cost, budget: Budget, reasons: Mapping[str, str] = {}) -> Cost:
    """What the budget leaves to layers of that dense cost; ``fixed`` is what cannot be compressed, for ``reasons``.

    Whatever is limited, no more numbers are stored than in the dense model. Raises ValueError where nothing is left.
    """
    left = []
    for name, all_dense, stays in zip(REDUCTIONS, dense, fixed, strict=True):
        reduction = getattr(budget, name) or (1 if name == "params" else None)
        left.append(math.inf if reduction is None else (all_dense + stays) / reduction - stays)
        if left[-1] < 0:
            raise ValueError(
                f"budget: got {name}={reduction:g}, expected at most {(all_dense + stays) / stays:.2f}: the layers "
                f"that cannot be compressed need the rest ({'; '.join(f'{n}: {why}' for n, why in reasons.items())})"
            )
    return Cost(*left)


def row(name: str, dense: Cost, cost: Cost, timed: bool = False, **rest) -> LayerReport:
    """A layer's row of the report; ``rest`` are its other fields, ``timed`` says that seconds were measured."""
    return LayerReport(
        name=name,
        dense_flops=dense.flops,
        flops=int(cost.flops),
        dense_parameters=dense.parameters,
        parameters=int(cost.parameters),
        dense_bytes=dense.bytes,
        bytes=int(cost.bytes),
        dense_ms=1e3 * dense.seconds if timed else None,
        ms=1e3 * cost.seconds if timed else None,
        **rest,
    )
