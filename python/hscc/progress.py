"""Progress of long work, on one display, and where its time went; silent unless asked for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from operator import length_hint
from typing import Any, TypeVar

T = TypeVar("T")


class Job:
    """Work in stages: the share of the whole that each is expected to take, and the seconds that it took."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        self.shares, self.seconds = shares, {}
        self.bar: Any = None  # rich.progress.Progress, where it is shown

    def track(self, items: Iterable[T], stage: str, of: int | None) -> Iterator[T]:
        """Yields the items, ``of`` so many in all of the stage; counts the time until the next one is asked for."""
        start, number = time.perf_counter(), of or length_hint(items)
        step = self.shares.get(stage, 0) / number if number else 0
        if self.bar is not None:
            self.bar.update(0, description=stage)
        try:
            for item in items:
                yield item
                if self.bar is not None:
                    self.bar.advance(0, step)
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


_current: ContextVar[Job | None] = ContextVar("job", default=None)


@contextmanager
def job(shares: Mapping[str, float], show: bool, whole: float | None = None) -> Iterator[Job]:
    """One display with the time left, on standard error, where ``show``. A job within a job is a part of it.

    ``whole`` is what the shares come to, if stages are done several times.
    """
    if (outer := _current.get()) is not None:
        yield outer
        return
    made, whole = Job(shares), whole or sum(shares.values())
    token = _current.set(made)
    try:
        if not show:
            yield made
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as made.bar:
            made.bar.add_task("", total=whole)
            yield made
            made.bar.update(0, description="done", completed=whole)
    finally:
        _current.reset(token)


def track(items: Iterable[T], stage: str, show: bool, of: int | None = None) -> Iterator[T]:
    """Yields the items: a stage of the job at hand, else with a bar of their own where ``show``.

    Args:
        of: how many there are of the stage in all, if not only these.
    """
    if (current := _current.get()) is not None:
        yield from current.track(items, stage, of)
    elif not show:
        yield from items
    else:
        from rich.console import Console
        from rich.progress import track as rich_track

        total = length_hint(items) or None  # a DataLoader may have a __len__ that raises
        yield from rich_track(items, stage, total=total, console=Console(stderr=True))


@contextmanager
def stage(name: str, show: bool) -> Iterator[None]:
    """A stage of one item."""
    for _ in track((None,), name, show):
        yield
