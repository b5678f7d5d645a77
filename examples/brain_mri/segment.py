"""Trains the U-Net of unet.py to mark the tumours in synthetic brain-MRI-like pictures (no medical data).

python examples/brain_mri/segment.py
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
from hscc.data.spec import ImageSpec
from rich.progress import track
from synthetic import NOTICE, SEEDS, SIZE, generate_masks
from torch import Tensor, nn
from train import MEAN, STD, console, save
from unet import build

HERE = Path(__file__).resolve().parent
SIDE = SIZE // 2  # of a picture
SIDES = (0.6, SIDE // 2), (1, SIDE)  # (share of the epochs, side): small pictures first, as they are cheap
SPEC = ImageSpec((SIDE, SIDE), 1, (MEAN,), (STD,), ("tumour",))


def augment(x: Tensor, masks: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Random flips and brightness: float32 (n, 1, SIDE, SIDE), twice -> (n, 1, side, side), twice."""
    flip, shrink = torch.rand(len(x), 1, 1, 1) < 0.5, SIDE // side
    x, masks = (F.avg_pool2d(torch.where(flip, t.flip(3), t), shrink) for t in (x, masks))
    return x * (1 + 0.1 * torch.randn(len(x), 1, 1, 1)), masks


def loss_of(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of the pixels plus what the batch as a whole misses of a Dice of 1; (n, 1, H, W) twice."""
    chosen = logits.sigmoid()
    overlap = 2 * (chosen * masks).sum() / (chosen + masks).sum()
    return F.binary_cross_entropy_with_logits(logits, masks) + 1 - overlap


def fit(
    model: nn.Module, pictures: tuple[np.ndarray, np.ndarray], epochs: int, batch: int, rate: float, bfloat16: bool
) -> Iterator[int]:
    """One pass per iteration, yielding the epoch's number; the last epochs see the full resolution."""
    images, masks = pictures
    steps = -(-len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps, pct_start=0.1)
    for epoch in range(epochs):
        side = next(side for share, side in SIDES if epoch + 0.5 < share * epochs)
        began, loss_sum = time.perf_counter(), 0.0
        model.train()
        order = np.random.permutation(len(images))
        for start in track(range(0, len(images), batch), f"epoch {epoch + 1}/{epochs}", console=console):
            chosen = order[start : start + batch]
            x, wanted = augment(SPEC.preprocess(images[chosen]), torch.from_numpy(masks[chosen])[:, None].float(), side)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = model(x.contiguous(memory_format=torch.channels_last))
            loss = loss_of(logits.float(), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.item()
        seconds = time.perf_counter() - began
        console.print(f"epoch {epoch + 1}/{epochs} at {side} px: loss {loss_sum / steps:.3f}, {seconds:.0f} s")
        yield epoch


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray, batch: int = 32) -> np.ndarray:
    """Tumours marked in pictures uint8 (n, SIDE, SIDE): bool (n, SIDE, SIDE)."""
    model.eval()
    rows = track(range(0, len(images), batch), "testing", console=console)
    return torch.cat([model(SPEC.preprocess(images[i : i + batch]))[:, 0] > 0 for i in rows]).numpy()


def dice(marked: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Of each picture float64 (n,), of bool (n, H, W) twice: the overlap; 1 where both are empty."""
    common, both = (marked & masks).sum((1, 2)), marked.sum((1, 2)) + masks.sum((1, 2))
    return np.where(both, 2 * common / np.maximum(both, 1), 1.0)


def main(
    out: Annotated[Path, typer.Option(help="Weights to write; a .json of that name goes beside them.")] = HERE
    / "unet.safetensors",
    epochs: Annotated[int, typer.Option(min=1)] = 8,
    images: Annotated[int, typer.Option(min=4, help="Training pictures.")] = 2400,
    test_images: Annotated[int, typer.Option(min=4, help="Test pictures; those with a tumour count.")] = 2000,
    batch: Annotated[int, typer.Option(min=2, help="Pictures per step.")] = 16,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 3e-3,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Autocast the training step to bfloat16.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train the U-Net, test it, and write its weights and how it was trained.

    Example: OMP_NUM_THREADS=1 python examples/brain_mri/segment.py --bfloat16
    """
    began, workers = time.perf_counter(), os.cpu_count() or 1
    torch.manual_seed(seed)
    np.random.seed(seed)
    console.print(f"Data: {NOTICE}")
    model = build().to(memory_format=torch.channels_last)
    pictures = generate_masks(images, SEEDS["train"] + seed, workers=workers)
    for _ in fit(model, pictures, epochs, batch, rate, bfloat16):
        save(model, out, SPEC)
    seconds = time.perf_counter() - began
    pixels, masks = generate_masks(test_images, SEEDS["test"] + seed, workers=workers)
    tumour = masks.any((1, 2))
    scores = dice(predict(model, pixels[tumour]), masks[tumour])
    resamples = np.random.default_rng(seed).integers(0, len(scores), (1000, len(scores)))
    record = {
        "dice": round(float(scores.mean()), 4),
        "standard_error": round(float(scores[resamples].mean(1).std()), 4),
        "test_images": len(scores),
        "data": NOTICE,
        "images": images,
        "epochs": epochs,
        "batch": batch,
        "rate": rate,
        "seed": seed,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "bfloat16": bfloat16,
        "training_seconds": round(seconds),
    }
    out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    console.print(f"mean Dice {record['dice']:.4f} ± {record['standard_error']:.4f} of {len(scores)} pictures")


if __name__ == "__main__":
    typer.run(main)
