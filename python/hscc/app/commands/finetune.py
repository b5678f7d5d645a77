"""``hscc finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..guards import fitted
from ..images import cut, tell_broken
from ..options import (
    Batch,
    Json,
    Labels,
    Model,
    SkipBroken,
    SlicesOf,
    Threads,
    Weights,
    app,
    check_folder,
    set_threads,
    write_json,
)

GUARDED = 512  # images for a guard, at most


@app.command()
def finetune(
    model: Model,
    weights: Weights,
    student: Annotated[Path, typer.Option(help="The compressed model, from hscc compress.")],
    data: Annotated[
        Path, typer.Option(help="Training images: a folder (sub-folders are read), file or set; no labels.")
    ],
    out: Annotated[Path, typer.Option(help="The fine-tuned model (safetensors).")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 2,
    validation: Annotated[Path | None, typer.Option(help="Other images, to keep the best epoch.")] = None,
    rate: Annotated[float, typer.Option(help="Learning rate at the start.")] = 5e-5,
    labels: Labels = None,
    slices: SlicesOf = None,
    skip_broken: SkipBroken = False,
    batch: Batch = 32,
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help="Seed of the shuffling.")] = 0,
    json_file: Json = None,
) -> None:
    """Trains a compressed network to give the outputs of the dense one; an interrupted run goes on when run again.

    Example: hscc finetune --model my_model.py:build --weights w.safetensors --student small.safetensors
    --data images/ --epochs 5 --out tuned.safetensors
    """
    from torch.utils.data import DataLoader

    from ... import finetune as train
    from ... import load_, load_guard, save
    from ...data.slices import Slices
    from ...data.sources import open_images
    from ...data.spec import METADATA_KEY
    from ...io.loading import build_model, load_model

    set_threads(threads)
    check_folder(out)
    teacher, spec = load_model(model, weights)
    network = build_model(model)
    report = load_(network, student)
    state = out.with_name(f"{out.name}.state")
    how = {"slices": Slices.parse(slices), "skip_broken": skip_broken}
    images = open_images(data, spec, labels=labels, **how)
    tell_broken(images)
    others = None if validation is None else open_images(validation, spec, **how)
    tell_broken(others)
    losses = train(
        network,
        teacher,
        DataLoader(images, batch, shuffle=True),
        epochs=epochs,
        validation=None if others is None else DataLoader(others, batch),
        rate=rate,
        checkpoint=state,
        seed=seed,
        show_progress=True,
    )
    guarded = load_guard(student) is not None  # its own is of the model as it was
    known = fitted(network, cut(images, GUARDED), batch) if guarded else None
    save(network, out, report=report, metadata={METADATA_KEY: spec.to_json()}, guard=known)
    state.unlink(missing_ok=True)
    told = losses.validation or losses.training
    typer.echo(f"loss {' > '.join(f'{loss:.4g}' for loss in told)}; kept epoch {losses.best_epoch}. Wrote {out}.")
    write_json(json_file, losses.to_dict())
