from __future__ import annotations

import json

import hscc
import pytest


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: hscc.flops(0.5), ValueError, "got flops=0.5, expected a reduction of at least 1"),
        (lambda: hscc.flops(float("nan")), ValueError, "got flops=nan"),
        (lambda: hscc.energy(1.2), ValueError, r"got energy=1.2, expected a share in \(0, 1\]"),
        (lambda: hscc.Budget(), ValueError, "expected reductions, a max_drop, or an energy"),
        (lambda: hscc.Budget(flops=3, energy=0.5), ValueError, "expected reductions, a max_drop, or an energy"),
        (lambda: hscc.Budget(latency=0.9), ValueError, "got latency=0.9, expected a reduction of at least 1"),
        (lambda: hscc.Budget(bytes=3, energy=0.5), ValueError, "expected reductions, a max_drop, or an energy"),
        (lambda: hscc.Config(hscc.flops(3), latency_batch=0), ValueError, "latency_batch: got 0, expected an integer"),
        (
            lambda: hscc.Config(hscc.Budget(latency=2), method="tucker2"),
            ValueError,
            "method: got 'tucker2', whose time is not known, expected 'hscc' or 'svd'",
        ),
        (lambda: hscc.Budget(max_drop=0), ValueError, "got max_drop=0, expected points of the score"),
        (lambda: hscc.Budget(max_drop=1, energy=0.9), ValueError, "expected reductions, a max_drop, or an energy"),
        (lambda: hscc.Budget(max_drop=1, confidence=95), ValueError, "got confidence=95, expected one between"),
        (lambda: hscc.Budget(max_drop=1, aim="speed"), ValueError, "got aim='speed', expected one of"),
        (
            lambda: hscc.Config(hscc.Budget(max_drop=1, aim="latency"), method="tucker2"),
            ValueError,
            "whose time is not known",
        ),
        (lambda: hscc.params(0), ValueError, "got params=0, expected a reduction of at least 1"),
        (lambda: hscc.Config(budget=3.0), TypeError, "budget: got float, expected hscc.Budget"),
        (lambda: hscc.Config(hscc.flops(3), regions=0), ValueError, "regions: got 0, expected an integer"),
        (lambda: hscc.Config(hscc.flops(3), clusters=1.5), ValueError, "clusters: got 1.5"),
        (lambda: hscc.Config(hscc.flops(3), factorization="magic"), ValueError, "factorization: got 'magic', expected"),
        (lambda: hscc.Config(hscc.flops(3), region_method="x"), ValueError, "region_method: got 'x', expected one of"),
        (lambda: hscc.Config(hscc.flops(3), ridge=-1.0), ValueError, "ridge: got -1.0"),
        (lambda: hscc.Config(hscc.flops(3), effort="all"), ValueError, "effort: got 'all', expected one of"),
        (lambda: hscc.Config(hscc.flops(3), memory=1.5), ValueError, "memory: got 1.5, expected a number of bytes"),
        (lambda: hscc.Config(hscc.flops(3), speed=11), TypeError, "unexpected keyword argument 'speed'"),
    ],
)
def test_bad_options(make, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    "budget",
    [
        hscc.flops(5.3),
        hscc.energy(0.9),
        hscc.Budget(flops=6, params=3, bytes=2, latency=2),
        hscc.Budget(max_drop=0.5, confidence=0.9, aim="bytes"),
    ],
)
def test_json_round_trip(budget: hscc.Budget) -> None:
    config = hscc.Config(budget, regions=3, region_method="grid", clusters=2, skip=["a", "b"], seed=5)
    assert hscc.Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"_type": "other"}, "expected JSON with _type 'hscc.Config'"),
        ({"_version": 99}, "config: got version 99, expected 1"),
        ({"speed": 11}, r"config: got unknown options \['speed'\], expected some of"),
    ],
)
def test_json_of_others_is_refused(change: dict, match: str) -> None:
    data = json.loads(hscc.Config(hscc.flops(3)).to_json()) | change
    with pytest.raises(ValueError, match=match):
        hscc.Config.from_json(json.dumps(data))
