"""``hscc compress``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..guards import fitted
from ..images import spread, tell_broken
from ..options import (
    Batch,
    Json,
    Labels,
    Model,
    Seed,
    SkipBroken,
    SlicesOf,
    Threads,
    Weights,
    app,
    check_folder,
    set_threads,
    write_json,
)


@app.command()
def compress(
    model: Model,
    weights: Weights,
    data: Annotated[
        Path, typer.Option(help="Calibration images: a folder (sub-folders are read), file or set; no labels.")
    ],
    out: Annotated[Path, typer.Option(help="The compressed model (safetensors).")],
    flops: Annotated[float | None, typer.Option(help="How many times fewer convolution FLOPs.")] = None,
    params: Annotated[float | None, typer.Option(help="How many times fewer parameters of convolutions.")] = None,
    bytes_: Annotated[float | None, typer.Option("--bytes", help="How many times fewer bytes of convolutions.")] = None,
    latency: Annotated[
        float | None, typer.Option(help="How many times faster convolutions; measures this machine once.")
    ] = None,
    energy: Annotated[float | None, typer.Option(help="Instead: share of output energy to keep, 0..1.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Points of the score that may be lost; as far as that allows.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="For --max-drop: other images, in class folders or as for hscc evaluate.")
    ] = None,
    validation_labels: Annotated[Path | None, typer.Option(help="CSV of their labels.")] = None,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Judge by answers that stay as they were; --validation needs no labels.")
    ] = False,
    confidence: Annotated[float, typer.Option(help="With which the drop is no more.")] = 0.95,
    aim: Annotated[str, typer.Option(help="What to spend it on: flops, params, bytes or latency.")] = "flops",
    regions: Annotated[int, typer.Option(help="Spatial regions a layer, at most.")] = 16,
    region_method: Annotated[str, typer.Option(help="kmeans, grid or none.")] = "kmeans",
    clusters: Annotated[int, typer.Option(help="Channel clusters a region, at most.")] = 2,
    factorization: Annotated[str, typer.Option(help="activation or weight.")] = "activation",
    reconstruction: Annotated[str, typer.Option(help="sequential or independent.")] = "sequential",
    portable: Annotated[
        bool, typer.Option("--portable", help="One region and cluster a layer: exports are plain convolutions.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="First stages in 8 bits, for CPUs; the model is then for inference alone.")
    ] = False,
    linear: Annotated[
        bool, typer.Option("--linear", help="Take nn.Linear on single positions, too, all but the last.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse other sizes of images later, for which regions would be resized.")
    ] = False,
    effort: Annotated[str, typer.Option(help="Of the search: quick, normal or thorough.")] = "normal",
    memory: Annotated[float | None, typer.Option(min=0, help="GiB it may hold; 4, or half of what is free.")] = None,
    faster_only: Annotated[bool, typer.Option("--faster-only", help="Layers that would not get faster stay.")] = False,
    latency_batch: Annotated[int, typer.Option(min=1, help="Images of the calls whose time counts.")] = 1,
    skip: Annotated[list[str] | None, typer.Option(help="Name of a layer to leave alone; repeat for several.")] = None,
    guard: Annotated[bool, typer.Option(help="Save one with it, which knows images unlike these.")] = True,
    limit: Annotated[int, typer.Option(min=1, help="Calibration images used at most.")] = 512,
    labels: Labels = None,
    slices: SlicesOf = None,
    skip_broken: SkipBroken = False,
    batch: Batch = 32,
    threads: Threads = None,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Compresses a trained network with unlabelled calibration images.

    With --max-drop it goes as far as that many points allow, of images named right or, with --agreement, of answers
    that stay those of the dense network.

    Example: hscc compress --model examples/brain_mri/model.py:build --weights examples/brain_mri/weights.safetensors
    --data data/brain_mri/calibration --flops 5.3 --out small.safetensors
    """
    from torch.utils.data import DataLoader

    from ... import Budget, Config, compress_, save
    from ...data.slices import Slices
    from ...data.sources import open_images, open_labelled
    from ...data.spec import METADATA_KEY
    from ...io.loading import load_model

    set_threads(threads)
    config = Config(
        budget=Budget(flops, params, energy, bytes_, latency, max_drop, confidence, aim),
        factorization=factorization,
        regions=regions,
        region_method=region_method,
        clusters=clusters,
        reconstruction=reconstruction,
        effort=effort,
        portable=portable,
        linear=linear,
        strict=strict,
        dtype="int8" if int8 else "float",
        memory=None if memory is None else int(memory * 2**30),
        faster_only=faster_only,
        latency_batch=latency_batch,
        skip=skip or (),
        seed=seed,
    )
    check_folder(out)
    network, spec = load_model(model, weights)
    how = {"slices": Slices.parse(slices), "skip_broken": skip_broken}
    chosen = spread(data, spec, limit, labels=labels, **how)
    judged = None
    if validation is not None:
        opened = open_images if agreement else open_labelled
        others = opened(validation, spec, labels=validation_labels, **how)
        tell_broken(others)
        judged = DataLoader(others, batch)
    report = compress_(network, DataLoader(chosen, batch), config, evaluate=judged, show_progress=True)
    typer.echo(str(report))
    watch = fitted(network, chosen, batch) if guard else None
    save(network, out, report=report, metadata={METADATA_KEY: spec.to_json()}, guard=watch)
    typer.echo(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB).")
    write_json(json_file, report.to_dict())
