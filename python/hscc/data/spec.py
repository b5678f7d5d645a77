"""How a network wants its images, and how pixels become its inputs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

METADATA_KEY = "hscc.images"


@dataclass(frozen=True)
class ImageSpec:
    """How a network wants its images; travels in the metadata of a weights file (key ``hscc.images``).

    Args:
        size: (H, W) in pixels.
        channels: 1 (grey) or 3; grey pictures are repeated, colour ones are reduced to luminance.
        mean, std: per channel, on pixel values scaled to 0..1.
        classes: names in the order of the network's outputs.
        window: (low, high) in the source's units, e.g. Hounsfield: what becomes 0 and 1. None for pictures of 8 bits,
            and where each file states its own window, as DICOM files do.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.channels not in (1, 3):
            raise ValueError(f"channels: got {self.channels}, expected 1 or 3")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size: got {self.size}, expected two positive integers (H, W)")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"mean and std: got {len(self.mean)} and {len(self.std)} values, expected {self.channels} each"
            )
        if self.window is not None:
            object.__setattr__(self, "window", tuple(map(float, self.window)))
            if len(self.window) != 2 or not -math.inf < self.window[0] < self.window[1] < math.inf:
                raise ValueError(f"window: got {self.window}, expected two finite numbers (low, high), low < high")

    def to_json(self) -> str:
        fields = asdict(self)
        if self.window is None:  # versions that know no window read it, too
            del fields["window"]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> ImageSpec:
        return cls(**json.loads(text))

    def scale(self, values: np.ndarray, name: str, stated: tuple[float, float] | None = None) -> np.ndarray:
        """Values in the source's units, of any shape -> float32 in 0..1, clipped to the window; NaN becomes 0.

        Args:
            values: of any integer or floating dtype.
            name: what the error calls them, e.g. ``"image 'x.tif'"``.
            stated: the source's own window, which counts where the spec has none.

        Raises:
            ValueError: neither states a window.
        """
        window = self.window or stated
        if window is None:
            low, high = (float(np.nanmin(values)), float(np.nanmax(values)))
            kind = "floats" if np.issubdtype(values.dtype, np.floating) else f"{values.dtype} values"
            raise ValueError(
                f"{name}: got {kind} from {low:g} to {high:g} and no window, expected ImageSpec.window (low, high) "
                "in these units"
            )
        low, high = window
        scaled = (np.asarray(values, np.float32) - np.float32(low)) / np.float32(high - low)
        return np.nan_to_num(np.clip(scaled, 0, 1), copy=False)  # NaN is what NIfTI has around a head

    def preprocess(self, pixels: np.ndarray) -> Tensor:
        """(n, H, W) or (n, H, W, 3) of the right size -> float32 (n, channels, H, W), normalised.

        Pixels are uint8, or float32 in 0..1 as :meth:`scale` gives them. Raises ValueError for any others.
        """
        x = torch.from_numpy(np.ascontiguousarray(pixels))
        if x.dtype not in (torch.uint8, torch.float32) or tuple(x.shape[1:3]) != self.size:
            raise ValueError(
                f"pixels: got {x.dtype} {tuple(x.shape)}, expected uint8 or float32 "
                f"(n, {self.size[0]}, {self.size[1]}[, 3])"
            )
        if x.dtype == torch.float32 and x.numel() and not (x.min() >= 0 and x.max() <= 1):
            raise ValueError(f"pixels: got floats from {x.min():g} to {x.max():g}, expected 0..1, by ImageSpec.scale")
        x = x.unsqueeze(-1) if x.ndim == 3 else x
        x = x.permute(0, 3, 1, 2).float() / (255 if x.dtype == torch.uint8 else 1)
        if x.shape[1] != self.channels:
            luminance = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
            x = x.expand(-1, 3, -1, -1) if self.channels == 3 else (x * luminance).sum(1, keepdim=True)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std
