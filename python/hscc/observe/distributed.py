"""Calibration on several processes: each rank reads its own data, and all end with the same sums.

Follows from an initialised default group of ``torch.distributed``; without one there is a single rank, this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def gather(value: T) -> list[T]:
    """The small plain ``value`` of every rank, in the order of the ranks, on every rank."""
    if not _several():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def rank() -> int:
    """Of this process, from 0."""
    return dist.get_rank() if _several() else 0


def sum_(*tensors: Tensor) -> None:
    """Adds up each tensor over the ranks, in place."""
    if _several():
        for tensor in tensors:
            dist.all_reduce(tensor)


@contextmanager
def together() -> Iterator[None]:
    """Work that each rank does alone: an error on one is raised on all, so that none waits for it forever."""
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    told = gather(error and f"{type(error).__name__}: {error}")
    if error:
        raise error
    for rank, text in enumerate(told):
        if text:
            raise RuntimeError(f"rank {rank}: {text}")


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
