"""The command line: ``hscc demo``, ``hscc compress``, ``hscc finetune``, ``hscc evaluate``.

Exit codes: 0 done, 1 a fault of ours, 2 wrong usage or input (one line says what), 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
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
Batch = Annotated[int, typer.Option(min=1, help="Images a batch.")]
Seed = Annotated[int, typer.Option(help="Seed of the clusterings.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.json and the pictures.")] = Path("out/demo"),
    example: Annotated[
        Path | None, typer.Option(help="The example's folder; default: the one of this checkout.")
    ] = None,
    flops: Annotated[list[float], typer.Option(help="FLOP reductions; repeat for several.")] = [3, 6],  # noqa: B006
    calibration: Annotated[int, typer.Option(min=1, help="Unlabelled calibration images.")] = 256,
    test: Annotated[int, typer.Option(min=1, help="Test images.")] = 2000,
    threads: Threads = None,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Compresses the example network (synthetic brain MRI) and compares it with the dense one.

    Example: hscc demo --flops 3 --flops 6 --out out/demo
    """
    from . import demo as demonstration

    _set_threads(threads)
    result = demonstration.run(example or demonstration.EXAMPLE, out, flops, calibration, test, seed)
    _print_demo(result)
    typer.echo(f"Wrote {out / 'report.json'}, {out / 'regions.png'} and {out / 'ranks.png'}.")
    _write_json(json_file, result)


@app.command()
def compress(
    model: Model,
    weights: Weights,
    data: Annotated[Path, typer.Option(help="Folder of calibration images (no labels needed, sub-folders are read).")],
    out: Annotated[Path, typer.Option(help="The compressed model (safetensors).")],
    flops: Annotated[float | None, typer.Option(help="How many times fewer convolution FLOPs.")] = None,
    params: Annotated[float | None, typer.Option(help="How many times fewer parameters of convolutions.")] = None,
    bytes_: Annotated[float | None, typer.Option("--bytes", help="How many times fewer bytes of convolutions.")] = None,
    latency: Annotated[
        float | None, typer.Option(help="How many times faster convolutions; measures this machine once.")
    ] = None,
    energy: Annotated[float | None, typer.Option(help="Instead: share of output energy to keep, 0..1.")] = None,
    regions: Annotated[int, typer.Option(help="Spatial regions a layer, at most.")] = 16,
    region_method: Annotated[str, typer.Option(help="kmeans, grid or none.")] = "kmeans",
    clusters: Annotated[int, typer.Option(help="Channel clusters a region, at most.")] = 2,
    factorization: Annotated[str, typer.Option(help="activation or weight.")] = "activation",
    reconstruction: Annotated[str, typer.Option(help="sequential or independent.")] = "sequential",
    effort: Annotated[str, typer.Option(help="Of the search: quick, normal or thorough.")] = "normal",
    memory: Annotated[float | None, typer.Option(min=0, help="GiB it may hold; 4, or half of what is free.")] = None,
    faster_only: Annotated[bool, typer.Option("--faster-only", help="Layers that would not get faster stay.")] = False,
    latency_batch: Annotated[int, typer.Option(min=1, help="Images of the calls whose time counts.")] = 1,
    skip: Annotated[list[str] | None, typer.Option(help="Name of a layer to leave alone; repeat for several.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Calibration images used at most.")] = 512,
    batch: Batch = 32,
    threads: Threads = None,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Compresses a trained network with unlabelled calibration images.

    Example: hscc compress --model examples/brain_mri/model.py:build --weights examples/brain_mri/weights.safetensors
    --data data/brain_mri/calibration --flops 5.3 --out small.safetensors
    """
    from torch.utils.data import DataLoader, Subset

    from .. import Budget, Config, compress_, save
    from ..io.images import METADATA_KEY, Pictures
    from ..io.loading import load_model

    _set_threads(threads)
    config = Config(
        budget=Budget(flops=flops, params=params, bytes=bytes_, latency=latency, energy=energy),
        factorization=factorization,
        regions=regions,
        region_method=region_method,
        clusters=clusters,
        reconstruction=reconstruction,
        effort=effort,
        memory=None if memory is None else int(memory * 2**30),
        faster_only=faster_only,
        latency_batch=latency_batch,
        skip=skip or (),
        seed=seed,
    )
    _check_folder(out)
    network, spec = load_model(model, weights)
    pictures = Pictures(data, spec)
    step = max(len(pictures) // limit, 1)  # spread over the whole folder: files are often sorted by class
    chosen = Subset(pictures, range(0, len(pictures), step)[:limit])
    report = compress_(network, DataLoader(chosen, batch), config, show_progress=True)
    save(network, out, report=report, metadata={METADATA_KEY: spec.to_json()})
    typer.echo(str(report))
    typer.echo(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB).")
    _write_json(json_file, report.to_dict())


@app.command()
def finetune(
    model: Model,
    weights: Weights,
    student: Annotated[Path, typer.Option(help="The compressed model, from hscc compress.")],
    data: Annotated[Path, typer.Option(help="Folder of training images (no labels needed, sub-folders are read).")],
    out: Annotated[Path, typer.Option(help="The fine-tuned model (safetensors).")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 2,
    validation: Annotated[Path | None, typer.Option(help="Folder of other images, to keep the best epoch.")] = None,
    rate: Annotated[float, typer.Option(help="Learning rate at the start.")] = 5e-5,
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

    from .. import finetune as train
    from .. import load_, save
    from ..io.images import METADATA_KEY, Pictures
    from ..io.loading import build_model, load_model

    _set_threads(threads)
    _check_folder(out)
    teacher, spec = load_model(model, weights)
    network = build_model(model)
    report = load_(network, student)
    state = out.with_name(f"{out.name}.state")
    losses = train(
        network,
        teacher,
        DataLoader(Pictures(data, spec), batch, shuffle=True),
        epochs=epochs,
        validation=None if validation is None else DataLoader(Pictures(validation, spec), batch),
        rate=rate,
        checkpoint=state,
        seed=seed,
        show_progress=True,
    )
    save(network, out, report=report, metadata={METADATA_KEY: spec.to_json()})
    state.unlink(missing_ok=True)
    told = losses.validation or losses.training
    typer.echo(f"loss {' > '.join(f'{loss:.4g}' for loss in told)}; kept epoch {losses.best_epoch}. Wrote {out}.")
    _write_json(json_file, losses.to_dict())


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

    from ..io.images import ClassFolders
    from ..io.loading import load_model
    from .evaluate import evaluate as run
    from .evaluate import latency

    _set_threads(threads)
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
    _write_json(json_file, {**asdict(result), "classes": list(spec.classes), "latency_ms": milliseconds})


def main() -> None:
    """Entry point: turns wrong input into one line and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, ImportError, FloatingPointError, OSError) as error:
        typer.echo(f"error: {' '.join(line.strip() for line in str(error).splitlines())}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _check_folder(out: Path) -> None:
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out: got {str(out)!r}, expected a file in an existing folder")


def _write_json(path: Path | None, data: dict) -> None:
    if path is not None:
        path.write_text(json.dumps(data, indent=2) + "\n")


def _print_demo(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['data']}; {result['machine']['processor']}, {result['machine']['threads']} threads")
    models = result["models"]
    for heading in ("", *models):
        table.add_column(heading, justify="left" if heading == "" else "right")

    def row(label: str, text) -> None:
        table.add_row(label, *(text(values) for values in models.values()))

    row("accuracy (standard error), %", lambda m: f"{100 * m['accuracy']:.2f} ({100 * m['standard_error']:.2f})")
    row("macro F1", lambda m: f"{m['macro_f1']:.4f}")
    for i, name in enumerate(result["classes"]):
        row(f"F1 {name}", lambda m, i=i: f"{m['class_f1'][i]:.4f}")
    row("conv FLOPs, fewer", lambda m: f"{m['flop_reduction']:.2f}x")
    row("parameters", lambda m: f"{m['parameters']:,}")
    row("MB", lambda m: f"{m['bytes'] / 1e6:.2f}")
    for n in models["dense"]["latency_ms"]:
        row(f"latency, batch {n}, ms", lambda m, n=n: f"{m['latency_ms'][n]:.2f}")
        row(f"speed-up, batch {n}", lambda m, n=n: f"{m['speedup'][n]:.2f}x")
        row(f"conversion eta, batch {n}", lambda m, n=n: f"{m['conversion'][n]:.2f}")
    Console(width=120).print(table)
