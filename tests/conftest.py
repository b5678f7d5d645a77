"""Fixtures of all tests: a fixed seed, and poisoned memory for what our packages allocate uninitialised."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

OURS = ("hscc", "hscc_kernels")
MISSING = {
    "gpu": not torch.cuda.is_available() and "no CUDA device on this machine",
    "photographs": not Path("/usr/share/datasets/fashion-mnist").is_dir()
    and "Debian's package dataset-fashion-mnist is not installed",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow ones first, or the last would run alone; those that need what is missing are skipped, with the reason."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        for marker, reason in MISSING.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills with NaN what ``torch.empty`` and its like give our packages, so that unwritten memory shows."""

    def poisoned(function):
        def wrapper(*args, **kwargs):
            tensor = function(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.split(".")[0] in OURS and tensor.is_floating_point():
                tensor.fill_(float("nan"))
            return tensor

        return wrapper

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
