"""The accuracy study: methods x FLOP reductions on the examples' test images, one JSON file a cell, resumable."""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated

import hscc
import numpy as np
import torch
import typer
from hscc.data.spec import ImageSpec
from hscc.evaluation.paired import standard_error
from hscc.progress import track
from torch import Tensor, nn

from . import page as pages
from .examples import EXAMPLES, images, network

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
RESULTS, PAGE = Path("bench/results/accuracy"), Path("docs/results.md")
BATCH = 32
WEIGHT = {"factorization": "weight"}
METHODS = {
    "hscc": {},
    "hscc_int8": {"dtype": "int8"},
    "hscc_no_squeeze": {"squeeze": False},
    "hscc_one_region": {"region_method": "none", "clusters": 1},
    "paper": {**WEIGHT, "regions": 4, "region_method": "grid", "clusters": 4, "reconstruction": "independent"},
    "svd": {"method": "svd"},
    "svd_weight": {"method": "svd", **WEIGHT},
    "tucker2": {"method": "tucker2"},
    "tucker2_weight": {"method": "tucker2", **WEIGHT},
    "spatial_svd": {"method": "spatial_svd"},
    "spatial_svd_weight": {"method": "spatial_svd", **WEIGHT},
    "balf": {"method": "balf"},
}


@dataclass(frozen=True)
class Cell:
    """One compression. ``seed`` draws the images and seeds the clusterings; names of methods are of :data:`METHODS`."""

    data: str
    method: str
    flops: float
    params: float | None = None
    calibration: int = 512
    finetune_epochs: int = 0
    finetune_images: int = 0
    seed: int = 0

    @property
    def file(self) -> Path:
        params = "" if self.params is None else f"-p{self.params:g}"
        tuned = f"-e{self.finetune_epochs}x{self.finetune_images}" if self.finetune_epochs else ""
        name = f"{self.method}-{self.flops:g}x{params}-c{self.calibration}{tuned}-s{self.seed}.json"
        return Path(self.data) / name

    def config(self) -> hscc.Config:
        return hscc.Config(hscc.Budget(self.flops, self.params), seed=self.seed, **METHODS[self.method])


def run(cell: Cell, show: bool) -> dict:
    """Compresses, fine-tunes if asked, and tests; the difference to dense is paired image by image.

    "accuracy" is the mean score, in 0..1: the share of images named right, or the mean Dice.
    """
    dense, spec, weights = network(cell.data)
    calibration = batches(images(cell.data, "calibration", cell.calibration, cell.seed)[0], spec)
    model = copy.deepcopy(dense)
    start = time.perf_counter()
    report = hscc.compress_(model, calibration, cell.config(), show_progress=show)
    seconds = time.perf_counter() - start
    if cell.finetune_epochs:
        hscc.finetune(
            model,
            *lessons(cell.data, cell.finetune_images, cell.seed),
            epochs=cell.finetune_epochs,
            also=[""],
            temperature=None,
            seed=cell.seed,
            show_progress=show,
        )
    before, after = dense_scores(cell.data, cell.seed), scores(model, cell.data, cell.seed, show)
    return {
        **asdict(cell),
        "dense_accuracy": before.mean(),
        "dense_standard_error": standard_error(before),
        "accuracy": after.mean(),
        "standard_error": standard_error(after),
        "difference": after.mean() - before.mean(),
        "difference_standard_error": standard_error(after - before),
        "test_images": len(after),
        "flop_reduction": report.flop_reduction,
        "param_reduction": report.parameter_reduction,
        "seconds": round(seconds, 2),
        "weights": weights,
        "config": json.loads(cell.config().to_json()),
        "version": hscc.__version__,
    }


class Answers(nn.Module):
    """A teacher that is asked once about each batch of a list that stays: epochs and cells share what it said."""

    def __init__(self, teacher: nn.Module):
        super().__init__()
        self.teacher, self.known = teacher, {}

    def forward(self, x: Tensor) -> Tensor:
        if id(x) not in self.known:
            self.known[id(x)] = self.teacher(x)
        return self.known[id(x)]


@cache
def lessons(data: str, count: int, seed: int) -> tuple[Answers, list[Tensor]]:
    """The teacher, and unlabelled training images."""
    dense, spec, _ = network(data)
    return Answers(dense), batches(images(data, "train", count, seed)[0], spec)


@cache
def dense_scores(data: str, seed: int) -> np.ndarray:
    return scores(network(data)[0], data, seed, False)


@torch.inference_mode()
def scores(model: nn.Module, data: str, seed: int, show: bool) -> np.ndarray:
    """float64 (n,): of each test image."""
    example, spec, dtype = EXAMPLES[data], network(data)[1], next(model.parameters()).dtype
    pixels, truths = images(data, "test", example.test_images, seed)
    parts = [slice(i, i + BATCH) for i in range(0, len(truths), BATCH)]
    outputs = ((model(spec.preprocess(pixels[part]).to(dtype)), truths[part]) for part in track(parts, "testing", show))
    return np.concatenate([example.score(y, truth) for y, truth in outputs])


def measured(results: Path, data: str) -> Iterator[dict]:
    """The cells of a results folder, without those of other weights than today's."""
    for file in sorted((results / data).glob("*.json")):
        cell = json.loads(file.read_text())
        if cell["weights"] == network(data)[2]:
            yield cell


@app.command()
def main(
    data: Annotated[str, typer.Option(help=f"Example: {' or '.join(EXAMPLES)}.")],
    method: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(METHODS)}; repeatable; all.")] = None,
    flops: Annotated[list[float] | None, typer.Option(help="Times fewer FLOPs; repeatable.")] = None,
    params: Annotated[float | None, typer.Option(help="Times fewer parameters, as well.")] = None,
    calibration: Annotated[int, typer.Option(min=1, help="Unlabelled calibration images.")] = 512,
    finetune_epochs: Annotated[int, typer.Option(min=0, help="Epochs of distillation from the dense model.")] = 0,
    finetune_images: Annotated[int, typer.Option(min=1, help="Unlabelled training images it sees.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="Of the images drawn and of the clusterings.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="One cell only: write it to this file.")] = None,
    results: Annotated[
        Path, typer.Option(help="Folder of cells; run again only for new weights or when deleted.")
    ] = RESULTS,
    page: Annotated[Path, typer.Option(help="Page of tables and plots, written from all cells.")] = PAGE,
) -> None:
    """Measures accuracy after compression: one cell, or a grid that goes on where it stopped, with tables and plots.

    Example: python -m bench.accuracy --data fashion_mnist --method hscc --flops 20 --json cell.json
    """
    if data not in EXAMPLES or not set(method or ()) <= set(METHODS):
        raise ValueError(f"got data {data!r} and methods {method}, expected of {list(EXAMPLES)} and {list(METHODS)}")
    if threads is not None:
        torch.set_num_threads(threads)
    taught = finetune_images if finetune_epochs else 0
    cells = [
        Cell(data, name, reduction, params, calibration, finetune_epochs, taught, seed)
        for name, reduction in product(method or METHODS, flops or EXAMPLES[data].reductions)
    ]
    if json_file is not None:
        if len(cells) != 1:
            raise ValueError(f"json: got {len(cells)} cells, expected one --method and one --flops")
        result = run(cells[0], True)
        write(json_file, result)
        typer.echo(pages.sentence(result))
        return
    done = {Cell(**{f.name: cell[f.name] for f in fields(Cell)}) for cell in measured(results, data)}
    for cell in track([cell for cell in cells if cell not in done], "cells", True):
        try:
            result = run(cell, False)
            typer.echo(pages.sentence(result))
        except ValueError as error:  # a method that cannot go so far is a result too
            result = {**asdict(cell), "weights": network(data)[2], "refused": str(error)}
            typer.echo(f"{cell.method} {cell.flops:g}x: {error}")
        write(results / cell.file, result)
    pages.write(page, {name: list(measured(results, name)) for name in EXAMPLES})
    typer.echo(f"Wrote {page}.")


def batches(pixels: np.ndarray, spec: ImageSpec) -> list[Tensor]:
    return [spec.preprocess(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]


def write(file: Path, result: dict) -> None:
    """An interrupted write leaves no half cell."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, file)


def start() -> None:
    """The command; wrong input is one line and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
