"""Moves the ReLU that follows a compressed convolution into its kernel."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

from .conv2d import HSCConv2d
from .projection import Projection


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (HSCConv2d, Projection)) or super().is_leaf_module(module, name)


def fuse_relu_(model: nn.Module) -> tuple[str, ...]:
    """Lets each :class:`HSCConv2d` whose only reader is an ``nn.ReLU`` apply it in its own kernel, in place.

    The ``nn.ReLU`` becomes an ``nn.Identity``, so names and ``state_dict`` stay. A ReLU that is called more than once
    or that shares its input with another reader stays as it is. What reads such a convolution from outside (a forward
    hook, a feature extractor) sees rectified outputs from then on; this is why ``compress_`` does not do it unasked.

    Returns the names of the :class:`HSCConv2d`. Raises ValueError for a model that ``torch.fx`` cannot trace.
    """
    try:
        nodes = list(_Tracer().trace(model).nodes)
    except Exception as error:
        raise ValueError(f"model: got one that torch.fx cannot trace ({error}), expected a fixed graph") from error
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = Counter(modules[node.target] for node in nodes if node.op == "call_module")
    fused = []
    for node in nodes:
        conv, relu = _called(node, modules), _called(next(iter(node.users), None), modules)
        if not isinstance(conv, HSCConv2d) or type(relu) is not nn.ReLU or len(node.users) > 1:
            continue
        if calls[conv] == calls[relu] == 1:
            conv.activation = "relu"
            fused.append((node.target, next(iter(node.users)).target))
    for _, name in fused:
        model.set_submodule(name, nn.Identity())
    return tuple(name for name, _ in fused)


def _called(node: fx.Node | None, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[node.target] if node is not None and node.op == "call_module" else None
