"""Finds the convolutions of a model and swaps modules under all their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .conv2d import HSCConv2d, objection


@dataclass
class Targets:
    """By first name: layers to compress; all names; skipped ones with the reason."""

    layers: dict[str, nn.Conv2d] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def find(model: nn.Module, skip: Sequence[str] = ()) -> Targets:
    """Sorts the model's convolutions into those that can be compressed and those that cannot, with the reason.

    Raises ValueError when the model is compressed already, is a bare convolution, or lacks a layer named in ``skip``.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if done := [name for name, module in modules.items() if isinstance(module, HSCConv2d)]:
        raise ValueError(f"model: got one that is compressed already (layer {done[0]!r}), expected a dense model")
    if isinstance(model, _ConvNd):
        raise ValueError("model: got a bare convolution, expected a model that holds it (nn.Sequential(conv) does)")
    if unknown := sorted(set(skip) - set(modules)):
        raise ValueError(f"skip: got unknown layers {unknown}, expected names of modules of the model")
    targets, first = Targets(), {}
    for name, module in modules.items():
        if not isinstance(module, _ConvNd):
            continue
        if id(module) in first:
            targets.names[first[id(module)]] += (name,)
            continue
        first[id(module)] = name
        targets.names[name] = (name,)
        reason = "named in skip" if name in skip else objection(module)
        if reason:
            targets.skipped[name] = reason
        else:
            targets.layers[name] = module
    return targets


def swap_(model: nn.Module, names: Sequence[str], module: nn.Module) -> None:
    """Puts ``module`` in place under each of the names."""
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)


def channels_last_(model: nn.Module) -> None:
    """Stores the remaining 2-D convolutions channels last, so that nothing converts between them and ours."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.channels_last)
