"""The accuracy study: methods x FLOP reductions on the examples' test images, one JSON file a cell, resumable."""

from __future__ import annotations

import copy
import hashlib
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
from hscc.app.evaluate import standard_error
from hscc.io.images import ImageSpec
from hscc.io.loading import load_model, load_module
from hscc.progress import track
from torch import Tensor, nn

from . import page as pages

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "out" / "accuracy"
RESULTS, PAGE = Path("bench/results/accuracy"), Path("docs/results.md")
BATCH = 32
TEST_IMAGES = {"brain_mri": 10_000, "fashion_mnist": 10_000}
REDUCTIONS = (3.0, 5.3, 6.0, 10.0, 20.0, 30.0, 40.0)
WEIGHT = {"factorization": "weight"}
METHODS = {
    "hscc": {},
    "hscc_no_squeeze": {"squeeze": False},
    "hscc_one_region": {"region_method": "none", "clusters": 1},
    "paper": {**WEIGHT, "regions": 4, "region_method": "grid", "clusters": 4, "reconstruction": "independent"},
    "svd": {"method": "svd"},
    "svd_weight": {"method": "svd", **WEIGHT},
    "tucker2": {"method": "tucker2"},
    "tucker2_weight": {"method": "tucker2", **WEIGHT},
    "spatial_svd": {"method": "spatial_svd"},
    "spatial_svd_weight": {"method": "spatial_svd", **WEIGHT},
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
    """Compresses, fine-tunes if asked, and tests; shares in 0..1, the difference to dense paired image by image."""
    dense, spec, weights = example(cell.data)
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
    before, after = dense_hits(cell.data, cell.seed), hits(model, cell.data, cell.seed, show)
    return {
        **asdict(cell),
        "dense_accuracy": before.mean(),
        "dense_standard_error": standard_error(before),
        "accuracy": after.mean(),
        "standard_error": standard_error(after),
        "difference": after.mean() - before.mean(),
        "difference_standard_error": standard_error(after.astype(int) - before),
        "test_images": len(after),
        "flop_reduction": report.flop_reduction,
        "param_reduction": report.parameter_reduction,
        "seconds": round(seconds, 2),
        "weights": weights,
        "config": json.loads(cell.config().to_json()),
        "version": hscc.__version__,
    }


@cache
def example(data: str) -> tuple[nn.Module, ImageSpec, str]:
    """The dense model, what images it wants, and a digest of its weights."""
    folder = ROOT / "examples" / data
    weights = folder / "weights.safetensors"
    model, spec = load_model(str(folder / "model.py"), weights)
    return model.to(memory_format=torch.channels_last), spec, _digest(weights)


@cache
def images(data: str, split: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, H, W) and labels (count,) of "calibration", "test" or "train"; other seeds draw other images.

    The test images of Fashion-MNIST are the same for every seed. Drawn pictures are kept on disk.
    """
    if data == "fashion_mnist":
        source = load_module(ROOT / "examples" / data / "data.py")
        pixels, labels = source.load("test" if split == "test" else "train")
        if split != "test":
            pool = slice(-source.HELD_OUT, None) if split == "calibration" else slice(None, -source.HELD_OUT)
            pixels, labels = pixels[pool], labels[pool]
        if count > len(labels):
            raise ValueError(f"{split}: got {count} images, expected at most {len(labels)}")
        order = np.arange(len(labels)) if split == "test" else np.random.default_rng(seed).permutation(len(labels))
        return pixels[order[:count]], labels[order[:count]]
    program = ROOT / "examples" / data / "synthetic.py"
    file = CACHE / f"{data}-{_digest(program)}-{split}-{seed}-{count}.npz"
    if not file.exists():
        source = load_module(program)
        pixels, labels = source.generate(count, source.SEEDS[split] + seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, pixels=pixels, labels=labels)
        os.replace(partial, file)
    with np.load(file) as stored:
        return stored["pixels"], stored["labels"]


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
    dense, spec, _ = example(data)
    return Answers(dense), batches(images(data, "train", count, seed)[0], spec)


@cache
def dense_hits(data: str, seed: int) -> np.ndarray:
    return hits(example(data)[0], data, seed, False)


@torch.inference_mode()
def hits(model: nn.Module, data: str, seed: int, show: bool) -> np.ndarray:
    """bool (n,): which test images the model names right."""
    pixels, labels = images(data, "test", TEST_IMAGES[data], seed)
    batches = range(0, len(labels), BATCH)
    spec, dtype = example(data)[1], next(model.parameters()).dtype
    inputs = (spec.preprocess(pixels[i : i + BATCH]).to(dtype) for i in track(batches, "testing", show))
    chosen = [model(x).argmax(1) for x in inputs]
    return torch.cat(chosen).numpy() == labels


def measured(results: Path, data: str) -> Iterator[dict]:
    """The cells of a results folder, without those of other weights than today's."""
    for file in sorted((results / data).glob("*.json")):
        cell = json.loads(file.read_text())
        if cell["weights"] == example(data)[2]:
            yield cell


@app.command()
def main(
    data: Annotated[str, typer.Option(help=f"Example: {' or '.join(TEST_IMAGES)}.")],
    method: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(METHODS)}; repeatable; all.")] = None,
    flops: Annotated[list[float] | None, typer.Option(help="Times fewer FLOPs; repeatable; 3 to 40.")] = None,
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
    if data not in TEST_IMAGES or not set(method or ()) <= set(METHODS):
        raise ValueError(f"got data {data!r} and methods {method}, expected of {list(TEST_IMAGES)} and {list(METHODS)}")
    if threads is not None:
        torch.set_num_threads(threads)
    taught = finetune_images if finetune_epochs else 0
    cells = [
        Cell(data, name, reduction, params, calibration, finetune_epochs, taught, seed)
        for name, reduction in product(method or METHODS, flops or REDUCTIONS)
    ]
    if json_file is not None:
        if len(cells) != 1:
            raise ValueError(f"json: got {len(cells)} cells, expected one --method and one --flops")
        result = run(cells[0], True)
        _write(json_file, result)
        typer.echo(pages.sentence(result))
        return
    done = {Cell(**{f.name: cell[f.name] for f in fields(Cell)}) for cell in measured(results, data)}
    for cell in track([cell for cell in cells if cell not in done], "cells", True):
        try:
            result = run(cell, False)
            typer.echo(pages.sentence(result))
        except ValueError as error:  # a method that cannot go so far is a result too
            result = {**asdict(cell), "weights": example(data)[2], "refused": str(error)}
            typer.echo(f"{cell.method} {cell.flops:g}x: {error}")
        _write(results / cell.file, result)
    pages.write(page, {name: list(measured(results, name)) for name in TEST_IMAGES})
    typer.echo(f"Wrote {page}.")


def batches(pixels: np.ndarray, spec: ImageSpec) -> list[Tensor]:
    return [spec.preprocess(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _write(file: Path, result: dict) -> None:
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
