"""What all readers share: their errors, pixels without units, another size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from .spec import ImageSpec


class Unreadable(ValueError):
    """A damaged file, or none of its kind; ``skip_broken=True`` leaves it out. Names the file."""

    def __init__(self, path: Path, why: object):
        why = " ".join(str(why).split()) or type(why).__name__
        super().__init__(f"unreadable image {str(path)!r}: {why}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What a library raises on a damaged file, which is nearly anything, becomes :class:`Unreadable`."""
    try:
        yield
    except (Unreadable, ImportError):
        raise
    except Exception as error:
        raise Unreadable(path, error) from error


def need(package: str, kind: str) -> ModuleType:
    """The package that reads a kind of file; ImportError says how to install it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f"{kind} need {package}: pip install 'hscc[medical]'") from error


def of_8_bits(pixels: np.ndarray, spec: ImageSpec, name: str) -> np.ndarray:
    """uint8 pixels as they are; ValueError where the spec has a window, as they have no units."""
    if spec.window is not None:
        low, high = spec.window
        raise ValueError(
            f"{name}: got 8 bits or colours, expected values in the units of the window {low:g} to {high:g}"
        )
    return pixels


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 or float32 (H, W[, 3]) -> the same dtype at ``size`` (H, W), bilinear, with antialiasing."""
    from PIL import Image

    def plane(values: np.ndarray) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(values))
        return np.array(image.resize(size[::-1], Image.Resampling.BILINEAR))

    if pixels.shape[:2] == tuple(size):
        return pixels
    if pixels.ndim == 3 and pixels.dtype != np.uint8:  # Pillow knows floats as single planes
        return np.stack([plane(pixels[..., i]) for i in range(pixels.shape[2])], -1).clip(0, 1)
    found = plane(pixels)
    return found if found.dtype == np.uint8 else found.clip(0, 1)  # rounding may leave 0..1
