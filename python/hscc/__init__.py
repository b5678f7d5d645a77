"""hscc: makes trained CNNs smaller and really faster without retraining."""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .calibrated import Calibrated, CompressionPlan, calibrate
    from .compress import apply_, compress_, plan
    from .config import Budget, Config, energy, flops, params
    from .evaluation.comparison import Comparison, compare
    from .exports.int8 import export_int8
    from .exports.model import export
    from .fit.finetune import FinetuneReport, finetune
    from .guard.guard import Guard
    from .io.checkpoint import load_, load_guard, save
    from .io.onnx import load_onnx
    from .nn.conv2d import HSCConv2d
    from .nn.fuse import fuse_
    from .nn.projection import Projection, SqueezedConv2d
    from .nn.restore import restore_
    from .quantize import QuantizeReport, quantize_
    from .report import LayerReport, Report, Trial
    from .study.grid import Grid
    from .study.sweep import sweep
    from .summary import summary

__all__ = [
    "Budget",
    "Calibrated",
    "Comparison",
    "CompressionPlan",
    "Config",
    "FinetuneReport",
    "Grid",
    "Guard",
    "HSCConv2d",
    "LayerReport",
    "Projection",
    "QuantizeReport",
    "Report",
    "SqueezedConv2d",
    "Trial",
    "__version__",
    "apply_",
    "calibrate",
    "compare",
    "compress_",
    "energy",
    "export",
    "export_int8",
    "finetune",
    "flops",
    "fuse_",
    "load_",
    "load_guard",
    "load_onnx",
    "params",
    "plan",
    "quantize_",
    "restore_",
    "save",
    "summary",
    "sweep",
]

_HOMES = {
    "calibrated": ("Calibrated", "CompressionPlan", "calibrate"),
    "compress": ("apply_", "compress_", "plan"),
    "config": ("Budget", "Config", "energy", "flops", "params"),
    "evaluation.comparison": ("Comparison", "compare"),
    "exports.int8": ("export_int8",),
    "exports.model": ("export",),
    "fit.finetune": ("FinetuneReport", "finetune"),
    "guard.guard": ("Guard",),
    "io.checkpoint": ("load_", "load_guard", "save"),
    "io.onnx": ("load_onnx",),
    "nn.conv2d": ("HSCConv2d",),
    "nn.fuse": ("fuse_",),
    "nn.projection": ("Projection", "SqueezedConv2d"),
    "nn.restore": ("restore_",),
    "quantize": ("QuantizeReport", "quantize_"),
    "report": ("LayerReport", "Report", "Trial"),
    "study.grid": ("Grid",),
    "study.sweep": ("sweep",),
    "summary": ("summary",),
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
