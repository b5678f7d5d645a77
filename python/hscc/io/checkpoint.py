"""Compressed models as one safetensors file: tensors plus versioned JSON; no pickle, no dense weights needed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hscc_kernels import Int8Plan, PackedPlan

from ..nn.chain import ConvChain
from ..nn.conv2d import HSCConv2d
from ..nn.forms import Form, form_of
from ..nn.groups import Wide
from ..nn.int8 import Int8Conv2d
from ..nn.padding import SAME, SameConv2d
from ..nn.projection import Projection, SqueezedConv2d
from ..nn.surgery import Folded, channels_last_, inherit, swap_, unwrapped
from ..report import Report

if TYPE_CHECKING:
    from ..guard.guard import Guard

_KEY, _TYPE, _VERSION = "hscc", "hscc.checkpoint", 2
_STAGE = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
_GUARD = "guard:"  # begins the names of its tensors; no module's name holds a colon
_INT8 = ("v_scale", "_extra_state")
_TENSORS = ("v", "u", "bias", "positions", "rows", "channels", "work", "clusters")


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
    ours = (HSCConv2d, SqueezedConv2d, ConvChain)
    layers = {name: _describe(m) for name, m in names if isinstance(m, ours) and id(m) not in inner}
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
            by_factor[same] = _build(parts, layer, f"{path}: layer {name!r}")
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


def _describe(layer: HSCConv2d | SqueezedConv2d | ConvChain) -> dict:
    if isinstance(layer, ConvChain):
        return {"stages": [{name: getattr(conv, name) for name in _STAGE} for conv in layer]}
    layer = layer.conv if isinstance(layer, SqueezedConv2d) else layer
    return {
        "geometry": layer.sizes[:-2],
        "out_size": layer.sizes[-2:],
        "wide": layer.wide,
        "padding": layer.pad,
        "padding_mode": layer.padding_mode,
        "activation": layer.activation,
        "strict": layer.strict,
    }


def _build(tensors: dict[str, Tensor], layer: dict, where: str) -> HSCConv2d | SqueezedConv2d | ConvChain:
    if "stages" in layer:
        return _build_chain(tensors, layer["stages"], where)
    weight = tensors.get("squeeze.weight")
    prefix = "" if weight is None else "conv."
    whole = _INT8 if f"{prefix}v_scale" in tensors else ()
    expected = {f"{prefix}{part}" for part in (*_TENSORS, *whole)} | ({"squeeze.weight"} if prefix else set())
    if set(tensors) != expected:
        raise ValueError(f"{where}: got tensors {sorted(tensors)}, expected {sorted(expected)}")
    parts = [tensors[f"{prefix}{part}"] for part in _TENSORS]
    conv = _build_factors(parts, layer, *(tensors[f"{prefix}{part}"] for part in whole))
    if weight is None:
        return conv
    if (weight.ndim, weight.shape[-1:], weight.dtype) != (2, (conv.in_channels,), conv.u.dtype):
        expected = f"{conv.u.dtype} (C, {conv.in_channels})"
        raise ValueError(f"squeeze: got {weight.dtype} {tuple(weight.shape)}, expected {expected}")
    return SqueezedConv2d.of(Projection(weight), conv)


def _build_factors(
    tensors: list[Tensor], layer: dict, v_scale: Tensor | None = None, inputs: Tensor | None = None
) -> HSCConv2d:
    """``inputs``: the scale and the zero point of a layer in int8, whose rows have scales of their own."""
    v, u, bias, *index = tensors
    try:
        sizes = (*layer["geometry"], *layer["out_size"])
        options = {"pad": layer["padding"], **{name: layer[name] for name in ("padding_mode", "activation")}}
        wide = Wide.of(layer["wide"], layer["geometry"]) if layer.get("wide") else None  # files of before have none
    except (KeyError, TypeError) as error:
        raise ValueError(f"got damaged hscc metadata ({error!r}), expected a layer's geometry") from error
    if v_scale is not None and (v.dtype, v_scale.shape, inputs.shape) != (torch.int8, v.shape[:1], (2,)):
        got = f"v of {v.dtype}, v_scale {tuple(v_scale.shape)}, state {tuple(inputs.shape)}"
        raise ValueError(f"v_scale: got {got}, expected torch.int8, {tuple(v.shape[:1])} and (2,)")
    plan = PackedPlan(v if v_scale is None else v.to(u.dtype), u, *index, sizes).validate()
    if bias.shape != plan.channels.shape or bias.dtype != u.dtype:
        raise ValueError(f"bias: got {bias.dtype} {tuple(bias.shape)}, expected {u.dtype} {tuple(plan.channels.shape)}")
    if v_scale is None:
        made = HSCConv2d(plan, bias, **options)
    else:
        made = Int8Conv2d(Int8Plan(v, v_scale, *plan[1:], *inputs.tolist()), bias, **options)
    made.strict = bool(layer.get("strict", False))  # files of before have none
    return made.widen_(wide)


def _build_chain(tensors: dict[str, Tensor], stages: list[dict], where: str) -> ConvChain:
    try:
        with torch.device("meta"):  # the file's tensors take the place of what would be made here
            chain = ConvChain(*(_stage(stage, f"{i}.bias" in tensors) for i, stage in enumerate(stages)))
        chain.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{where}: got damaged hscc metadata ({told}), expected a chain of convolutions") from error
    return chain


def _stage(options: dict, bias: bool) -> nn.Conv2d:
    return (SameConv2d if options.get("padding_mode") == SAME else nn.Conv2d)(**options, bias=bias)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
