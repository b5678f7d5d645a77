"""Slices of NIfTI volumes, turned the way DICOM shows them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from .pixels import Unreadable, need, reading
from .slices import Slices
from .spec import ImageSpec

SUFFIXES = (".nii", ".nii.gz")
UPRIGHT = "LPI"  # towards the patient's left, back and feet: slices have rows from the front or the head down


def frames(path: Path, slices: Slices) -> list[tuple[int, int]]:
    """(axis, index) of each slice that is taken. Raises as :func:`read`."""
    image = _open(path)
    with reading(path):
        axes = need("nibabel", "NIfTI files").io_orientation(image.affine)[:, 0].tolist()
        count = image.shape[axes.index(slices.axis)]
    return [(slices.axis, index) for index in slices.of(count, f"image {str(path)!r}")]


def read(path: Path, frame: tuple[int, int], spec: ImageSpec) -> np.ndarray:
    """A slice as float32 (H, W) in 0..1, by the spec's window on the rescaled values.

    The affine says how the volume lies. Axial slices have the patient's front at the top, others the head; his right is
    on the left, in sagittal ones his front. The last volume stays in memory, for slices that are read in order.

    Raises:
        Unreadable: for what is no NIfTI, damaged, or no volume of real numbers (H, W, D).
        ImportError: without nibabel.
        ValueError: with the file's name and its range, when the spec has no window.
    """
    state = path.stat()
    volume = _volume(path, state.st_mtime_ns, state.st_size)
    if spec.window is None:  # its range says more than a slice's
        spec.scale(volume, f"image {str(path)!r}")
    axis, index = frame
    return spec.scale(volume.take(index, axis).T, f"image {str(path)!r}")


@lru_cache(maxsize=1)
def _volume(path: Path, changed: int, size: int) -> np.ndarray:
    """float32 (left, back, feet); the last two arguments are there for files that change."""
    nibabel = need("nibabel", "NIfTI files")
    image = _open(path)
    with reading(path):
        place, upright = nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(UPRIGHT)
        turned = image.as_reoriented(nibabel.orientations.ornt_transform(place, upright))
        return np.asarray(turned.dataobj, dtype=np.float32)


def _open(path: Path):
    """The image of three dimensions, its voxels not read yet."""
    nibabel = need("nibabel", "NIfTI files")
    with reading(path):
        image = nibabel.load(path)
        shape, kind = image.shape, image.get_data_dtype()
        if len(shape) > 3 and set(shape[3:]) == {1}:
            image = nibabel.squeeze_image(image)
    if len(image.shape) != 3 or kind.kind not in "iuf":
        raise Unreadable(path, f"got {kind} of shape {shape}, expected one volume of real numbers")
    return image
