"""``hscc sweep``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from ..images import spread, tell_broken
from ..options import Batch, Labels, Model, Seed, SkipBroken, SlicesOf, Threads, Weights, app, check_folder, set_threads


@app.command()
def sweep(
    model: Model,
    weights: Weights,
    data: Annotated[Path, typer.Option(help="Calibration images: a folder, file or set; no labels.")],
    validation: Annotated[Path, typer.Option(help="Other images, in class folders or as for hscc evaluate.")],
    out: Annotated[Path, typer.Option(help="Folder of the results: a new one, or one to go on with.")],
    method: Annotated[
        list[str] | None, typer.Option(help="hscc, svd, tucker2, spatial_svd, balf; repeat for several.")
    ] = None,
    regions: Annotated[list[int] | None, typer.Option(help="Regions a layer, for hscc; repeat for several.")] = None,
    clusters: Annotated[list[int] | None, typer.Option(help="Clusters a region; repeat for several.")] = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="Of ranks: search, given (so many regions) or energy; repeat for several.")
    ] = None,
    flops: Annotated[list[float] | None, typer.Option(help="Times fewer FLOPs; repeat for several.")] = None,
    energy: Annotated[list[float] | None, typer.Option(help="Shares kept, for the rule energy; repeat.")] = None,
    pick: Annotated[
        str | None, typer.Option(help="Which one is wanted: 'accuracy >= dense - 0.5 and latency <= dense / 3'.")
    ] = None,
    by: Annotated[str, typer.Option(help="Of those the best: latency, flops, params, bytes, accuracy.")] = "latency",
    to: Annotated[Path | None, typer.Option(help="For --pick: the weights of that one go to this file.")] = None,
    validation_labels: Annotated[Path | None, typer.Option(help="CSV of the validation labels.")] = None,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Judge by answers that stay as they were; no labels needed.")
    ] = False,
    effort: Annotated[str, typer.Option(help="Of the search: quick, normal or thorough.")] = "normal",
    latency_batch: Annotated[int, typer.Option(min=1, help="Images of the calls that are timed.")] = 1,
    skip: Annotated[list[str] | None, typer.Option(help="Name of a layer to leave alone; repeat for several.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Calibration images used at most.")] = 256,
    labels: Labels = None,
    slices: SlicesOf = None,
    skip_broken: SkipBroken = False,
    batch: Batch = 32,
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Compresses a network in many ways and shows which of them nothing betters.

    Stopped, it goes on where it was when it is called again. The folder has the weights of every compression and
    points.json for hscc report --points.

    Example: hscc sweep --model examples/brain_mri/model.py:build --weights examples/brain_mri/weights.safetensors
    --data data/brain_mri/calibration --validation data/brain_mri/test --out out/sweep --pick "accuracy >= dense - 0.5"
    """
    import torch
    from torch.utils.data import DataLoader

    from ... import Budget, Config, Grid
    from ... import sweep as run
    from ...data.slices import Slices
    from ...data.sources import open_images, open_labelled
    from ...data.spec import METADATA_KEY
    from ...io.loading import load_model
    from ...study.journal import Journal
    from ...study.points import chosen, condition
    from .. import points as tables

    set_threads(threads)
    if to is not None and pick is None:
        raise ValueError("to: got a file without --pick, expected both")
    if to is not None:
        check_folder(to)
    if pick is not None:
        condition(pick, by)  # a mistake is told before the work
    base = Config(Budget(flops=1), effort=effort, latency_batch=latency_batch, skip=skip or (), seed=seed)
    axes = {"methods": method, "regions": regions, "clusters": clusters, "rules": rule}
    axes |= {"flops": flops, "energies": energy}
    grid = Grid(**{name: values for name, values in axes.items() if values}, base=base)
    network, spec = load_model(model, weights)
    network = network.to(memory_format=torch.channels_last)  # dense times are of its faster layout
    how = {"slices": Slices.parse(slices), "skip_broken": skip_broken}
    calibration = [*DataLoader(spread(data, spec, limit, labels=labels, **how), batch)]
    opened = open_images if agreement else open_labelled
    others = opened(validation, spec, labels=validation_labels, **how)
    tell_broken(others)
    judged = DataLoader(others, batch)
    journal = Journal(out, {METADATA_KEY: spec.to_json()})
    points = run(network, calibration, grid, journal, evaluate=judged, show_progress=True)
    if pick is not None:
        points = chosen(points, pick, by)
        journal.conclude(points)
    tables.show(points)
    typer.echo(f"Wrote {out}: weights of each, and points.json.")
    if to is not None:
        (one,) = (point for point in points if point.chosen)
        partial = to.with_name(f"{to.name}.{os.getpid()}.tmp")
        shutil.copyfile(journal.weights(one.setting), partial)
        os.replace(partial, to)
        typer.echo(f"Wrote {to}.")
