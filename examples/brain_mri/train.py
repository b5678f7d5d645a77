"""Trains AlexNet on synthetic brain-MRI-like pictures (no medical data), or on your own class folders.

python examples/brain_mri/train.py
python examples/brain_mri/train.py --data my_images --out my_weights.safetensors
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from hscc.data.folders import ClassFolders
from hscc.data.readers import read_image
from hscc.data.spec import METADATA_KEY, ImageSpec
from model import build
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table
from safetensors.torch import load_file, save_file
from sklearn.metrics import f1_score
from synthetic import CLASSES, NOTICE, SEEDS, SIZE, stream
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
MEAN, STD = 0.20, 0.22  # grey level of the synthetic training pictures
SIDES = (0.45, 96), (0.7, 128), (1, SIZE)  # (share of the epochs, side): small pictures first, as they are cheap
console = Console()


def spec_for(classes: tuple[str, ...]) -> ImageSpec:
    return ImageSpec((SIZE, SIZE), 3, (MEAN,) * 3, (STD,) * 3, classes)


def load(split: str, count: int, seed: int, data: Path | None, spec: ImageSpec) -> tuple[np.ndarray, Tensor]:
    """A split as grey pictures uint8 (n, SIZE, SIZE) and labels int64 (n,), drawn or read from a folder."""
    if data is None:
        pairs = stream(count, SEEDS[split] + seed, workers=os.cpu_count() or 1)
    else:
        folder, grey = ClassFolders(data / split, spec), ImageSpec(spec.size, 1, (0,), (1,), spec.classes)
        count = len(folder)
        found = zip(folder.pictures.items, folder.labels, strict=True)
        pairs = ((read_image(item.path, grey, item.frame), label) for item, label in found)
    images, labels = np.empty((count, SIZE, SIZE), np.uint8), torch.empty(count, dtype=torch.int64)
    for i, (image, label) in enumerate(track(pairs, f"{split} images", total=count, console=console)):
        images[i] = image if image.dtype == np.uint8 else np.round(255 * image)
        labels[i] = label
    return images, labels


def augment(x: Tensor, size: int) -> Tensor:
    """Random flips, zooms, shifts and brightness: float32 (n, 1, SIZE, SIZE) -> (n, 1, size, size)."""
    n = len(x)
    flip, zoom = 1.0 - 2.0 * torch.randint(2, (n,)), 1 + 0.04 * torch.randn(n)
    none, shift = torch.zeros(n), 0.02 * torch.randn(n, 2)
    pose = torch.stack([flip * zoom, none, shift[:, 0], none, zoom, shift[:, 1]], 1).view(n, 2, 3)
    grid = F.affine_grid(pose, (n, 1, size, size), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return x * (1 + 0.1 * torch.randn(n, 1, 1, 1))


def save(model: nn.Module, path: Path, spec: ImageSpec) -> None:
    """Writes the float32 weights whole or not at all: a broken-off run leaves the last epoch's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, partial, {METADATA_KEY: spec.to_json()})
    os.replace(partial, path)


def fit(
    model: nn.Module, images: np.ndarray, labels: Tensor, spec: ImageSpec, epochs: int, batch: int, rate: float
) -> Iterator[int]:
    """One pass per iteration, yielding the epoch's number; the last epochs see the full resolution."""
    grey = ImageSpec(spec.size, 1, spec.mean[:1], spec.std[:1], spec.classes)
    steps = -(-len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps, pct_start=0.1)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=epochs * steps)
        for epoch in range(epochs):
            size = next(side for share, side in SIDES if epoch + 0.5 < share * epochs)
            loss_sum, hits, seen = 0.0, 0, 0
            model.train()
            for chosen in torch.randperm(len(images)).split(batch):
                x = augment(grey.preprocess(images[chosen.numpy()]), size).expand(-1, 3, -1, -1)
                logits = model(x.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                seen += len(chosen)
                loss_sum += loss.item() * len(chosen)
                hits += (logits.argmax(1) == labels[chosen]).sum().item()
                text = f"epoch {epoch + 1}/{epochs} at {size} px: loss {loss_sum / seen:.3f}, {hits / seen:.1%}"
                progress.update(task, advance=1, description=text)
            if not console.is_terminal:
                console.print(text)
            yield epoch


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray, spec: ImageSpec, batch: int = 64) -> np.ndarray:
    """Predicted labels int64 (n,) of pictures uint8 (n, SIZE, SIZE)."""
    model.eval()
    batches = range(0, len(images), batch)
    rows = track(batches, "testing", console=console)
    return torch.cat([model(spec.preprocess(images[i : i + batch])).argmax(1) for i in rows]).numpy()


def measure(predicted: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], seed: int) -> dict:
    """Accuracy with its bootstrap standard error (1,000 resamples of the test pictures) and F1 per class."""
    hits = predicted == labels
    resamples = np.random.default_rng(seed).integers(0, len(hits), (1000, len(hits)))
    f1 = f1_score(labels, predicted, labels=range(len(classes)), average=None, zero_division=0)
    return {
        "accuracy": round(float(hits.mean()), 4),
        "standard_error": round(float(hits[resamples].mean(1).std()), 4),
        "f1": {name: round(float(value), 4) for name, value in zip(classes, f1, strict=True)},
        "test_images": len(hits),
    }


def main(
    data: Annotated[
        Path | None, typer.Option(help="Folder with train/ and test/ of class folders; default: synthetic.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Weights to write; training.json goes beside them.")] = HERE
    / "weights.safetensors",
    start: Annotated[Path | None, typer.Option(help="Weights to go on from; default: random ones.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    images: Annotated[int, typer.Option(min=4, help="Synthetic training pictures.")] = 4000,
    test_images: Annotated[int, typer.Option(min=4, help="Synthetic test pictures.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per step.")] = 16,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 4e-4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: PyTorch's choice.")] = 0,
) -> None:
    """Train AlexNet, test it, and write its weights and training.json.

    Example: python examples/brain_mri/train.py --data my_images --out my_weights.safetensors
    """
    began = time.perf_counter()
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)
    if data is None:
        classes, source = CLASSES, NOTICE
    else:
        if not (data / "train").is_dir():
            raise typer.BadParameter(f"no folder train/ of class folders in {str(data)!r}", param_hint="--data")
        classes, source = tuple(sorted(p.name for p in (data / "train").iterdir() if p.is_dir())), str(data)
    console.print(f"Data: {source}")
    spec = spec_for(classes)
    model = build(len(classes)).to(memory_format=torch.channels_last)
    if start:
        model.load_state_dict(load_file(start))
    pictures, labels = load("train", images, seed, data, spec)
    for _ in fit(model, pictures, labels, spec, epochs, batch, rate):
        save(model, out, spec)
    seconds = time.perf_counter() - began
    pictures, labels = load("test", test_images, seed, data, spec)
    result = measure(predict(model, pictures, spec), labels.numpy(), classes, seed)
    result |= dict(data=source, epochs=epochs, seed=seed, torch=torch.__version__, training_seconds=round(seconds))
    out.with_name("training.json").write_text(json.dumps(result, indent=2) + "\n")
    table = Table("measure", "value", title=f"{out.name}: {source}")
    table.add_row("accuracy", f"{result['accuracy']:.2%} ± {result['standard_error']:.2%}")
    for name, value in result["f1"].items():
        table.add_row(f"F1 {name}", f"{value:.3f}")
    table.add_row("test images", str(result["test_images"]))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
