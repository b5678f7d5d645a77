"""Compressed models as one safetensors file: tensors plus versioned JSON; no pickle, no dense weights needed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..nn.forms import Form, form_of
from ..nn.int8 import Int8Conv2d
from ..nn.projection import SqueezedConv2d
from ..nn.surgery import Folded, channels_last_, inherit, swap_, unwrapped
from ..report import Report
from .layers import Layer, described, layer_of

if TYPE_CHECKING:
    from ..guard.guard import Guard

_KEY, _TYPE, _VERSION = "hscc", "hscc.checkpoint", 2
_GUARD = "guard:"  # begins the names of its tensors; no module's name holds a colon


def save(
    model: nn.Module,
    path: str | Path,
    *,
    report: Report | None = None,
    metadata: Mapping[str, str] | None = None,
    guard: Guard | None = None,
) -> None:
    """Writes a compressed model; an interrupted write leaves no half file.

    Args:
        report: kept with the weights, so that ``load_`` can return it.
        guard: fitted to the model; kept as well, for :func:`load_guard`.
        metadata: further texts for the file's header, e.g. ``{"hscc.images": spec.to_json()}``.
    """
    from safetensors.torch import save as to_bytes

    model = unwrapped(model)
    names = list(model.named_modules(remove_duplicate=False))
    inner = {id(module.conv) for _, module in names if isinstance(module, SqueezedConv2d)}
    layers = {name: described(m) for name, m in names if isinstance(m, Layer) and id(m) not in inner}
    if not layers:
        raise ValueError("model: got one without HSCConv2d or ConvChain, expected a compressed model")
    tensors, first, shared = {}, {}, {}
    for key, tensor in model.state_dict().items():
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else key
        if identity in first:
            shared[key] = first[identity]
        else:
            first[identity] = key
            tensors[key] = tensor.detach().contiguous().cpu()
    guard_tensors, guard_header = ({}, None) if guard is None else guard.state_dict()
    tensors |= {f"{_GUARD}{name}": tensor.detach().contiguous().cpu() for name, tensor in guard_tensors.items()}
    header = {
        "_type": _TYPE,
        "_version": _VERSION,
        "layers": layers,
        "shared": shared,
        "forms": [name for name, module in names if isinstance(module, Form)],
        "folded": [name for name, module in names if isinstance(module, Folded)],
        "report": None if report is None else {**report.to_dict(), "seconds": {}},
        **({} if guard is None else {"guard": guard_header}),
    }
    _write(Path(path), to_bytes(tensors, {**(metadata or {}), _KEY: json.dumps(header)}))


def load_(model: nn.Module, path: str | Path) -> Report | None:
    """Turns a fresh dense model of the same architecture into the saved compressed one, in place.

    The model is changed only when the whole file fits, and keeps its dtype and device, as by ``load_state_dict``.
    Returns the report that was saved with it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, foreign, of an unknown version, or made from another architecture.
    """
    model = unwrapped(model)
    tensors, header = _read(Path(path))
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(_GUARD)}
    tensors |= {key: tensors[other] for key, other in header["shared"].items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    forms = _forms(modules, header.get("forms", []), path)
    built: dict[str, nn.Module] = {}
    by_factor: dict[frozenset[int], nn.Module] = {}
    for name, layer in header["layers"].items():
        if not isinstance(modules.get(name), nn.Conv2d):
            got = type(modules[name]).__name__ if name in modules else "no module"
            raise ValueError(f"{path}: layer {name!r}: got {got} in the model, expected the dense nn.Conv2d")
        own = [key for key in tensors if key.startswith(f"{name}.")]
        parts = {key.removeprefix(f"{name}."): tensors.pop(key) for key in own}
        same = frozenset(id(t) for t in parts.values() if t.numel())  # a module under several names stays one
        if same not in by_factor:
            by_factor[same] = layer_of(parts, layer, f"{path}: layer {name!r}")
        built[name] = by_factor[same]
    folded = header.get("folded", [])
    if unlike := [name for name in folded if not isinstance(modules.get(name), nn.BatchNorm2d)]:
        raise ValueError(f"{path}: module {unlike[0]!r}: got none that folds, expected the dense model's batch norm")
    state = {key: t for key, t in model.state_dict().items() if not key.startswith(tuple(f"{n}." for n in forms))}
    state |= {f"{name}.{key}": tensor for name, form in forms.items() for key, tensor in form.state_dict().items()}
    replaced = tuple(f"{name}." for name in (*built, *folded))
    rest = {key: value for key, value in state.items() if not key.startswith(replaced)}
    biases = _new_biases(modules, {key: tensors[key] for key in tensors.keys() - rest.keys()}) if folded else {}
    rest |= {key: tensors[key] for key in biases}
    wrong = sorted(key for key in rest.keys() ^ tensors.keys()) or sorted(
        key for key in rest if rest[key].shape != tensors[key].shape
    )
    if wrong:
        raise ValueError(f"{path}: got other tensors than the model's, e.g. {wrong[0]!r}, expected its architecture")
    for name, form in forms.items():
        inherit(form, model.get_submodule(name))
        swap_(model, (name,), form)
    for name, module in built.items():
        dense = modules[name]
        inherit(module.to(dense.weight.device, dense.weight.dtype).train(dense.training), dense)
        swap_(model, (name,), module)
    for name in folded:
        swap_(model, (name,), Folded())
    for key, conv in biases.items():
        conv.bias = nn.Parameter(tensors[key].to(conv.weight))
    state = model.state_dict()  # with its metadata, without which some models load nothing
    state.update(tensors)
    model.load_state_dict(state)
    channels_last_(model)
    if any(isinstance(module, Int8Conv2d) for module in model.modules()):
        model.requires_grad_(False)  # as quantize_ leaves it
    return None if header["report"] is None else Report.from_dict(header["report"])


def load_guard(path: str | Path) -> Guard | None:
    """The guard that was saved with a compressed model; None in a file without one, also in one of dense weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, of an unknown version, or damaged.
    """
    if _KEY not in read_metadata(path):
        return None
    tensors, header = _read(Path(path))
    if header.get("guard") is None:
        return None
    from ..guard.guard import Guard

    own = {key.removeprefix(_GUARD): tensor for key, tensor in tensors.items() if key.startswith(_GUARD)}
    try:
        return Guard.from_state(own, header["guard"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """The header texts of any safetensors file; ValueError when it is unreadable."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint: got {str(path)!r}, expected a file")
    try:
        with safe_open(str(path), "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: got an unreadable or truncated file ({error}), expected safetensors") from error


def _forms(modules: dict[str, nn.Module], names: list[str], path: Path) -> dict[str, nn.Module]:
    """What takes the place of dense layers that were compressed in another form; its parts are added to ``modules``."""
    forms: dict[str, nn.Module] = {}
    made: dict[nn.Module, nn.Module] = {}  # a module under several names stays one
    for name in names:
        dense = modules.get(name, nn.Identity())
        try:
            forms[name] = made[dense] = made.get(dense) or form_of(dense)
        except ValueError as error:
            got = type(dense).__name__ if name in modules else "no module"
            raise ValueError(f"{path}: layer {name!r}: got {got} in the model, expected the dense layer") from error
        modules.update({f"{name}.{inner}": module for inner, module in forms[name].named_modules() if inner})
    return forms


def _new_biases(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> dict[str, nn.Conv2d]:
    """Convolutions without bias that have one of these since a batch norm was folded into them."""
    convs = {key: modules.get(key.removesuffix(".bias")) for key in tensors if key.endswith(".bias")}
    return {
        key: conv
        for key, conv in convs.items()
        if isinstance(conv, nn.Conv2d) and conv.bias is None and tensors[key].shape == (conv.out_channels,)
    }


def _read(path: Path) -> tuple[dict[str, Tensor], dict]:
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    if _KEY not in metadata:
        raise ValueError(f"{path}: got a file without hscc metadata, expected one written by hscc.save")
    try:
        header = json.loads(metadata[_KEY])
        kind, version = header["_type"], header["_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: got damaged hscc metadata ({error!r}), expected a checkpoint header") from error
    if kind != _TYPE or version != _VERSION:
        raise ValueError(f"{path}: got {kind} version {version}, expected {_TYPE} version {_VERSION}")
    return load_file(path), header


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
