"""Tile shapes of the Triton kernel: which there are, which are worth timing for a layer, and which comes first."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ..layout import Geometry


class Config(NamedTuple):
    """A tile: BP (image, position) pairs, a window of BR rows, BK patch elements a step, BO output channels a store.

    resident: programs of a multiprocessor at a time; they share its registers. through_l1: patches are copied 8 bytes
    at a time and pass the L1, which neighbouring taps may find them in, instead of 16 bytes that bypass it.
    """

    BP: int
    BR: int
    BK: int
    BO: int
    num_warps: int
    num_stages: int
    resident: int = 1
    through_l1: bool = False

    @property
    def name(self) -> str:
        tile = "x".join(map(str, self[:4]))
        return f"{tile}/{self.num_warps}w{self.num_stages}s{self.resident}r" + "/L1" * self.through_l1

    def meta(self, hip: bool = False) -> dict[str, int]:
        """Keyword arguments of a launch."""
        *sizes, warps, stages, resident, through_l1 = self
        tile = {**dict(zip(("BP", "BR", "BK", "BO"), sizes, strict=True)), "THROUGH_L1": through_l1}
        if hip:
            # A wave has 64 lanes and up to 512 registers each, a program 64 KiB of shared memory.
            return {**tile, "num_warps": 4, "num_stages": 2 if self.BR < 256 else 1}
        # Without a cap ptxas would rather spill a few registers of a small tile than have fewer programs resident.
        registers = min(255, 65536 // (32 * warps * resident) // 8 * 8)
        return {**tile, "num_warps": warps, "num_stages": stages, "maxnreg": registers}


class Problem(NamedTuple):
    """What the host knows of a call without reading a tensor, and of its plan from the first call on.

    pairs: images times positions. rows: of all regions; pool: rows of V. slice_rows: of the largest low-rank slice,
    None where nobody has read it. one_cluster: each region is one low-rank cluster, its channels in order. wide:
    offsets within a tile need 64 bits.
    """

    dtype: torch.dtype
    in_channels: int
    geometry: Geometry
    pairs: int
    regions: int
    clusters: int
    rows: int
    pool: int
    out_channels: int
    slice_rows: int | None = None
    one_cluster: bool = False
    wide: bool = False

    @property
    def whole_row(self) -> bool:
        """Few channels: a step takes a run of a kernel row, (kw, C), instead of one tap's channels."""
        return self.in_channels < 16 and self.geometry.dilation[1] == 1

    def in_order(self, config: Config) -> bool:
        """The kernel's short way: a window a region, stores in order. In fp32, the window would fill the registers."""
        fits = self.one_cluster and self.slice_rows <= config.BR
        return fits and not self.wide and self.dtype != torch.float32


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
        """A persistent grid, all of it resident."""
        return self.multiprocessors * config.resident


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
    Config(32, 32, 64, 64, 4, 3, 2),
    Config(128, 64, 64, 64, 8, 4),
    Config(32, 64, 64, 64, 4, 3, 2),
    Config(64, 128, 64, 64, 8, 3),
    Config(32, 256, 64, 64, 8, 2),
    Config(32, 512, 32, 32, 8, 2),
)
# Warpgroup products read both operands from shared memory: registers are left for taller tiles or more programs. Low
# tiles wait for memory, so they fetch more at a time.
HOPPER = (
    Config(256, 16, 64, 64, 8, 2, 2),
    Config(64, 16, 128, 64, 4, 4, 2),
    Config(128, 32, 64, 64, 8, 4, 2),
    Config(32, 32, 128, 64, 4, 4, 2),
    Config(256, 64, 64, 64, 8, 3),
    Config(128, 64, 64, 64, 8, 3, 2),
    Config(64, 64, 64, 64, 4, 4, 3),
    Config(32, 64, 128, 64, 4, 4, 2),
    Config(256, 128, 64, 32, 8, 3),
    Config(128, 128, 64, 64, 8, 4),
    Config(64, 128, 64, 64, 4, 3, 2),
    Config(32, 128, 64, 64, 4, 4, 2),
    Config(128, 256, 64, 64, 8, 3),
    Config(64, 256, 64, 32, 4, 3),
    Config(32, 256, 64, 64, 8, 3),
    Config(32, 512, 32, 32, 8, 2),
)
# Up to 48 KiB of shared memory a program: above, Triton asks for as little L1 as there may be.
HOPPER_L1 = (
    Config(128, 16, 64, 64, 8, 2, 2, through_l1=True),
    Config(128, 32, 64, 64, 8, 2, 2, through_l1=True),
    Config(128, 64, 64, 64, 8, 2, 2, through_l1=True),
    Config(64, 64, 64, 64, 4, 3, 3, through_l1=True),
    Config(64, 128, 64, 64, 4, 2, 2, through_l1=True),
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
    Config(64, 32, 16, 32, 8, 2),
    Config(64, 64, 16, 32, 8, 2),
    Config(32, 128, 16, 32, 8, 2),
    Config(16, 256, 16, 16, 8, 2),
)
# Elements that come one at a time take more registers for addresses; those of the next step would be spilled.
UNPIPELINED = tuple(c._replace(num_stages=1) for c in SINGLE)
TALLEST = max(c.BP for c in HALF + HOPPER + SCATTERED + WHOLE_ROW + SINGLE)


def table(problem: Problem, chip: Chip) -> tuple[Config, ...]:
    """The configurations compiled for such a problem."""
    if problem.dtype == torch.float32:
        return UNPIPELINED if problem.whole_row else SINGLE
    if problem.whole_row:
        return WHOLE_ROW
    ordered = HOPPER if chip.hopper else HALF
    if not problem.in_order(ordered[-1]):
        return SCATTERED
    return ordered + HOPPER_L1 if chip.hopper and max(problem.geometry.kernel) > 1 else ordered


def candidates(problem: Problem, chip: Chip) -> tuple[Config, ...]:
    """The configurations worth timing, the default first: the one whose busiest multiprocessor fetches least.

    The window should hold the largest slice: one that outgrows it has its first stage computed again for every BO
    output channels. Many small slices share one, as patches are read once a window. A slice nobody has read counts
    twice the mean of the regions.
    """
    configs = table(problem, chip)
    mean = -(-problem.rows // problem.regions)
    if problem.slice_rows is None:
        wanted = min(problem.rows, problem.pool, mean if problem.regions == 1 else 2 * mean)
    elif problem.one_cluster:
        wanted = problem.slice_rows
    else:
        wanted = max(problem.slice_rows, min(mean, 128))
    window = min((c.BR for c in configs if wanted <= c.BR), default=max(c.BR for c in configs))

    def fetched(config: Config) -> int:
        """Patches and rows of V, as the busiest multiprocessor reads them; in patch lengths."""
        tiles = -(-problem.pairs // config.BP)
        return -(-tiles // chip.multiprocessors) * (config.BP + config.BR)

    fitting = sorted((c for c in configs if window == c.BR), key=fetched)
    wider = [c for c in configs if 2 * window == c.BR] if problem.clusters > problem.regions else []
    return (*fitting, *wider)
