"""NumPy files of images: ``.npy``, and ``.npz`` with labels and groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from .folders import Labelled
from .labels import same
from .pixels import Unreadable, of_8_bits, resized
from .spec import ImageSpec

SUFFIXES = (".npy", ".npz")
SPLITS = ("train", "val", "test")


class Arrays(Dataset):
    """Images of one array; items are float32 (C, H, W).

    Args:
        images: (n, H, W) or (n, H, W, 1 or 3), or a single (H, W); uint8, or any real numbers for the spec's window.
        spec: how the network wants them.
        name: what errors call the array.

    Raises:
        ValueError: with the name, for another shape or dtype, or where the window is missing or has no meaning.
    """

    def __init__(self, images: np.ndarray, spec: ImageSpec, name: str):
        images = images[None] if images.ndim == 2 else images
        colour = images.ndim == 4 and images.shape[3] in (1, 3)
        if not (images.ndim == 3 or colour) or not images.size or images.dtype.kind not in "iufb":
            got = f"{images.dtype} {tuple(images.shape)}"
            raise ValueError(f"{name}: got {got}, expected real numbers (n, H, W) or (n, H, W, 3)")
        self.images, self.spec, self.name = images, spec, name
        if images.dtype == np.uint8:
            of_8_bits(images, spec, name)
        elif spec.window is None:
            spec.scale(images, name)  # says so, with the range of all

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        pixels = np.array(self.images[index])  # a copy, of what may stand in a file
        pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
        if pixels.dtype != np.uint8:
            pixels = self.spec.scale(pixels, self.name)
        return self.spec.preprocess(resized(pixels, self.spec.size)[None])[0]


def images(path: Path, spec: ImageSpec, split: str | None = None) -> Arrays:
    """The array of an ``.npy``; of an ``.npz`` its ``images``, or with a split e.g. ``train_images``.

    Raises:
        Unreadable: a ValueError with the file's name, for damaged files.
        ValueError: with the file's name, without such an array, and as :class:`Arrays`.
    """
    found = _load(path)
    if isinstance(found, np.ndarray):
        return Arrays(found, spec, f"array {str(path)!r}")
    key = _key(found, "images", split)
    return Arrays(_take(found, key, path), spec, f"array {key!r} of {str(path)!r}")


def labelled(path: Path, spec: ImageSpec, split: str | None = None) -> Labelled:
    """Images with ``labels`` (n,): the names of classes, or their numbers in the order of the spec's.

    Other arrays of n texts or numbers are groups. Raises as :func:`images`, and ValueError with the file's name for
    labels that are missing, of another number, or of no class.
    """
    pictures, found = images(path, spec, split), _load(path)
    if isinstance(found, np.ndarray):
        raise ValueError(f"data: got {str(path)!r} without labels, expected an .npz with 'images' and 'labels'")
    key = _key(found, "labels", split)
    labels = _take(found, key, path)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels  # as MedMNIST has them
    name = f"array {key!r} of {str(path)!r}"
    if labels.shape != (len(pictures),) or labels.dtype.kind not in "iuU":
        raise ValueError(f"{name}: got {labels.dtype} {labels.shape}, expected one label for {len(pictures)} images")
    several = {other: _take(found, other, path) for other in found.files if not other.endswith(("images", "labels"))}
    groups = {
        other: values.astype(str).tolist()
        for other, values in several.items()
        if values.shape == labels.shape and values.dtype.kind in "biufU"
    }
    return Labelled(pictures, _indices(labels, spec.classes, name), groups)


def _load(path: Path):
    """An array, left in its file, or what ``np.load`` gives of an ``.npz``."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data: got {str(path)!r}, expected a NumPy file") from error
    except Exception as error:  # anything, on damaged files
        raise Unreadable(path, error) from error


def _key(found, kind: str, split: str | None) -> str:
    """The array's name; a file with splits needs one."""
    if split is None and kind not in found.files and f"test_{kind}" in found.files:
        split = "test"
    return kind if split is None else f"{split}_{kind}"


def _take(found, key: str, path: Path) -> np.ndarray:
    if key not in found.files:
        raise ValueError(f"data: got arrays {found.files} in {str(path)!r}, expected {key!r}")
    try:
        return found[key]
    except Exception as error:  # a damaged archive, or pickled objects
        raise Unreadable(path, error) from error


def _indices(labels: np.ndarray, classes: Sequence[str], name: str) -> list[int]:
    known = {same(text): index for index, text in enumerate(classes)}
    if labels.dtype.kind != "U":
        known = {index: index for index in range(len(classes))}
    values = [same(label) if isinstance(label, str) else label for label in labels.tolist()]
    wrong = next((label for label in values if label not in known), None)
    if wrong is not None:
        raise ValueError(f"{name}: got label {wrong!r}, expected one of {list(known)}")
    return [known[label] for label in values]
