"""Pictures that are foreign to a network, clearly or nearly, made from those that are not: uint8 (n, H, W) all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from scipy import ndimage

Make = Callable[[np.ndarray, Generator], np.ndarray]  # of float32 (n, H, W) in 0..1, that or uint8


def _upsampled(values: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    x = torch.from_numpy(np.ascontiguousarray(values, np.float32))[:, None]
    antialias = mode == "bilinear"
    return torch.nn.functional.interpolate(x, size=size, mode=mode, antialias=antialias, align_corners=False)[
        :, 0
    ].numpy()


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, antialiased."""
    return _u8(_upsampled(pixels, size, "bilinear") / 255)


def _field(f: np.ndarray, rng: Generator) -> np.ndarray:
    """Smooth noise of about unit variance."""
    return _upsampled(rng.standard_normal((len(f), 4, 4)), f.shape[1:], "bicubic")


def _rician(f: np.ndarray, rng: Generator) -> np.ndarray:
    real, imaginary = 0.08 * rng.standard_normal((2, *f.shape), dtype=np.float32)
    return np.hypot(f + real, imaginary)


def _turned(f: np.ndarray, rng: Generator) -> np.ndarray:
    angles = rng.uniform(20, 40, len(f)) * rng.choice([-1, 1], len(f))
    return np.stack([ndimage.rotate(x, angle, reshape=False, order=1) for x, angle in zip(f, angles, strict=True)])


def _blurred(f: np.ndarray, rng: Generator) -> np.ndarray:
    return ndimage.gaussian_filter(f, (0, *(2 * [0.5 + 0.008 * f.shape[1]])))


def _salted(f: np.ndarray, rng: Generator) -> np.ndarray:
    draw = rng.random(f.shape)
    return np.where(draw < 0.05, 0, np.where(draw > 0.95, 1, f))


def _shuffled(f: np.ndarray, rng: Generator) -> np.ndarray:
    """The 16 tiles of each picture in another order."""
    n, height, width = f.shape
    tiles = f.reshape(n, 4, height // 4, 4, width // 4).swapaxes(2, 3).reshape(n, 16, height // 4, width // 4)
    tiles = np.stack([tile[rng.permutation(16)] for tile in tiles])
    return tiles.reshape(n, 4, 4, height // 4, width // 4).swapaxes(2, 3).reshape(f.shape)


def _checkers(f: np.ndarray, rng: Generator) -> np.ndarray:
    side, (rows, columns) = max(f.shape[1] // 14, 1), np.indices(f.shape[1:])
    board = ((rows // side + columns // side) % 2).astype(np.float32)
    return board * rng.uniform(0.4, 1, (len(f), 1, 1))


def _quarter(f: np.ndarray, rng: Generator) -> np.ndarray:
    lost = f.copy()
    lost[:, : f.shape[1] // 2, : f.shape[2] // 2] = 0
    return lost


FOREIGN: dict[str, Make] = {
    "uniform noise": lambda f, rng: rng.random(f.shape),
    "Gaussian noise": lambda f, rng: 0.5 + 0.25 * rng.standard_normal(f.shape),
    "inverted": lambda f, rng: 1 - f,
    "upper half of the range": lambda f, rng: 0.5 + 0.5 * f,
    "lower third of the range": lambda f, rng: f / 3,
    "blank": lambda f, rng: np.broadcast_to(rng.random((len(f), 1, 1)), f.shape),
    "gamma 0.4": lambda f, rng: f**0.4,
    "gamma 2.5": lambda f, rng: f**2.5,
}
UNSEEN: dict[str, Make] = {  # no choice of the guard was made with these
    "checkerboards": _checkers,
    "salt and pepper, 10 %": _salted,
    "tiles in another order": _shuffled,
    "a quarter is missing": _quarter,
}
NEAR: dict[str, Make] = {
    "upside down": lambda f, rng: f[:, ::-1],
    "turned by 20 to 40 degrees": _turned,
    "blurred": _blurred,
    "Rician noise of 8 %": _rician,
    "bias field of 30 %": lambda f, rng: f * (1 + 0.3 * _field(f, rng)),
    "brighter by a quarter": lambda f, rng: 1.25 * f,
}
KEEP_CLASSES = {*NEAR, "gamma 0.4", "gamma 2.5", "lower third of the range", "upper half of the range", "inverted"}


def made(make: Make, pixels: np.ndarray, seed: int) -> np.ndarray:
    return _u8(make(pixels.astype(np.float32) / 255, np.random.default_rng(seed)))


def _u8(f: np.ndarray) -> np.ndarray:
    return np.clip(np.round(255 * f), 0, 255).astype(np.uint8)
