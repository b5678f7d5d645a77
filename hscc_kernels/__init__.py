"""The kernels of hscc, usable alone: one op, ``lowrank_conv2d``, and the plan that it runs."""

from .dispatch import explain
from .errors import BackendUnavailable
from .functional import lowrank_conv2d
from .plan import ClusterFactors, Geometry, PackedPlan, RegionFactors

__all__ = [
    "BackendUnavailable",
    "ClusterFactors",
    "Geometry",
    "PackedPlan",
    "RegionFactors",
    "explain",
    "lowrank_conv2d",
]
