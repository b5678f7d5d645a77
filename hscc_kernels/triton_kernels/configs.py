"""Tile shapes of the Triton kernel: which there are, which are worth timing for a layer, and which comes first."""

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

    def meta(self, hip: bool = False) -> dict[str, int]:
        """Keyword arguments of a launch."""
        if hip:
            # A wave has 64 lanes and up to 512 registers each, a program 64 KiB of shared memory.
            return {**self._asdict(), "num_warps": 4, "num_stages": 2 if self.BR < 256 else 1}
        # Without a cap ptxas would rather spill a few registers of a small tile than have fewer programs resident.
        return {**self._asdict(), "maxnreg": 255}


class Problem(NamedTuple):
    """What the host knows of a call without reading a tensor.

    pairs: images times positions. rows: of all regions; pool: rows of V. slice_rows: of the largest low-rank slice,
    None where nobody has read it. dense: a region may have a dense cluster. wide: offsets within a tile need 64 bits.
    """

    dtype: torch.dtype
    in_channels: int
    out_channels: int
    geometry: Geometry
    pairs: int
    regions: int
    clusters: int
    rows: int
    pool: int
    slice_rows: int | None = None
    dense: bool = False
    wide: bool = False

    @property
    def one_cluster(self) -> bool:
        """Each region is one low-rank cluster: addresses of U and of the output are aligned."""
        return self.clusters == self.regions and not self.dense

    @property
    def whole_row(self) -> bool:
        """Few channels: a step takes a run of a kernel row, (kw, C), instead of one tap's channels."""
        return self.in_channels < 16 and self.geometry.dilation[1] == 1


class Chip(NamedTuple):
    """What a choice of tiles depends on. name: as the driver gives it."""

    name: str
    multiprocessors: int
    hip: bool = False
    hopper: bool = False

    @classmethod
    def of(cls, device: torch.device) -> Chip:
        return INTERPRETER if device.type == "cpu" else _of_gpu(device)

    def programs(self, config: Config) -> int:
        """A persistent grid, all of it resident: 8 warps a multiprocessor at up to 255 registers a thread."""
        return self.multiprocessors * max(1, 8 // config.num_warps)


INTERPRETER = Chip("interpreter", 1)


@functools.cache
def _of_gpu(device: torch.device) -> Chip:
    properties = torch.cuda.get_device_properties(device)
    hip = torch.version.hip is not None
    hopper = not hip and (properties.major, properties.minor) == (9, 0)
    return Chip(properties.name, properties.multi_processor_count, hip, hopper)


# 8 warps hold 8192 accumulators of the first stage and as many of the second; 4 warps hold half, for few positions.
HALF = (
    Config(256, 16, 64, 32, 8, 3),
    Config(256, 32, 64, 32, 8, 3),
    Config(32, 32, 64, 64, 4, 3),
    Config(128, 64, 64, 64, 8, 4),
    Config(32, 64, 64, 64, 4, 3),
    Config(64, 128, 64, 64, 8, 3),
    Config(32, 256, 64, 64, 8, 2),
    Config(32, 512, 32, 32, 8, 2),
)
# Two programs a multiprocessor, or one of twice the height: only the warpgroup product leaves registers for it.
HOPPER = (
    Config(256, 64, 64, 64, 8, 3),
    Config(128, 64, 64, 64, 4, 3),
)
# Permuted stores hold an address for each pixel of a thread, wide offsets two registers, so tiles are lower.
SCATTERED = (
    Config(64, 32, 64, 64, 8, 3),
    Config(64, 64, 64, 64, 8, 3),
    Config(64, 128, 64, 64, 8, 3),
    Config(32, 256, 64, 64, 8, 2),
    Config(32, 512, 32, 16, 8, 2),
)
# Few channels: elements come one at a time, each with an address of its own, so steps are narrow.
WHOLE_ROW = (
    Config(64, 64, 32, 64, 8, 2),
    Config(32, 128, 32, 64, 8, 2),
)
# 4 bytes an element and, unless TF32 is asked for, no tensor cores to feed.
SINGLE = (
    Config(64, 32, 32, 32, 8, 2),
    Config(64, 64, 16, 32, 8, 2),
    Config(32, 128, 16, 32, 8, 2),
    Config(16, 256, 16, 16, 8, 2),
)
# Where addresses take more registers, those of the next step in flight would be spilled.
UNPIPELINED = tuple(c._replace(num_stages=1) for c in SINGLE)
TALLEST = max(c.BP for c in HALF + HOPPER + SCATTERED + WHOLE_ROW + SINGLE)


def table(problem: Problem, chip: Chip) -> tuple[Config, ...]:
    """The configurations compiled for such a problem."""
    scattered = problem.wide or not problem.one_cluster
    if problem.dtype == torch.float32:
        return UNPIPELINED if scattered or problem.whole_row else SINGLE
    if problem.whole_row:
        return WHOLE_ROW
    if scattered:
        return SCATTERED
    return HALF + HOPPER if chip.hopper else HALF


def candidates(problem: Problem, chip: Chip) -> tuple[Config, ...]:
    """The configurations worth timing, the default first: the tallest tile of which there is one a program.

    The window should hold the largest slice: one that outgrows it has its first stage computed again for every BO
    output channels. Many small slices share one, as patches are read once a window. A slice nobody has read counts
    twice the mean of the regions.
    """
    configs = table(problem, chip)
    mean = -(-problem.rows // problem.regions)
    if problem.slice_rows is None:
        wanted = min(problem.rows, problem.pool, mean if problem.regions == 1 else 2 * mean)
    else:
        wanted = max(problem.slice_rows, min(mean, 128))
    window = min((c.BR for c in configs if wanted <= c.BR), default=max(c.BR for c in configs))
    fitting = sorted((c for c in configs if window == c.BR), key=lambda c: -c.BP)
    default = next((c for c in fitting if problem.pairs >= c.BP * chip.programs(c)), fitting[-1])
    wider = [c for c in configs if 2 * window == c.BR] if problem.clusters > 1 else []
    return (default, *(c for c in (*fitting, *wider) if c != default))
