"""The kernels of hscc, usable alone: ``lowrank_conv2d``, the plan that it runs, and ``project``."""

from .dispatch import explain
from .errors import BackendUnavailable
from .functional import lowrank_conv2d
from .plan import ClusterFactors, Geometry, PackedPlan, RegionFactors
from .projection import project

__all__ = [
    "BackendUnavailable",
    "ClusterFactors",
    "Geometry",
    "PackedPlan",
    "RegionFactors",
    "explain",
    "lowrank_conv2d",
    "project",
]
