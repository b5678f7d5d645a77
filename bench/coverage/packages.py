"""The packages that networks come from, imported when one is asked for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from types import ModuleType

import torch

# torchvision's C++ operators: its builds for CUDA declare none beside a torch for CPUs, and then do not import
_DETECTIONS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_ROIS = "Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width"
OPERATORS = (
    f"nms{_DETECTIONS}",
    f"qnms{_DETECTIONS}",
    f"roi_align({_ROIS}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({_ROIS}) -> (Tensor, Tensor)",
    f"ps_roi_align({_ROIS}, int sampling_ratio) -> (Tensor, Tensor)",
    f"ps_roi_pool({_ROIS}) -> (Tensor, Tensor)",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
    "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
    "SymInt offset_groups, bool use_mask) -> Tensor",
    "_cuda_version() -> int",
)
_library: torch.library.Library | None = None  # operators last as long as it does


def package(name: str) -> ModuleType:
    """A package of networks. Of torchvision only the networks: its own operators may be declared but missing.

    Raises ImportError where it is not installed.
    """
    if name in ("timm", "segmentation_models_pytorch"):
        package("torchvision")  # which they import
    if name != "torchvision":
        return importlib.import_module(name)
    try:
        return importlib.import_module(name)
    except RuntimeError as error:  # "operator torchvision::nms does not exist"
        global _library
        if _library is not None or "does not exist" not in str(error):
            raise
        _library = torch.library.Library("torchvision", "DEF")
        for schema in OPERATORS:
            _library.define(schema)
        return importlib.import_module(name)


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def version(name: str) -> str:
    """Without the build: "0.28.0"."""
    return importlib.metadata.version(name).partition("+")[0]
