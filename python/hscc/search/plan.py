"""What becomes of a layer: its structure and the ranks that it gets."""

from __future__ import annotations

from dataclasses import dataclass

from hscc_kernels import PackedPlan

from ..report import LayerReport
from . import ranks
from .cost import Cost, row
from .ranks import Choice
from .stats import LayerStats
from .structure import Structure
from .work import Work


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of a layer: its structure and the ranks that it gets."""

    stats: LayerStats
    structure: Structure
    choice: Choice

    @property
    def stays_dense(self) -> bool:
        return self.choice.stays

    @property
    def cut(self) -> bool:
        """Whether nothing that the layer reads reaches its outputs."""
        return not self.stays_dense and not any(self.choice.ranks)

    def cost(self, plan: PackedPlan) -> Cost:
        """Of the factors as they are packed; no row is kept that no region uses."""
        cost, squeeze = self.stats.cost(Work.of(plan)), self.structure.squeeze
        return cost.plus(self.stats.cost(squeeze.work)) if squeeze else cost

    @property
    def region_ranks(self) -> tuple[tuple[int | None, ...], ...]:
        """Ranks by region, then cluster; None is a dense cluster."""
        flat = iter(None if rank == ranks.DENSE else rank for rank in self.choice.ranks)
        return tuple(tuple(next(flat) for _ in split) for split in self.structure.clusters)

    @property
    def error(self) -> float:
        """Share of the output energy that is predicted to be missed."""
        return min(max(1 - self.choice.gain, 0.0), 1.0)

    def row(self, cost: Cost) -> LayerReport:
        """Of the report; ``cost`` is what its factors take."""
        dense, timed, squeeze = self.stats.dense, self.stats.machine is not None, self.structure.squeeze
        if not self.stays_dense:
            return row(
                self.stats.name,
                dense,
                cost,
                timed,
                ranks=self.region_ranks,
                rows=self.choice.pool or 0,
                squeeze=squeeze.conv.in_channels if squeeze else 0,
                region_sizes=tuple(self.structure.regions.sizes()),
                error=self.error,
            )
        reason = "factors would not be cheaper under this budget"
        if (slower := self.choice.slower) is not None:
            reason = f"factors would take {1e3 * slower:.3f} ms, the dense layer {1e3 * dense.seconds:.3f} ms"
        return row(self.stats.name, dense, dense, timed, reason=f"stays dense: {reason}")
