"""``hscc evaluate``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..options import Batch, Json, Model, Threads, Weights, app, set_threads, write_json


@app.command()
def evaluate(
    model: Model,
    weights: Weights,
    data: Annotated[Path, typer.Option(help="Folder of class folders of test images.")],
    batch: Batch = 32,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Accuracy, F1 and latency of a dense or compressed network on class folders of images.

    The largest output wins; a single one, for two classes, is a logit: above 0 is the second class.

    Example: hscc evaluate --model examples/brain_mri/model.py:build --weights small.safetensors
    --data data/brain_mri/test
    """
    from torch.utils.data import DataLoader

    from ...evaluation.classifier import evaluate as run
    from ...evaluation.speed import latency
    from ...io.images import ClassFolders
    from ...io.loading import load_model

    set_threads(threads)
    network, spec = load_model(model, weights)
    folders = ClassFolders(data, spec)
    result = run(network, DataLoader(folders, batch), spec.classes, show_progress=True)
    milliseconds = 1e3 * latency({"model": network}, folders[0][0][None])["model"]
    typer.echo(
        f"accuracy {100 * result.accuracy:.2f} % (standard error {100 * result.standard_error:.2f}), "
        f"macro F1 {result.macro_f1:.4f}, {result.images} images, {milliseconds:.2f} ms an image"
    )
    for name, f1 in zip(spec.classes, result.class_f1, strict=True):
        typer.echo(f"  F1 {name}: {f1:.4f}")
    write_json(json_file, {**asdict(result), "classes": list(spec.classes), "latency_ms": milliseconds})
