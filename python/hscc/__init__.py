"""hscc: makes trained CNNs smaller and really faster without retraining."""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .calibrated import Calibrated, CompressionPlan, calibrate
    from .compress import apply_, compress_, plan
    from .config import Budget, Config, energy, flops, params
    from .evaluation.comparison import Comparison, compare
    from .fit.finetune import FinetuneReport, finetune
    from .io.checkpoint import load_, save
    from .nn.conv2d import HSCConv2d
    from .nn.fuse import fuse_
    from .nn.projection import Projection, SqueezedConv2d
    from .report import LayerReport, Report, Trial
    from .study.grid import Grid
    from .study.sweep import sweep

__all__ = [
    "Budget",
    "Calibrated",
    "Comparison",
    "CompressionPlan",
    "Config",
    "FinetuneReport",
    "Grid",
    "HSCConv2d",
    "LayerReport",
    "Projection",
    "Report",
    "SqueezedConv2d",
    "Trial",
    "__version__",
    "apply_",
    "calibrate",
    "compare",
    "compress_",
    "energy",
    "finetune",
    "flops",
    "fuse_",
    "load_",
    "params",
    "plan",
    "save",
    "sweep",
]

_HOMES = {
    "calibrated": ("Calibrated", "CompressionPlan", "calibrate"),
    "compress": ("apply_", "compress_", "plan"),
    "config": ("Budget", "Config", "energy", "flops", "params"),
    "evaluation.comparison": ("Comparison", "compare"),
    "fit.finetune": ("FinetuneReport", "finetune"),
    "io.checkpoint": ("load_", "save"),
    "nn.conv2d": ("HSCConv2d",),
    "nn.fuse": ("fuse_",),
    "nn.projection": ("Projection", "SqueezedConv2d"),
    "report": ("LayerReport", "Report", "Trial"),
    "study.grid": ("Grid",),
    "study.sweep": ("sweep",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Public names come from their rooms when they are first asked for: a loaded model needs no search."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return __all__
