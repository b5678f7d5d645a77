"""How many replicas there are, and what each takes; light, and free of Ray."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Replicas of all models together.

    Args:
        least, most: replicas; between the two their number follows the load.
        threads: CPU threads of a replica, which it reserves.
        gpus: of a replica, a share of one (0.5) or several whole ones; None: one where the cluster has any, else 0.
    """

    least: int = 1
    most: int = 1
    threads: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"replicas: got {self.least}-{self.most}, expected N or MIN-MAX, each 1 or more")
        if self.gpus is not None and not (0 <= self.gpus <= 1 or (self.gpus > 1 and self.gpus % 1 == 0)):
            raise ValueError(f"gpus-per-replica: got {self.gpus:g}, expected 0 to 1, or a whole number")

    @classmethod
    def parse(cls, replicas: str, threads: int | None, gpus: float | None) -> Scale:
        """Of ``N`` or ``MIN-MAX``. Raises ValueError for anything else."""
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", replicas, re.ASCII)
        if found is None:
            raise ValueError(f"replicas: got {replicas!r}, expected N or MIN-MAX, each 1 or more")
        return cls(int(found[1]), int(found[2] or found[1]), threads or 1, gpus)

    def lacking(self, cpus: float, gpus: float) -> str | None:
        """What the fewest replicas want beyond so many processors and GPUs; None where they fit."""
        for name, each, there in (("CPUs", self.threads, cpus), ("GPUs", self.gpus or 0, gpus)):
            if self.least * each > there:
                return f"{self.least} with {each:g} {name} each, expected at most {there:g} {name} in all"
        return None
