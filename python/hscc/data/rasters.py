"""PNG, JPEG, TIFF, WebP and BMP, of 8 and 16 bits a channel; others with a window."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .pixels import of_8_bits, reading
from .slices import Slices
from .spec import ImageSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def frames(path: Path, slices: Slices) -> list[int]:
    """One picture a file; it is not opened yet."""
    return [0]


def read(path: Path, frame: int, spec: ImageSpec) -> np.ndarray:
    """A file as uint8 (H, W) or (H, W, 3), or with the spec's window as float32 (H, W) in 0..1; upright, without alpha.

    Without a window 16-bit grey becomes value / 257, rounded, so that 65535 is white; of 16-bit colour the high byte is
    taken.

    Raises:
        Unreadable: for what is no picture, damaged, or larger than Pillow allows.
        ValueError: with the file's name, for several pages; without a window where a scale would be a guess: floats,
            integers of 32 or 16 signed bits, 16 bits that look like 12; with one for 8 bits, which have no units.
    """
    from PIL import Image, ImageOps

    with reading(path), Image.open(path) as image:
        deep = ";16" in str(image.tile)  # 16 bits in the file; loading empties the list
        pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # a phone's second is a preview
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    name = f"image {str(path)!r}"
    if pages > 1:
        raise ValueError(f"{name}: got {pages} pages, expected one; each page may be a file of its own")
    grey = image.mode.startswith("I") or image.mode == "F"
    if grey and spec.window is not None:
        scaled = spec.scale(np.asarray(image), name)
        return 1 - scaled if _white_is_zero(image) else scaled
    if grey or deep:
        image = _in_8_bits(image, grey, name)
    of_8_bits(image, spec, name)
    if image.mode not in ("L", "1"):
        image = image.convert("RGB")  # CMYK knows no other way
    return np.array(image.convert("L" if spec.channels == 1 or image.mode == "1" else image.mode))


def _in_8_bits(image, grey: bool, name: str):
    """The Pillow image itself, or as "L" where it is 16-bit grey; ``Image.convert`` would clip that at 255."""
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # Pillow before 11 opens 16-bit PNG as "I"
        kind = "floats" if image.mode == "F" else "integers of 32 or 16 signed bits"
        low, high = image.getextrema()
        raise ValueError(
            f"{name}: got {kind} from {low:g} to {high:g}, expected 8 bits, or 16 unsigned, or ImageSpec.window"
        )
    values = np.asarray(image if grey else image.convert("RGB")).astype(np.int32)
    top = int(values.max())
    top = top if grey or not top else 256 * top + 255
    if 0 < top < 4096:
        raise ValueError(
            f"{name}: got 16-bit values up to {top}, which look like 12 bits, expected 65535 as white, "
            "or ImageSpec.window"
        )
    if not grey:
        return image
    if _white_is_zero(image):
        values = 65535 - values
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _white_is_zero(image) -> bool:
    """Of a TIFF; Pillow heeds that at 8 bits only."""
    return getattr(image, "tag_v2", {}).get(262) == 0
