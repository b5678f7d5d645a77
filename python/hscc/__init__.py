"""hscc: makes trained CNNs smaller and really faster without retraining."""

from ._version import __version__
from .checkpoint import load_, save
from .compress import CompressionPlan, apply_, compress_, plan
from .config import Budget, Config, energy, flops, params
from .finetune import FinetuneReport, finetune
from .fuse import fuse_relu_
from .layer import HSCConv2d
from .projection import Projection, SqueezedConv2d
from .report import LayerReport, Report

__all__ = [
    "Budget",
    "CompressionPlan",
    "Config",
    "FinetuneReport",
    "HSCConv2d",
    "LayerReport",
    "Projection",
    "Report",
    "SqueezedConv2d",
    "__version__",
    "apply_",
    "compress_",
    "energy",
    "finetune",
    "flops",
    "fuse_relu_",
    "load_",
    "params",
    "plan",
    "save",
]
