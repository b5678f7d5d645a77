"""Which reader reads a file, and what of it: pictures are found, counted and read."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from . import dicom, figshare, nifti, rasters
from .pixels import resized
from .slices import Slices
from .spec import ImageSpec

READERS = {suffix: module for module in (rasters, dicom, nifti, figshare) for suffix in module.SUFFIXES}


class Item(NamedTuple):
    """A picture: a file, and which frame of it, in the words of its reader."""

    path: Path
    frame: int | tuple[int, int] = 0


def reader(path: Path) -> ModuleType | None:
    """The module that reads a file, by its suffix, or for DICOM without one by its first bytes; None for others."""
    name = path.name.lower()
    found = next((module for suffix, module in READERS.items() if name.endswith(suffix)), None)
    return dicom if found is None and dicom.unnamed(path) else found


def find(folder: Path) -> list[Path]:
    """All files below a folder that have a reader, but hidden ones, in the order of their names."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    # other programs leave pictures' names there: ._x.png, .ipynb_checkpoints/x.png
    shown = (path for path in files if not any(part[0] == "." for part in path.relative_to(folder).parts))
    return sorted(path for path in shown if reader(path))


def items(path: Path, slices: Slices) -> list[Item]:
    """The pictures of a file. Raises as :func:`read_image`."""
    return [Item(path, frame) for frame in _reader(path).frames(path, slices)]


def read_image(path: Path, spec: ImageSpec, frame: int | tuple[int, int] = 0) -> np.ndarray:
    """A picture as uint8 (H, W) or (H, W, 3), or as float32 of these shapes in 0..1, resized to the spec's size.

    ``spec.preprocess(read_image(path, spec)[None])`` is the network's input (1, C, H, W).

    Raises:
        Unreadable: a ValueError with the file's name, for damaged files and those of another kind.
        ValueError: with the file's name, where the window is missing, or as the file's reader says.
        ImportError: when the package that reads this kind of file is not installed.
    """
    return resized(_reader(Path(path)).read(Path(path), frame, spec), spec.size)


def _reader(path: Path) -> ModuleType:
    module = reader(path)
    if module is None:
        raise ValueError(f"image {str(path)!r}: got a file of another kind, expected one ending in {sorted(READERS)}")
    return module
