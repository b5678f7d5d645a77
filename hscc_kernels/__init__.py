"""The kernels of hscc, usable alone: ``lowrank_conv2d``, the plan that it runs, and ``project``."""

from .dispatch import explain
from .errors import BackendUnavailable
from .functional import lowrank_conv2d
from .functional_int8 import lowrank_conv2d_int8
from .int8_plan import Int8Plan, quantise_rows
from .plan import ClusterFactors, Geometry, PackedPlan, RegionFactors
from .projection import project

__all__ = [
    "BackendUnavailable",
    "ClusterFactors",
    "Geometry",
    "Int8Plan",
    "PackedPlan",
    "RegionFactors",
    "explain",
    "lowrank_conv2d",
    "lowrank_conv2d_int8",
    "project",
    "quantise_rows",
]
