"""The guard that a command saves with a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

    from ..guard.guard import Guard


def fitted(model: nn.Module, images: Dataset, batch: int) -> Guard | None:
    """Of these images, as they come; None, and a line that says why, where there can be none."""
    from torch.utils.data import DataLoader

    from ..guard.guard import Guard

    try:
        return Guard.fit(model, DataLoader(images, batch), show_progress=True)
    except ValueError as error:
        typer.echo(f"no guard is saved: {error}")
        return None
