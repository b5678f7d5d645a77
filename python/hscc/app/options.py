"""The ``hscc`` command, the options that its commands share, and what they do alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Makes trained CNNs smaller and really faster without retraining.",
)

Model = Annotated[str, typer.Option(help="Python file and function that builds the network: file.py:function.")]
Weights = Annotated[Path, typer.Option(help="Its weights (safetensors with an image spec in the header).")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file as JSON.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")]
Labels = Annotated[
    Path | None, typer.Option(help="CSV with columns file, label and any groups; only the files it lists are read.")
]
SlicesOf = Annotated[str | None, typer.Option("--slices", help="Of volumes: axis:low-high (0..1) or axis:index,...")]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Leaves out files that cannot be read, and says so.")]
Batch = Annotated[int, typer.Option(min=1, help="Images a batch.")]
Seed = Annotated[int, typer.Option(help="Seed of the clusterings.")]


def set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def check_folder(out: Path) -> None:
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out: got {str(out)!r}, expected a file in an existing folder")


def write_json(path: Path | None, data: dict) -> None:
    if path is not None:
        path.write_text(json.dumps(data, indent=2) + "\n")
