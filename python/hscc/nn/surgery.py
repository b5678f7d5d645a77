"""Finds the convolutions of a model and swaps modules under all their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .conv2d import HSCConv2d, objection
from .forms import Grouped, form_of

_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs"),
    *("_forward_hooks_always_called", "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook"),
)


@dataclass
class Targets:
    """By first name: layers to compress; all names; skipped ones with the reason; what takes the place of layers that
    are plain convolutions in another form; grouped layers, and of each group the name of its layer."""

    layers: dict[str, nn.Module] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    forms: dict[str, nn.Module] = field(default_factory=dict)
    wholes: dict[str, nn.Conv2d] = field(default_factory=dict)
    whole_of: dict[str, str] = field(default_factory=dict)

    def leave(self, reasons: Mapping[str, str]) -> None:
        """Skips these layers, too."""
        for name, reason in reasons.items():
            self.forget(name)
            self.skipped[name] = reason

    def forget(self, name: str) -> None:
        """As if it were no layer."""
        del self.layers[name]
        self.forms.pop(name, None)

    def reform(self) -> None:
        """From now on layers are the plain convolutions that forms consist of."""
        for name, form in self.forms.items():
            layer = self.layers.pop(name)
            for inner, module in form.named_modules():
                if isinstance(module, nn.Conv2d):
                    ending = f".{inner}" if inner else ""
                    self.layers[name + ending] = module
                    if isinstance(form, Grouped):
                        self.wholes[name], self.whole_of[name + ending] = layer, name
                    self.names[name + ending] = tuple(one + ending for one in self.names[name])

    def narrow(self, least: int) -> dict[str, str]:
        """Grouped convolutions whose groups have fewer channels, with that as the reason."""
        widths = {
            name: min(layer.in_channels, layer.out_channels) // layer.groups
            for name, layer in self.layers.items()
            if isinstance(self.forms.get(name), Grouped)
        }
        why = "grouped convolution: groups of {} channels, expected at least {} in a portable network"
        return {name: why.format(width, least) for name, width in widths.items() if width < least}

    def grouped(self, names: Iterable[str]) -> dict[str, nn.Conv2d]:
        """Of those that are one group of a convolution, the whole."""
        return {name: self.wholes[self.whole_of[name]] for name in names if name in self.whole_of}

    def unite(self, student: Student) -> None:
        """One layer for the groups of a convolution, unless some have a squeeze; after a call of the forms."""
        for name, form in self.forms.items():
            if not isinstance(form, Grouped):
                continue
            several = {f"{name}.{inner}": conv for inner, conv in form.named_modules() if isinstance(conv, nn.Conv2d)}
            parts = [student.modules.get(part, conv) for part, conv in several.items()]
            factored = [part for part in parts if not isinstance(part, nn.Conv2d)]
            if factored and all(isinstance(part, HSCConv2d) for part in factored):
                for part in several:
                    student.modules.pop(part, None)
                student.replace(name, form.united(parts))

    @contextmanager
    def formed(self, model: nn.Module) -> Iterator[None]:
        """Inside, forms are in the place of their layers."""
        before = {name: model.get_submodule(name) for name in self.forms}
        self._put_(model, self.forms)
        try:
            yield
        finally:
            for name, layer in before.items():  # of all, as some may have been left meanwhile
                swap_(model, self.names[name], layer)

    def form_(self, model: nn.Module, taken: Iterable[str]) -> None:
        """For good, where a layer in them is one that was ``taken``."""
        self._put_(model, {name: self.forms[name] for name in self.forms if any(below(one, (name,)) for one in taken)})

    def _put_(self, model: nn.Module, forms: Mapping[str, nn.Module]) -> None:
        for name, form in forms.items():
            inherit(form, model.get_submodule(name))
            swap_(model, self.names[name], form)


class Folded(nn.Identity):
    """In the place of a batch norm that a convolution has taken over: ``save`` and ``load_`` know it."""


def find(model: nn.Module, skip: Sequence[str] = ()) -> Targets:
    """Sorts the layers into those that can be compressed and convolutions that cannot, with the reason.

    The model is in evaluation mode. Linear layers are among the first, as what they are called with is not known here.

    Raises TypeError for what is no module of plain Python (scripted, quantized), ValueError when the model is
    compressed already, is a bare convolution, or lacks a module named in ``skip``.
    """
    _refuse_foreign(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    if done := [name for name, module in modules.items() if isinstance(module, HSCConv2d)]:
        raise ValueError(f"model: got one that is compressed already (layer {done[0]!r}), expected a dense model")
    if isinstance(model, _ConvNd):
        raise ValueError("model: got a bare convolution, expected a model that holds it (nn.Sequential(conv) does)")
    if unknown := sorted(set(skip) - set(modules)):
        raise ValueError(f"skip: got unknown layers {unknown}, expected names of modules of the model")
    targets, first = Targets(), {}
    for name, module in modules.items():
        if not name or not isinstance(module, (_ConvNd, nn.Linear)):
            continue
        if id(module) in first:
            targets.names[first[id(module)]] += (name,)
            continue
        first[id(module)] = name
        targets.names[name] = (name,)
    for name, names in targets.names.items():
        layer, reason = modules[name], "named in skip" if any(below(one, skip) for one in names) else None
        if reason is None and objection(layer):
            try:
                targets.forms[name] = form_of(layer)
            except ValueError as error:
                reason = str(error)
        if reason is None:
            targets.layers[name] = layer
        elif isinstance(layer, _ConvNd):
            targets.skipped[name] = reason
    return targets


def below(name: str, skip: Sequence[str]) -> bool:
    """Whether a module is one of those in ``skip``, or lies in one."""
    return any(name == other or other == "" or name.startswith(f"{other}.") for other in skip)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module behind ``torch.compile``: what is done to it holds for the compiled one, which compiles again."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    return model._orig_mod if type(model).__name__ == "OptimizedModule" else model  # its class is dear to import


class Student:
    """A model with some layers replaced, inside ``with student.swapped()``; outside it is as it was.

    Args:
        names: all names of each layer, by the first.
    """

    def __init__(self, model: nn.Module, names: Mapping[str, tuple[str, ...]]) -> None:
        self.model, self.names = model, names
        self.modules: dict[str, nn.Module] = {}

    def replace(self, name: str, module: nn.Module) -> None:
        """From now on ``module`` takes the place of that layer, with its hooks."""
        inherit(module, self.model.get_submodule(name))
        self.modules[name] = module

    @contextmanager
    def swapped(self, others: Mapping[str, nn.Module] = MappingProxyType({})) -> Iterator[None]:
        """With ``others`` in the place of some layers, whether they are replaced already or not."""
        modules = {**self.modules, **others}
        before = {name: self.model.get_submodule(name) for name in modules}
        try:
            for name, module in modules.items():
                swap_(self.model, self.names[name], module)
            yield
        finally:
            for name, module in before.items():
                swap_(self.model, self.names[name], module)

    def swap_(self) -> None:
        """For good."""
        for name, module in self.modules.items():
            swap_(self.model, self.names[name], module)


def swap_(model: nn.Module, names: Sequence[str], module: nn.Module) -> None:
    """Puts ``module`` in place under each of the names."""
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)


def inherit(module: nn.Module, conv: nn.Module) -> None:
    """Gives what takes a convolution's place its hooks, their handles included, and its plain attributes."""
    for name in _HOOKS:
        hooks = getattr(conv, name)
        if isinstance(hooks, dict) and any(map(_makes_weight, hooks.values())):
            hooks = type(hooks)((key, hook) for key, hook in hooks.items() if not _makes_weight(hook))
        setattr(module, name, hooks)
    for name, value in vars(conv).items():
        if not name.startswith("_") and name not in ("weight", "bias"):
            vars(module).setdefault(name, value)


def _makes_weight(hook: object) -> bool:
    """Whether a hook of weight norm, spectral norm or pruning: the effective weight is in the factors."""
    return isinstance(hook, (WeightNorm, SpectralNorm, BasePruningMethod))


def _refuse_foreign(model: nn.Module) -> None:
    if made := [name for name, p in model.named_parameters() if p.is_inference()]:
        raise ValueError(f"model: got {made[0]!r} made under torch.inference_mode, expected parameters made outside it")
    for name, module in model.named_modules():
        kind = type(module)
        if isinstance(module, torch.jit.ScriptModule):
            found = "TorchScript"
        elif ".quantized" in kind.__module__:
            found = "quantized"
        else:
            continue
        raise TypeError(
            f"model: got a {found} module ({name or 'the model itself'}: {kind.__name__}), expected the float "
            "nn.Module that it was made from"
        )


def channels_last_(model: nn.Module) -> None:
    """Stores the remaining 2-D convolutions channels last, so that nothing converts between them and ours."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.channels_last)
