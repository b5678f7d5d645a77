"""How many replicas, and what each takes."""

from __future__ import annotations

import pytest
from hscc.serving.web.scale import Scale


def test_numbers_and_ranges() -> None:
    assert Scale.parse("3", None, None) == Scale(3, 3, 1, None)
    assert Scale.parse("1-4", 2, 0.5) == Scale(1, 4, 2, 0.5)
    assert Scale.parse("2", 1, 2.0).gpus == 2


@pytest.mark.parametrize("text", ["", "0", "0-2", "3-2", "-1", "1-", "two", "1.5", " 1", "1\n", "²", "9999999"])
def test_other_replicas(text: str) -> None:
    with pytest.raises(ValueError, match=r"^replicas: got .*, expected N or MIN-MAX, each 1 or more$"):
        Scale.parse(text, None, None)


@pytest.mark.parametrize("gpus", [1.5, 2.5, float("inf"), float("nan"), -0.5])
def test_other_gpus(gpus: float) -> None:
    with pytest.raises(ValueError, match=r"^gpus-per-replica: got .*, expected 0 to 1, or a whole number$"):
        Scale.parse("1", None, gpus)


def test_what_a_cluster_lacks() -> None:
    assert Scale(2, 8, 4, 0.5).lacking(8, 1) is None
    assert Scale(2, 8, 4, 0.5).lacking(7, 1) == "2 with 4 CPUs each, expected at most 7 CPUs in all"
    assert Scale(3, 8, 1, 0.5).lacking(8, 1) == "3 with 0.5 GPUs each, expected at most 1 GPUs in all"
    assert Scale(3, 8, 1, None).lacking(8, 0) is None
