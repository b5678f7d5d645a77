"""Train one of the networks of this folder on Fashion-MNIST and save its weights and how it was trained."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import mobilenet
import model as vgg
import numpy as np
import resnet20
import torch
import typer
from data import CLASSES, HELD_OUT, ROOT, load
from hscc.data.spec import METADATA_KEY, ImageSpec
from rich.progress import Progress
from safetensors.torch import save
from torch import nn
from torch.nn.functional import cross_entropy

HERE = Path(__file__).parent


class Network(NamedTuple):
    """How a network is built to be trained, what of it is saved, in which files, and epochs that suffice."""

    build: Callable[[int], nn.Module]
    finished: Callable[[nn.Module], nn.Module]
    weights: str
    record: str
    epochs: int


def as_trained(name: str, build: Callable[[int], nn.Module], epochs: int) -> Network:
    """A network that is saved with its batch normalisation."""
    return Network(build, nn.Module.eval, f"{name}.safetensors", f"{name}.json", epochs)


NETWORKS = {
    "vgg": Network(partial(vgg.build, batch_norm=True), vgg.fold, "weights.safetensors", "training.json", 7),
    "resnet20": as_trained("resnet20", resnet20.build, 11),
    "mobilenet": as_trained("mobilenet", mobilenet.build, 6),
}


def augment(images: np.ndarray, rng: np.random.Generator, shift: int = 2) -> np.ndarray:
    """uint8 (n, H, W) -> the same, each image shifted by up to ``shift`` pixels and flipped half of the time."""
    n, height, width = images.shape
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift)))
    dy, dx = rng.integers(0, 2 * shift + 1, (2, n, 1))
    flip = rng.random((n, 1)) < 0.5
    rows = dy + np.arange(height)
    columns = dx + np.where(flip, np.arange(width)[::-1], np.arange(width))
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


@torch.inference_mode()
def hits(model: nn.Module, images: np.ndarray, labels: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """uint8 (n, H, W), int64 (n,) -> bool (n,): whether the model's first choice is the label."""
    model.eval()
    chosen = [model(spec.preprocess(images[i : i + 250])).argmax(1) for i in range(0, len(images), 250)]
    return torch.cat(chosen).numpy() == labels


def write(path: Path, content: bytes) -> None:
    """Write a file that is either absent, old or complete, never half written."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def main(
    network: Annotated[str, typer.Option(help=f"Of {', '.join(NETWORKS)}.")] = "vgg",
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: what the network takes.")] = None,
    batch: Annotated[int, typer.Option(min=2)] = 128,
    lr: Annotated[float, typer.Option(help="Peak of the one-cycle schedule of AdamW.")] = 5e-3,
    weight_decay: Annotated[float, typer.Option()] = 0.05,
    seed: Annotated[int, typer.Option()] = 0,
    compiled: Annotated[
        bool, typer.Option("--compile", help="torch.compile the training step: a third faster, needs a C++ compiler.")
    ] = False,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Autocast the training step to bfloat16.")] = False,
    root: Annotated[Path, typer.Option(help="Folder of the four *-ubyte.gz files.")] = ROOT,
    out: Annotated[Path, typer.Option(help="Folder for the weights and the record of the training.")] = HERE,
) -> None:
    """Train on all but the last 512 training images, test on the 10,000 test images.

    Example: OMP_NUM_THREADS=1 python examples/fashion_mnist/train.py --network resnet20 --compile
    """
    if network not in NETWORKS:
        raise SystemExit(f"error: network: got {network!r}, expected one of {list(NETWORKS)}")
    build, finished, weights, records, own_epochs = NETWORKS[network]
    epochs = epochs or own_epochs
    start = time.perf_counter()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images, labels = load("train", root)
    held_out = images[-HELD_OUT:], labels[-HELD_OUT:]
    images, labels = images[:-HELD_OUT], labels[:-HELD_OUT]
    mean, std = (round(float(v) / 255, 4) for v in (images.mean(), images.std()))
    spec = ImageSpec(size=(28, 28), channels=1, mean=(mean,), std=(std,), classes=CLASSES)

    model = build(len(CLASSES)).to(memory_format=torch.channels_last)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay)
    steps = len(images) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.2)
    with Progress() as progress:
        for epoch in range(1, epochs + 1):
            began = time.perf_counter()
            model.train()
            order = rng.permutation(len(images))[: steps * batch].reshape(steps, batch)
            for chosen in progress.track(order, description=f"epoch {epoch}/{epochs}"):
                x = spec.preprocess(augment(images[chosen], rng))
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    logits = forward(x)
                loss = cross_entropy(logits.float(), torch.from_numpy(labels[chosen]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            accuracy = hits(model, *held_out, spec).mean()
            seconds = time.perf_counter() - began
            progress.console.print(f"epoch {epoch}: {accuracy:.2%} of the held-out images, {seconds:.0f} s")

    model = finished(model)
    test_hits = hits(model, *load("test", root), spec)
    resampled = rng.choice(test_hits, (1000, len(test_hits))).mean(1)
    record = {
        "accuracy": float(test_hits.mean()),
        "standard_error": float(resampled.std(ddof=1)),
        "n_test": len(test_hits),
        "held_out_accuracy": float(accuracy),
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "weight_decay": weight_decay,
        "seed": seed,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "compiled": compiled,
        "bfloat16": bfloat16,
        "seconds": round(time.perf_counter() - start, 1),
    }
    out.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    write(out / weights, save(state, {METADATA_KEY: spec.to_json()}))
    write(out / records, (json.dumps(record, indent=2) + "\n").encode())
    print(f"test accuracy {record['accuracy']:.2%} ± {record['standard_error']:.2%}")


if __name__ == "__main__":
    typer.run(main)
