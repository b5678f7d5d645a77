"""How much one engine takes on at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Checked when made: ValueError names what is out of range.

    Args:
        batch: images in one forward pass, at most.
        delay_ms: how long a request waits for others to share its batch, in milliseconds.
        queue: images waiting at a time, at most; one more is :class:`hscc.serving.errors.Overloaded`.
        images: in one request, at most; more than ``batch`` are computed in several passes.
        seconds: until a request is :class:`hscc.serving.errors.TimedOut`; a request may ask for less.
        pixels: H x W of one image, at most, where the model takes any size.
    """

    batch: int = 16
    delay_ms: float = 2.0
    queue: int = 256
    images: int = 64
    seconds: float = 30.0
    pixels: int = 4096 * 4096

    def __post_init__(self) -> None:
        for name in ("batch", "queue", "images", "pixels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a positive integer")
        for name, least in (("delay_ms", 0), ("seconds", 1e-3)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise ValueError(f"{name}: got {value!r}, expected a finite number from {least:g}")
        if self.images > self.queue:
            raise ValueError(f"images: got {self.images}, expected at most queue ({self.queue}), or none could enter")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes that are warmed up, and that graphs are made for: powers of two, and ``batch``."""
        return (*(2**i for i in range((self.batch - 1).bit_length())), self.batch)
