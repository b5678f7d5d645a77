"""For serving: batch norms and ReLUs move into the convolutions that they follow."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from hscc_kernels.layout import DENSE

from .conv2d import HSCConv2d
from .surgery import Folded, swap_, unwrapped

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def fuse_(model: nn.Module) -> tuple[str, ...]:
    """Lets convolutions do what follows them, in place; for inference, as the batch norms are gone.

    An ``nn.BatchNorm2d`` in evaluation mode that alone reads a convolution, factored or plain, is folded into its
    numbers. An ``nn.ReLU`` that alone reads an :class:`HSCConv2d`, behind such a batch norm or not, is applied in its
    kernel, and becomes an ``nn.Identity``. What is called more than once, or shares its input with another reader,
    stays as it is. What reads such a convolution from outside (a forward hook, a feature extractor) sees other outputs
    from then on; this is why ``compress_`` does not do it unasked. Of a model that ``torch.fx`` cannot trace the parts
    with a forward of their own are looked at, not containers, whose parts the model may call by themselves; a warning
    names the rest, and batch norms in training mode.

    Returns the names of the convolutions.
    """
    model = unwrapped(model)
    names = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    missed: dict[str, str] = {}
    taken = tuple(_fused(model, "", names, missed))
    if missed:
        told = "; ".join(f"{name or 'the model itself'} ({reason})" for name, reason in missed.items())
        warnings.warn(f"fuse_ left what it could not look into: {told}", stacklevel=2)
    return taken


@torch.no_grad()
def _fused(model: nn.Module, name: str, names: Mapping[nn.Module, int], missed: dict[str, str]) -> Iterator[str]:
    """Of the module of that name, each convolution that took something over; ``missed`` gets what was not seen.

    ``names`` counts those of each module: outside the whole model, one of several may be called elsewhere too.
    """
    part = model.get_submodule(name)
    if not any(isinstance(module, (HSCConv2d, nn.Conv2d)) for module in part.modules()) or not list(part.children()):
        return
    try:
        if name and isinstance(part, _CONTAINERS):
            raise TypeError("a container, whose parts may be called by themselves")
        nodes = list(fx.Tracer().trace(part).nodes)
    except Exception as error:
        if any(isinstance(module, HSCConv2d) for module in part.modules()):
            missed[name] = str(error).partition("\n")[0] or type(error).__name__
        for child, _ in part.named_children():
            yield from _fused(model, f"{name}.{child}".lstrip("."), names, missed)
        return
    graph = _Graph(part, nodes, names if name else {})
    for node in nodes:
        conv = graph.module(node)
        if not isinstance(conv, (HSCConv2d, nn.Conv2d)):
            continue
        last, took = node, False
        norm = graph.reader(last)
        if type(norm) is nn.BatchNorm2d and norm.running_mean is not None and names[norm] == 1 and _folds(conv):
            if norm.training:
                missed[f"{name}.{graph.next(last).target}".lstrip(".")] = "a batch norm in training mode"
                continue
            _fold_(conv, norm)
            last, took = graph.next(last), True
            swap_(part, [last.target], Folded())
        if isinstance(conv, HSCConv2d) and type(graph.reader(last)) is nn.ReLU:
            conv.activation, took = "relu", True
            swap_(part, [graph.next(last).target], nn.Identity())
        if took:
            yield f"{name}.{node.target}".lstrip(".")


class _Graph:
    """A traced module: who alone reads a node."""

    def __init__(self, part: nn.Module, nodes: list[fx.Node], names: Mapping[nn.Module, int]) -> None:
        self.modules = dict(part.named_modules(remove_duplicate=False))
        self.calls = Counter(self.modules[node.target] for node in nodes if node.op == "call_module")
        self.names = names

    def module(self, node: fx.Node | None) -> nn.Module | None:
        """That a node calls, where nothing else does."""
        if node is None or node.op != "call_module":
            return None
        module = self.modules[node.target]
        return module if self.calls[module] == 1 and self.names.get(module, 1) == 1 else None

    def next(self, node: fx.Node) -> fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def reader(self, node: fx.Node) -> nn.Module | None:
        return self.module(self.next(node))


def _folds(conv: HSCConv2d | nn.Conv2d) -> bool:
    """Whether its outputs can be scaled by scaling its numbers."""
    if isinstance(conv, HSCConv2d):
        uses = Counter(row for own in _clusters(conv) for row in own.rows.tolist())
        alone = (uses[row] == 1 for own in _clusters(conv) if own.u_start == DENSE for row in own.rows.tolist())
        return conv.activation == "none" and all(alone)
    return type(conv) is nn.Conv2d and set(conv._parameters) == {"weight", "bias"} and conv.weight is not None


def _fold_(conv: HSCConv2d | nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    ones = torch.ones_like(norm.running_mean)
    gamma, beta = ones if norm.weight is None else norm.weight, 0 * ones if norm.bias is None else norm.bias
    statistics = norm.running_mean, norm.running_var, norm.eps, gamma, beta
    if not isinstance(conv, HSCConv2d):
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        return
    scale, shift = fuse_conv_bn_weights(ones[:, None], 0 * ones, *statistics)
    scale, shift = (_by_region(conv, t.to(conv.bias)) for t in (scale[:, 0], shift))
    conv.bias.mul_(scale).add_(shift)
    for own in _clusters(conv):
        factors, count = scale[own.region, own.channels], len(own.channels)
        if own.u_start == DENSE:
            conv.scale_rows_(own.rows, factors)
        else:
            conv.u[own.u_start : own.u_start + len(own.rows) * count].view(len(own.rows), count).mul_(factors)


def _by_region(conv: HSCConv2d, values: Tensor) -> Tensor:
    """One of each output channel -> (R, O), of those that each region has."""
    if conv.wide is None:
        return values.expand(len(conv.bias), -1)
    return values.view(conv.wide.groups, -1)[conv.wide.group_of(conv.plan)]


class _Cluster(NamedTuple):
    region: int
    rows: Tensor
    channels: Tensor
    u_start: int


def _clusters(conv: HSCConv2d) -> Iterator[_Cluster]:
    for item in conv.plan.work_items():
        for cluster in conv.plan.cluster_items(item):
            first = item.row_start + cluster.row_start
            channels = conv.channels[item.region, cluster.channel_start : cluster.channel_start + cluster.channel_count]
            rows = conv.rows[first : first + cluster.rank].long()
            yield _Cluster(item.region, rows, channels.long(), cluster.u_start)
