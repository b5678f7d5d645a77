"""Fixtures of all tests: a fixed seed, and poisoned memory for what our packages allocate uninitialised."""

from __future__ import annotations

import sys

import pytest
import torch

OURS = ("hscc", "hscc_kernels")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow ones first, or the last would run alone; ``gpu`` skipped where there is no CUDA device, with that reason."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


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
