"""The brain tumours of Figshare (Cheng 2017, 10.6084/m9.figshare.1512427): a MATLAB file an image, with label and mask.

The files are MATLAB 7.3, which is HDF5, and hold ``cjdata``: ``image``, ``label``, ``PID`` (patient), ``tumorMask``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .pixels import Unreadable, need
from .slices import Slices
from .spec import ImageSpec

SUFFIXES = (".mat",)
NAMES = {1: "meningioma", 2: "glioma", 3: "pituitary"}


def frames(path: Path, slices: Slices) -> list[int]:
    """One picture a file; it is not opened yet."""
    return [0]


def read(path: Path, frame: int, spec: ImageSpec) -> np.ndarray:
    """The image as float32 (H, W) in 0..1, by the spec's window.

    Raises:
        Unreadable: for what is no MATLAB file of version 7.3, damaged, or without these fields.
        ImportError: without h5py.
        ValueError: with the file's name and its range, when the spec has no window.
    """
    return spec.scale(_field(path, "image"), f"image {str(path)!r}")


def mask(path: Path, spec: ImageSpec) -> np.ndarray:
    """The tumour as bool (H, W) at the spec's size, of the nearest pixels. Raises as :func:`read`."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(_field(path, "tumorMask") != 0))
    return np.array(image.resize(spec.size[::-1], Image.Resampling.NEAREST))


def label(path: Path, spec: ImageSpec) -> int:
    """The index of the spec's class whose name begins like the tumour's: meningioma, glioma or pituitary.

    Raises as :func:`read`, and ValueError with the file's name when no class, or more than one, has that name.
    """
    number = int(_field(path, "label")[0, 0])
    name = NAMES.get(number, f"number {number}")
    found = [index for index, known in enumerate(spec.classes) if known.lower().startswith(name)]
    if len(found) != 1:
        raise ValueError(f"image {str(path)!r}: got label {name!r}, expected one of {list(spec.classes)}")
    return found[0]


def patient(path: Path) -> str:
    """Whose image it is. Raises as :func:`read`."""
    return "".join(chr(int(letter)) for letter in _field(path, "PID").ravel(order="F"))


def _field(path: Path, name: str) -> np.ndarray:
    """An array of ``cjdata``; MATLAB stores columns first."""
    h5py = need("h5py", "MATLAB 7.3 files")
    try:
        with h5py.File(path, "r") as file:
            found = np.asarray(file["cjdata"][name]).T
    except Exception as error:  # anything, on damaged files
        why = f"got no cjdata/{name} of a MATLAB 7.3 file ({error})"
        raise Unreadable(path, why) from error
    if found.ndim != 2 or not found.size or found.dtype.kind not in "biuf":
        raise Unreadable(path, f"got cjdata/{name} of shape {found.shape}, expected (H, W)")
    return found
