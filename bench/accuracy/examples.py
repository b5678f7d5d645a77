"""The examples that the study measures: networks, the images they work on, and the score of each test image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from hscc.data.spec import ImageSpec
from hscc.io.loading import load_model, load_module
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "out" / "accuracy"
FAR, NEAR = (3.0, 5.3, 6.0, 10.0, 20.0, 30.0, 40.0), (2.0, 3.0, 5.0)  # times fewer FLOPs
Pictures = tuple[np.ndarray, np.ndarray]  # uint8 (n, H, W), and labels (n,) or masks bool (n, H, W)


def clothes(program: Path, split: str, count: int, seed: int) -> Pictures:
    """Of Fashion-MNIST; the test images are the same for every seed."""
    source = load_module(program)
    pixels, labels = source.load("test" if split == "test" else "train")
    if split != "test":
        pool = slice(-source.HELD_OUT, None) if split == "calibration" else slice(None, -source.HELD_OUT)
        pixels, labels = pixels[pool], labels[pool]
    if count > len(labels):
        raise ValueError(f"{split}: got {count} images, expected at most {len(labels)}")
    order = np.arange(len(labels)) if split == "test" else np.random.default_rng(seed).permutation(len(labels))
    return pixels[order[:count]], labels[order[:count]]


def heads(program: Path, split: str, count: int, seed: int) -> Pictures:
    """Drawn, with the class of each."""
    source = load_module(program)
    return source.generate(count, source.SEEDS[split] + seed)


def marked_heads(program: Path, split: str, count: int, seed: int) -> Pictures:
    """Drawn, with the mask of the tumour; all test pictures have one, which three of four do."""
    source = load_module(program)
    if split != "test":
        return source.generate_masks(count, source.SEEDS[split] + seed)
    pixels, masks = source.generate_masks(4 * -(-count // 3), source.SEEDS[split] + seed)
    tumour = masks.any((1, 2))
    return pixels[tumour][:count], masks[tumour][:count]


def hits(logits: Tensor, labels: np.ndarray) -> np.ndarray:
    """1 where the first choice is the label, else 0: float64 (n,), of (n, classes) and (n,)."""
    return (logits.argmax(1).numpy() == labels).astype(float)


def dice(logits: Tensor, masks: np.ndarray) -> np.ndarray:
    """The overlap of what is marked and the mask: float64 (n,), of (n, 1, H, W) and (n, H, W)."""
    return _segmentation().dice(logits[:, 0].numpy() > 0, masks)


@cache
def _segmentation():
    return load_module(ROOT / "examples" / "brain_mri" / "segment.py")


@dataclass(frozen=True)
class Example:
    """Files of a network in a folder of examples/, where its images come from, and what is measured on them."""

    folder: str
    program: str  # that reads or draws the images
    images: Callable[[Path, str, int, int], Pictures]
    network: str = "model.py"
    weights: str = "weights.safetensors"
    score: Callable[[Tensor, np.ndarray], np.ndarray] = hits
    metric: str = "accuracy"
    test_images: int = 10_000
    reductions: tuple[float, ...] = NEAR

    @property
    def drawn(self) -> bool:
        """Whether each seed has test images of its own."""
        return self.images is not clothes


def _own(name: str) -> dict:
    return {"network": f"{name}.py", "weights": f"{name}.safetensors"}


EXAMPLES = {
    "brain_mri": Example("brain_mri", "synthetic.py", heads, reductions=FAR),
    "fashion_mnist": Example("fashion_mnist", "data.py", clothes, reductions=FAR),
    "resnet20": Example("fashion_mnist", "data.py", clothes, **_own("resnet20")),
    "mobilenet": Example("fashion_mnist", "data.py", clothes, **_own("mobilenet")),
    "unet": Example(
        "brain_mri", "synthetic.py", marked_heads, **_own("unet"), score=dice, metric="Dice", test_images=1500
    ),
}


@cache
def network(data: str) -> tuple[nn.Module, ImageSpec, str]:
    """The dense model, what images it wants, and a digest of its weights."""
    example = EXAMPLES[data]
    folder = ROOT / "examples" / example.folder
    weights = folder / example.weights
    model, spec = load_model(str(folder / example.network), weights)
    return model.to(memory_format=torch.channels_last), spec, _digest(weights)


@cache
def images(data: str, split: str, count: int, seed: int) -> Pictures:
    """Of "calibration", "test" or "train"; other seeds draw other images. Drawn pictures are kept on disk."""
    example = EXAMPLES[data]
    program = ROOT / "examples" / example.folder / example.program
    if not example.drawn:
        return example.images(program, split, count, seed)
    file = CACHE / f"{data}-{_digest(program)}-{split}-{seed}-{count}.npz"
    if not file.exists():
        pixels, truths = example.images(program, split, count, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, pixels=pixels, truths=truths)
        os.replace(partial, file)
    with np.load(file) as stored:
        return stored["pixels"], stored["truths"]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
