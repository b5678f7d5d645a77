"""Images as the commands take them, and what they say about files left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from torch.utils.data import Dataset, Subset

    from ..data.spec import ImageSpec


def spread(source: Path, spec: ImageSpec, limit: int, **how) -> Subset:
    """At most ``limit`` images of the whole source, as files are often sorted by class; ``how`` as for
    :func:`hscc.data.sources.open_images`."""
    from ..data.sources import open_images

    pictures = open_images(source, spec, **how)
    tell_broken(pictures)
    return cut(pictures, limit)


def cut(images: Dataset, limit: int) -> Subset:
    """At most ``limit`` of them, spread over all."""
    from torch.utils.data import Subset

    step = max(len(images) // limit, 1)
    return Subset(images, range(0, len(images), step)[:limit])


def tell_broken(images: Dataset) -> None:
    """Of a dataset that was asked to leave out what cannot be read."""
    tell(getattr(images, "broken", ()), "cannot be read")


def tell(files: Sequence[Path], why: str) -> None:
    """How many files are left out, and the first five."""
    if files:
        names = ", ".join(map(str, files[:5])) + (", ..." if len(files) > 5 else "")
        typer.echo(f"left out {len(files)} that {why}: {names}")
