"""How many bytes the work may hold."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

GROUP = Path("/sys/fs/cgroup")  # of a container on Linux
MOST = 2**32  # bytes, where no limit is given


def room(limit: int | None, held: int, device: torch.device) -> int:
    """Bytes beyond those ``held``: of the limit, or of :data:`MOST` and half of what there is where there is none."""
    if limit is None:
        limit = min(MOST, (available(device) + held) // 2)
    return max(limit - held, 0)


def available(device: torch.device) -> int:
    """Bytes that are free on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    try:
        most, used = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return max(min(free, most - used), 0)


def give_back() -> None:
    """To the system what the C library keeps of freed memory, where it is glibc: much, after a large plan."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
