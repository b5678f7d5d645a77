"""Small pictures for the page, as ``data:`` URIs of PNG files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from torch import Tensor

PALETTE = (  # of regions; neighbours in number differ
    *("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#9c755f"),
    *("#a0cbe8", "#ffbe7d", "#8cd17d", "#ff9d9a", "#499894", "#b6992d", "#d4a6c8", "#79706e"),
)
POSITIVE, NEGATIVE = (38, 110, 214), (214, 96, 38)
LEVELS = 16  # of a correlation's strength, to either side: a palette keeps the files small


def mean_image(batches: Sequence[Tensor]) -> np.ndarray:
    """The mean of preprocessed images, each batch (n, C, H, W), as grey uint8 (H, W), its range stretched to 0..255."""
    count = sum(map(len, batches))
    mean = (sum(batch.float().sum(0) for batch in batches) / count).mean(0).cpu().numpy()
    low, high = mean.min(), mean.max()
    return ((mean - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)


def thumbnail(pixels: np.ndarray, side: int = 192) -> str:
    """uint8 (H, W) or (H, W, 3), made smaller where a side is longer than ``side``."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((side, side))
    return _uri(image)


def region_map(labels: np.ndarray) -> str:
    """(H, W) region numbers, a pixel each, in the colours of :data:`PALETTE`."""
    from PIL import Image

    image = Image.fromarray((labels % len(PALETTE)).astype(np.uint8)).convert("P")
    image.putpalette([channel for colour in PALETTE for channel in bytes.fromhex(colour[1:])])
    return _uri(image)


def correlations(matrix: np.ndarray) -> str:
    """(n, n) values in -1..1, a pixel each; none is transparent, so that it suits light and dark pages."""
    from PIL import Image

    levels = np.rint(np.clip(matrix, -1, 1) * LEVELS).astype(int)
    image = Image.fromarray((levels + LEVELS).astype(np.uint8)).convert("P")
    image.putpalette([channel for i in range(2 * LEVELS + 1) for channel in (NEGATIVE if i < LEVELS else POSITIVE)])
    return _uri(image, transparency=bytes(255 * abs(i - LEVELS) // LEVELS for i in range(2 * LEVELS + 1)))


def _uri(image, **options) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, **options)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
