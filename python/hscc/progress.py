"""Progress bars for long work; silent unless asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import length_hint
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], description: str, show: bool) -> Iterator[T]:
    """Yields the items, with a bar on standard error when ``show``."""
    if not show:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    total = length_hint(items) or None  # a DataLoader may have a __len__ that raises
    yield from rich_track(items, description, total=total, console=Console(stderr=True))
