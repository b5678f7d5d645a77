"""What came of each setting, the front of those that nothing betters, and the one that is wanted."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from .grid import Setting

BETTER = {"accuracy": 1, "least": 1, "flops": -1, "params": -1, "bytes": -1, "latency": -1}  # more or less of it is
COSTS = ("flops", "params", "latency")  # that a front counts beside the accuracy
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_CONDITION = re.compile(rf"\s*(\w+)\s*(<=|>=|<|>)\s*(?:{_NUMBER}|dense(?:\s*([-+*/])\s*{_NUMBER})?)\s*")
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_COUNT = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@dataclass(frozen=True)
class Point:
    """One compression, measured. Reductions are of all convolutions, times less; latencies milliseconds of one call.

    ``score`` and ``dense_score`` are means of the samples' scores (0..1), ``difference`` what was won (lost below 0),
    with its standard error, paired; ``worst`` is the one-sided 95 % bound of what is lost, in shares. ``refused`` says
    why there is no such compression: all numbers are 0 then.
    """

    setting: Setting
    score: float = 0.0
    dense_score: float = 0.0
    difference: float = 0.0
    difference_standard_error: float = 0.0
    worst: float = 0.0
    samples: int = 0
    flop_reduction: float = 0.0
    parameter_reduction: float = 0.0
    byte_reduction: float = 0.0
    latency_ms: float = 0.0
    dense_ms: float = 0.0
    seconds: float = 0.0
    refused: str | None = None
    on_front: bool = False
    chosen: bool = False

    @property
    def speedup(self) -> float:
        """Of the whole network."""
        return self.dense_ms / self.latency_ms

    def measures(self, dense: bool = False) -> dict[str, float]:
        """Accuracy in percent, and the least that it is; of costs the share of the dense model's, as the machine's
        speed changes from hour to hour."""
        if dense:
            return {**dict.fromkeys(BETTER, 1.0), **dict.fromkeys(("accuracy", "least"), 100 * self.dense_score)}
        shares = {"flops": self.flop_reduction, "params": self.parameter_reduction, "bytes": self.byte_reduction}
        shares["latency"] = self.speedup
        accuracy = {"accuracy": 100 * self.score, "least": 100 * (self.dense_score - self.worst)}
        return {**accuracy, **{name: 1 / times for name, times in shares.items()}}

    def to_dict(self) -> dict:
        """Plain data; with ``method`` at the top, as the report's figure wants it."""
        return {"method": self.setting.method, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict) -> Point:
        """Raises KeyError or TypeError for other data."""
        own = {key: value for key, value in data.items() if key != "method"}
        return cls(**{**own, "setting": Setting(**own["setting"])})


def with_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points, those marked that no other betters: as good in accuracy and all :data:`COSTS`, and better in one."""

    def goods(point: Point) -> tuple[float, ...]:
        measures = point.measures()
        return tuple(BETTER[name] * measures[name] for name in ("accuracy", *COSTS))

    known = {index: goods(point) for index, point in enumerate(points) if point.refused is None}

    def beaten(own: tuple[float, ...]) -> bool:
        return any(other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in known.values())

    return tuple(replace(p, on_front=i in known and not beaten(known[i])) for i, p in enumerate(points))


def chosen(points: Sequence[Point], wanted: str, by: str = "latency") -> tuple[Point, ...]:
    """The points; marked is, of those that are as ``wanted``, the best ``by`` one measure.

    Args:
        wanted: conditions joined by "and": a measure, a comparison, and a number, ``dense``, or both:
            "accuracy >= dense - 0.5 and latency <= dense / 3". Measures are accuracy in percent;
            least, which it is at least with 95 % confidence; flops, params, bytes and latency, of which ``dense`` is 1.

    Raises ValueError for text that is no condition, and where no point is so.
    """
    fits = condition(wanted, by)
    known = [index for index, point in enumerate(points) if point.refused is None]
    if not (several := [index for index in known if fits(points[index])]):
        best = max((points[index].score for index in known), default=0.0)
        raise ValueError(
            f"pick: got {wanted!r}, which none of {len(known)} points is (the best accuracy is {100 * best:.2f} %), "
            "expected another condition or a larger grid"
        )
    best = max(several, key=lambda index: BETTER[by] * points[index].measures()[by])
    return tuple(replace(point, chosen=index == best) for index, point in enumerate(points))


def condition(wanted: str, by: str = "latency") -> Callable[[Point], bool]:
    """Whether a point is as ``wanted``; ValueError for text that is no condition."""
    if by not in BETTER:
        raise ValueError(f"by: got {by!r}, expected one of {list(BETTER)}")
    tests = [_condition(part) for part in re.split(r"\band\b", wanted)]
    return lambda point: all(test(point) for test in tests)


def _condition(text: str) -> Callable[[Point], bool]:
    found = _CONDITION.fullmatch(text)
    if found is None or found[1] not in BETTER or (found[4] == "/" and not float(found[5])):
        raise ValueError(
            f"pick: got {text.strip()!r}, expected a measure ({', '.join(BETTER)}), <= or >=, and a number or dense, "
            "such as 'accuracy >= dense - 0.5' or 'latency <= dense / 3'"
        )
    name, sign, number, operation, amount = found.groups()

    def limit(point: Point) -> float:
        if number is not None:
            return float(number)
        dense = point.measures(dense=True)[name]
        return dense if operation is None else _COUNT[operation](dense, float(amount))

    return lambda point: _COMPARE[sign](round(point.measures()[name], 9), round(limit(point), 9))
