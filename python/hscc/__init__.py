"""hscc: makes trained CNNs smaller and really faster without retraining."""

from ._version import __version__
from .checkpoint import load_, save
from .compress import CompressionPlan, apply_, compress_, plan
from .config import Budget, Config, energy, flops
from .layer import HSCConv2d
from .report import LayerReport, Report

__all__ = [
    "Budget",
    "CompressionPlan",
    "Config",
    "HSCConv2d",
    "LayerReport",
    "Report",
    "__version__",
    "apply_",
    "compress_",
    "energy",
    "flops",
    "load_",
    "plan",
    "save",
]
