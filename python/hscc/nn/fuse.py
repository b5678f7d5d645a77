"""Moves the ReLU that follows a compressed convolution into its kernel."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping

from torch import fx, nn

from .conv2d import HSCConv2d
from .surgery import unwrapped

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def fuse_relu_(model: nn.Module) -> tuple[str, ...]:
    """Lets each :class:`HSCConv2d` whose only reader is an ``nn.ReLU`` apply it in its own kernel, in place.

    The ``nn.ReLU`` becomes an ``nn.Identity``, so names and ``state_dict`` stay. A ReLU that is called more than once
    or that shares its input with another reader stays as it is. What reads such a convolution from outside (a forward
    hook, a feature extractor) sees rectified outputs from then on; this is why ``compress_`` does not do it unasked.
    Of a model that ``torch.fx`` cannot trace the parts with a forward of their own are looked at, not containers, whose
    parts the model may call by themselves; a warning names the rest.

    Returns the names of the :class:`HSCConv2d`.
    """
    model = unwrapped(model)
    fused, missed = _fused(model, "", Counter(module for _, module in model.named_modules(remove_duplicate=False)))
    for _, relu in fused:
        model.set_submodule(relu, nn.Identity())
    if missed:
        told = "; ".join(f"{name or 'the model itself'} ({reason})" for name, reason in missed.items())
        warnings.warn(f"fuse_relu_ could not look into what torch.fx cannot trace: {told}", stacklevel=2)
    return tuple(conv for conv, _ in fused)


def _fused(model: nn.Module, name: str, names: Mapping[nn.Module, int]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(names of a convolution and its ReLU, why some modules could not be traced), of the module of that name.

    ``names`` counts those of each module: outside the whole model, one of several may be called elsewhere too.
    """
    part = model.get_submodule(name)
    if not any(isinstance(module, HSCConv2d) for module in part.modules()) or isinstance(part, HSCConv2d):
        return [], {}
    try:
        if name and isinstance(part, _CONTAINERS):
            raise TypeError("a container, whose parts may be called by themselves")
        nodes = list(fx.Tracer().trace(part).nodes)
    except Exception as error:
        below = [_fused(model, f"{name}.{child}".lstrip("."), names) for child, _ in part.named_children()]
        missed = {name: str(error).partition("\n")[0] or type(error).__name__}
        return [pair for pairs, _ in below for pair in pairs], missed | {n: r for _, m in below for n, r in m.items()}
    modules = dict(part.named_modules(remove_duplicate=False))
    calls = Counter(modules[node.target] for node in nodes if node.op == "call_module")
    found = []
    for node in nodes:
        conv, relu = _called(node, modules), _called(next(iter(node.users), None), modules)
        if not isinstance(conv, HSCConv2d) or type(relu) is not nn.ReLU or len(node.users) > 1:
            continue
        if calls[conv] == calls[relu] == 1 and (not name or names[conv] == 1):
            conv.activation = "relu"
            found.append(tuple(f"{name}.{one.target}".lstrip(".") for one in (node, next(iter(node.users)))))
    return found, {}


def _called(node: fx.Node | None, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[node.target] if node is not None and node.op == "call_module" else None
