"""Fashion-MNIST: 70,000 grey 28x28 photographs of ten kinds of clothing, as arrays or as class folders of PNGs."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.progress import track

ROOT = Path("/usr/share/datasets/fashion-mnist")
HELD_OUT = 512  # the last training images: never trained on, so they can calibrate a compression
CLASSES = (
    "t_shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle_boot",
)


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes -> uint8 array of the shape its header declares."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: install the Debian package dataset-fashion-mnist")
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path}: got header {raw[:4].hex()!r}, expected an IDX file of unsigned bytes")
    offset = 4 + 4 * raw[3]
    shape = tuple(np.frombuffer(raw[4:offset], ">u4").tolist())
    values = np.frombuffer(raw, np.uint8, offset=offset)
    if values.size != np.prod(shape):
        raise ValueError(f"{path}: got {values.size} bytes, expected {shape}")
    return values.reshape(shape).copy()  # torch wants writable arrays


def load(split: str, root: Path = ROOT) -> tuple[np.ndarray, np.ndarray]:
    """``split`` is "train" or "test" -> images uint8 (n, 28, 28), labels int64 (n,) indexing ``CLASSES``."""
    prefixes = {"train": "train", "test": "t10k"}
    if split not in prefixes:
        raise ValueError(f"split: got {split!r}, expected one of {sorted(prefixes)}")
    images = read_idx(Path(root) / f"{prefixes[split]}-images-idx3-ubyte.gz")
    labels = read_idx(Path(root) / f"{prefixes[split]}-labels-idx1-ubyte.gz").astype(np.int64)
    if images.shape != (len(labels), 28, 28) or labels.max() >= len(CLASSES):
        raise ValueError(f"{split}: got images {images.shape}, labels {labels.shape} up to {labels.max()}")
    return images, labels


def write_folder(folder: Path, images: np.ndarray, labels: np.ndarray, first: int) -> None:
    """uint8 (n, H, W), int64 (n,) -> ``folder/<class>/<index>.png``; the folder appears only once complete."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it or choose another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        partial = Path(scratch) / folder.name
        for name in CLASSES:
            (partial / name).mkdir(parents=True)
        pairs = zip(images, labels, strict=True)
        for index, (image, label) in enumerate(track(pairs, folder.name, len(labels)), first):
            Image.fromarray(image).save(partial / CLASSES[label] / f"{index:05d}.png")
        partial.rename(folder)


def main(
    out: Annotated[Path, typer.Option(help="Folder to write; calibration/ and test/ must not exist in it.")],
    calibration: Annotated[
        int, typer.Option(min=1, max=HELD_OUT, help="Last training images, which train.py never sees.")
    ] = HELD_OUT,
    test: Annotated[int, typer.Option(min=1, max=10_000, help="First test images.")] = 10_000,
    root: Annotated[Path, typer.Option(help="Folder of the four *-ubyte.gz files.")] = ROOT,
) -> None:
    """Write Fashion-MNIST as class folders of PNGs: <out>/{calibration,test}/<class>/<index>.png.

    Example: python examples/fashion_mnist/data.py --out data/fashion_mnist
    """
    try:
        images, labels = load("train", root)
        first = len(labels) - calibration
        write_folder(out / "calibration", images[first:], labels[first:], first)
        images, labels = load("test", root)
        write_folder(out / "test", images[:test], labels[:test], 0)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    typer.run(main)
