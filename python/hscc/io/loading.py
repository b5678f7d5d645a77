"""A model from what a command line can name: a Python file with a function, and a weights file."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

from torch import nn

from ..data.spec import METADATA_KEY, ImageSpec
from .checkpoint import load_, read_metadata
from .session import OnnxSession

_folders: set[Path] = set()  # of the files run so far


def load_module(path: str | Path) -> ModuleType:
    """Runs a Python file (the user's own code) as a module of its own; it may import what lies beside it.

    Raises FileNotFoundError, or with the file's name ImportError and, for wrong syntax, ValueError.
    """
    with _as_script(Path(path)):
        return _run(Path(path))


def build_model(source: str) -> nn.Module:
    """A fresh model from ``file.py:function``; the function takes no argument (``build`` when none is named).

    Raises as :func:`load_module`, ValueError without such a function, TypeError when it gives no model.
    """
    file, _, function = source.partition(":")
    function = function or "build"
    with _as_script(Path(file)):
        build = getattr(_run(Path(file)), function, None)
        if not callable(build):
            raise ValueError(f"model: got {source!r}, but {file} has no function {function!r}")
        try:
            inspect.signature(build).bind()
        except TypeError as error:
            raise TypeError(f"model: got {source!r} with {error}, expected a function without arguments") from error
        model = build()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__} from {source!r}, expected an nn.Module")
    return model.eval()


def _run(path: Path) -> ModuleType:
    place = path.resolve()
    name = f"{place.parent.name}_{place.stem}_{zlib.crc32(os.fsencode(place)):08x}"  # the place's own, in any process
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ValueError(f"model: got {str(path)!r}, expected a Python file, ending in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up there
    spec.loader.exec_module(module)
    return module


@contextmanager
def _as_script(path: Path) -> Iterator[None]:
    """The file's folder is first on ``sys.path``; modules that it would mistake for its neighbours are put aside."""
    if not path.is_file():
        raise FileNotFoundError(f"model: got {str(path)!r}, expected a Python file")
    folder = path.resolve().parent
    names = _foreign(folder)
    _folders.add(folder)
    aside = {name: sys.modules.pop(name) for name in [*sys.modules] if _top(name) in names}
    sys.path.insert(0, str(folder))
    try:
        yield
    except ImportError as error:
        message = f"model: got {str(path)!r}, whose imports fail ({error}), expected modules beside it or installed"
        raise ImportError(message) from error
    except SyntaxError as error:
        raise ValueError(f"model: got {str(path)!r} with a syntax error ({error}), expected Python") from error
    finally:
        with suppress(ValueError):  # the file may have taken it off by itself
            sys.path.remove(str(folder))
        for name in [name for name in sys.modules if _top(name) in names]:
            del sys.modules[name]
        sys.modules.update(aside)


def _foreign(folder: Path) -> set[str]:
    """Names of loaded modules that lie beside another file run before, or that come first where the folder has one."""
    own = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    names = set()
    for name, module in [*sys.modules.items()]:
        top, file = _top(name), getattr(module, "__dict__", {}).get("__file__")
        beside = file and (top in own or any(file.startswith(str(other / top)) for other in _folders))
        if beside and not file.startswith(str(folder / top)):
            names.add(top)
    names -= {"__main__", *sys.stdlib_module_names}
    return names - packages_distributions().keys() if names else names  # installed ones exist once: no second torch


def _top(name: str) -> str:
    return name.partition(".")[0]


def load_model(source: str, weights: str | Path) -> tuple[nn.Module, ImageSpec]:
    """The model of ``file.py:function`` with dense or compressed weights, and what images it wants.

    Raises as :func:`build_model`, and FileNotFoundError or ValueError when the weights are missing, damaged, or misfit.
    """
    from safetensors.torch import load_file

    metadata = read_metadata(weights)
    spec = _spec(metadata, weights)
    model = build_model(source)
    if "hscc" in metadata:
        load_(model, weights)
    else:
        try:
            model.load_state_dict(load_file(str(weights)))
        except RuntimeError as error:
            raise ValueError(f"{weights}: got weights that do not fit {source!r}: {error}") from error
    return model.eval(), spec


def open_model(source: str, file: str | Path) -> tuple[nn.Module, ImageSpec]:
    """As :func:`load_model`, to be run alone: a file that ends in .onnx is the model itself, without a source."""
    if Path(file).suffix != ".onnx":
        return load_model(source, file)
    model = OnnxSession(file)
    return model, _spec(model.metadata, file)


def _spec(metadata: Mapping[str, str], file: str | Path) -> ImageSpec:
    if METADATA_KEY not in metadata:
        raise ValueError(f"{file}: got no {METADATA_KEY!r} in the header, expected hscc.data.spec.ImageSpec as JSON")
    try:
        return ImageSpec.from_json(metadata[METADATA_KEY])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: got a damaged {METADATA_KEY!r} ({error}), expected ImageSpec as JSON") from error
