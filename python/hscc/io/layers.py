"""One compressed layer in a file: what its header says, and the module made of that and of its tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hscc_kernels import Int8Plan, PackedPlan

from ..nn.chain import ConvChain
from ..nn.conv2d import HSCConv2d
from ..nn.groups import Wide
from ..nn.int8 import Int8Conv2d
from ..nn.padding import SAME, SameConv2d
from ..nn.projection import Projection, SqueezedConv2d

Layer = HSCConv2d | SqueezedConv2d | ConvChain
_STAGE = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
_INT8 = ("v_scale", "_extra_state")
_TENSORS = ("v", "u", "bias", "positions", "rows", "channels", "work", "clusters")


def described(layer: Layer) -> dict:
    """Its part of the header."""
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


def layer_of(tensors: dict[str, Tensor], layer: dict, where: str) -> Layer:
    """Of its tensors and its part of the header; ValueError, which begins with ``where``, for what does not fit."""
    try:
        return _chain(tensors, layer["stages"]) if "stages" in layer else _factored(tensors, layer)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _factored(tensors: dict[str, Tensor], layer: dict) -> HSCConv2d | SqueezedConv2d:
    weight = tensors.get("squeeze.weight")
    prefix = "" if weight is None else "conv."
    whole = _INT8 if f"{prefix}v_scale" in tensors else ()
    expected = {f"{prefix}{part}" for part in (*_TENSORS, *whole)} | ({"squeeze.weight"} if prefix else set())
    if set(tensors) != expected:
        raise ValueError(f"got tensors {sorted(tensors)}, expected {sorted(expected)}")
    parts = [tensors[f"{prefix}{part}"] for part in _TENSORS]
    conv = _factors(parts, layer, *(tensors[f"{prefix}{part}"] for part in whole))
    if weight is None:
        return conv
    if (weight.ndim, weight.shape[-1:], weight.dtype) != (2, (conv.in_channels,), conv.u.dtype):
        expected = f"{conv.u.dtype} (C, {conv.in_channels})"
        raise ValueError(f"squeeze: got {weight.dtype} {tuple(weight.shape)}, expected {expected}")
    return SqueezedConv2d.of(Projection(weight), conv)


def _factors(
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


def _chain(tensors: dict[str, Tensor], stages: list[dict]) -> ConvChain:
    try:
        with torch.device("meta"):  # the file's tensors take the place of what would be made here
            chain = ConvChain(*(_stage(stage, f"{i}.bias" in tensors) for i, stage in enumerate(stages)))
        chain.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"got damaged hscc metadata ({told}), expected a chain of convolutions") from error
    return chain


def _stage(options: dict, bias: bool) -> nn.Conv2d:
    return (SameConv2d if options.get("padding_mode") == SAME else nn.Conv2d)(**options, bias=bias)
