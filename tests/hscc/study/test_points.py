"""The front and the pick, on points made up here."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hscc.study.grid import Grid, Setting
from hscc.study.points import Point, chosen, with_front


def point(name: int, lost: float, flops: float, params: float = 1, speed: float = 1) -> Point:
    return Point(
        Setting("hscc", "search", name, 1, flops),
        score=0.9 - lost,
        dense_score=0.9,
        difference=-lost,
        worst=lost + 0.01,
        flop_reduction=flops,
        parameter_reduction=params,
        byte_reduction=params,
        latency_ms=10 / speed,
        dense_ms=10.0,
    )


POINTS = (
    point(1, 0.001, 2, 1, 1.5),
    point(2, 0.002, 4, 2, 3.0),
    point(3, 0.003, 4, 2, 3.0),  # bettered by the second
    point(4, 0.02, 8, 4, 2.0),
    point(5, 0.5, 3, 1, 9.0),
    Point(Setting("svd", "search", 1, 1, 99.0), refused="too far"),
)


def test_front() -> None:
    assert [p.on_front for p in with_front(POINTS)] == [True, True, False, True, True, False]


def test_front_is_what_nothing_betters() -> None:
    """Against the definition, on random points with many ties."""
    generator = np.random.default_rng(0)
    several = [point(i, *generator.integers(1, 5, 4).tolist()) for i in range(60)]
    table = np.array([(p.score, p.flop_reduction, p.parameter_reduction, p.speedup) for p in several])
    for own, found in zip(table, with_front(several), strict=True):
        assert found.on_front != any((other >= own).all() and (other > own).any() for other in table)
    assert any(p.on_front for p in with_front(several))


@pytest.mark.parametrize(
    ("wanted", "by", "name"),
    [
        ("accuracy >= dense - 0.5", "latency", 2),
        ("accuracy >= dense - 0.2", "latency", 2),  # just so much
        ("accuracy >= dense - 0.5", "accuracy", 1),
        ("accuracy >= 0", "latency", 5),
        ("accuracy>=dense*0.9 and latency <= dense / 1.8", "flops", 4),
        ("least >= dense - 1.25", "flops", 3),
        ("least >= dense - 1.15", "latency", 1),
        ("params <= .3", "accuracy", 4),
    ],
)
def test_pick(wanted: str, by: str, name: int) -> None:
    (taken,) = (p for p in chosen(POINTS, wanted, by) if p.chosen)
    assert taken.setting.regions == name or (taken.setting.regions, name) == (2, 3)  # alike but for the accuracy


@pytest.mark.parametrize(
    "wanted", ["", "accuracy", "accuracy >= ", "accuracy >= dense -", "accuracy = 3", "accuracy >= 3 -", "x >= 1",
               "accuracy >= dense or flops <= 1", "flops <= dense / 0", "accuracy >= dense - 1 and", "__import__ >= 1"],
)  # fmt: skip
def test_what_is_no_condition(wanted: str) -> None:
    with pytest.raises(ValueError, match=r"pick: got .*expected a measure"):
        chosen(POINTS, wanted)


def test_no_point_is_so() -> None:
    with pytest.raises(ValueError, match=r"none of 5 points is \(the best accuracy is 89.90 %\)"):
        chosen(POINTS, "accuracy >= dense + 1")


def test_round_trip() -> None:
    for one in with_front(POINTS):
        assert Point.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_grid() -> None:
    grid = Grid(("hscc", "svd"), (1, 4), (2,), ("search", "energy"), (10, 3), (0.9,))
    names = [setting.name for setting in grid.settings()]
    assert names[:3] == ["hscc-r1-c2-search-3", "hscc-r1-c2-search-10", "hscc-r4-c2-search-3"]
    assert names[4:] == ["hscc-r1-c2-energy-0.9", "hscc-r4-c2-energy-0.9", "svd-3", "svd-10"]
    assert len({setting.config(grid.base) for setting in grid.settings()}) == 5  # looks at the layers


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"methods": "hscc"}, "methods: got 'hscc', expected a list"),
        ({"methods": ["magic"]}, "method: got 'magic'"),
        ({"regions": [0]}, "regions: got 0"),
        ({"flops": []}, "expected at least one value of each"),
        ({"rules": ["luck"]}, "rules: got 'luck'"),
        ({"rules": ["energy"], "energies": [2.0]}, "budget: got energy=2.0"),
    ],
)
def test_wrong_axes(axes: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Grid(**axes)
