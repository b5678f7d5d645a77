"""A model from what a command line can name: a Python file with a function, and a weights file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from .checkpoint import load_, read_metadata
from .images import METADATA_KEY, ImageSpec


def load_module(path: str | Path) -> ModuleType:
    """Runs a Python file (the user's own code) as a module of its own."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"model: got {str(path)!r}, expected a Python file")
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up there
    spec.loader.exec_module(module)
    return module


def build_model(source: str) -> nn.Module:
    """A fresh model from ``file.py:function``; the function takes no argument (``build`` when none is named)."""
    file, _, function = source.partition(":")
    module, function = load_module(file), function or "build"
    if not hasattr(module, function):
        raise ValueError(f"model: got {source!r}, but {file} has no function {function!r}")
    model = getattr(module, function)()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__} from {source!r}, expected an nn.Module")
    return model.eval()


def load_model(source: str, weights: str | Path) -> tuple[nn.Module, ImageSpec]:
    """The model of ``file.py:function`` with dense or compressed weights, and what images it wants.

    Raises FileNotFoundError or ValueError when a file is missing, damaged, or does not fit the model.
    """
    from safetensors.torch import load_file

    metadata = read_metadata(weights)
    if METADATA_KEY not in metadata:
        raise ValueError(f"{weights}: got no {METADATA_KEY!r} in the header, expected hscc.images.ImageSpec as JSON")
    model = build_model(source)
    if "hscc" in metadata:
        load_(model, weights)
    else:
        try:
            model.load_state_dict(load_file(str(weights)))
        except RuntimeError as error:
            raise ValueError(f"{weights}: got weights that do not fit {source!r}: {error}") from error
    return model.eval(), ImageSpec.from_json(metadata[METADATA_KEY])
