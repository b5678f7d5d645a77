"""Tile shapes of the Triton kernel: which there are, which are worth trying for a layer, and which comes first."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ..plan import Geometry


class Config(NamedTuple):
    """A tile: BP (image, position) pairs, a window of BR rows, BK patch elements a step, BO output channels a store."""

    BP: int
    BR: int
    BK: int
    BO: int
    num_warps: int
    num_stages: int

    def meta(self) -> dict[str, int]:
        return self._asdict()

    def programs(self, device: torch.device) -> int:
        """A persistent grid: as many programs as fit at 128 registers a thread, 16 warps a multiprocessor."""
        return multiprocessors(device) * (16 // self.num_warps)


class Problem(NamedTuple):
    """What the host knows of a call without reading a tensor."""

    dtype: torch.dtype
    in_channels: int
    out_channels: int
    geometry: Geometry
    pairs: int
    regions: int
    clusters: int
    rows: int
    pool: int

    @property
    def whole_row(self) -> bool:
        """Few channels: a step takes a kernel row's (kw, C) run instead of the channels of one tap."""
        return self.in_channels < 16 and self.geometry.dilation[1] == 1


# BP * BR accumulators and BP * BO more are a program's registers: 4 warps for up to 128 x 64, 8 above. Tall tiles
# read V less often; short ones fill the chip where there are few positions.
HALF = (
    Config(128, 16, 64, 64, 4, 4),
    Config(128, 32, 64, 64, 4, 3),
    Config(32, 32, 64, 64, 4, 3),
    Config(256, 64, 64, 64, 8, 3),
    Config(128, 64, 64, 64, 4, 3),
    Config(32, 64, 64, 64, 4, 3),
    Config(128, 128, 64, 64, 8, 3),
    Config(32, 128, 64, 64, 4, 3),
    Config(64, 256, 64, 64, 8, 3),
    Config(16, 256, 64, 64, 4, 2),
)
SINGLE = (
    Config(64, 32, 32, 32, 4, 2),
    Config(64, 64, 32, 32, 8, 2),
    Config(16, 64, 32, 32, 4, 2),
)
MULTIPROCESSORS_OF_THE_INTERPRETER = 1


def candidates(problem: Problem) -> tuple[Config, ...]:
    """The configurations worth timing, the default first.

    Rows a region is the mean when there are several regions: the window takes twice that, since a slice that
    outgrows it has its first stage computed again for every BO output channels.
    """
    table = SINGLE if problem.dtype == torch.float32 else HALF
    mean = -(-problem.rows // problem.regions)
    wanted = min(problem.rows, problem.pool, mean if problem.regions == 1 else 2 * mean)
    fit = min((c.BR for c in table if wanted <= c.BR), default=max(c.BR for c in table))
    return tuple(c for c in table if fit == c.BR)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":
        return MULTIPROCESSORS_OF_THE_INTERPRETER
    return torch.cuda.get_device_properties(device).multi_processor_count
