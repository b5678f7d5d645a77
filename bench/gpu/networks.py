"""Whole networks on a GPU, dense against compressed with random factors: their time, not their accuracy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.cases import Case, Layer, make_plan
from .cases import DEVICE, rotated, time_each
from .results import Row

_SIDE = 224
MODELS = ("alexnet", "vgg16", "resnet50")


class Network(NamedTuple):
    """A network of torchvision whose k x k convolutions (from 16 channels on) get four regions at a FLOP reduction."""

    model: str
    reduction: float
    batch: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.model}/R4/{self.reduction:g}x/{self.dtype}/{self.batch}"


def compress(model: nn.Module, side: int, reduction: float) -> nn.Module:
    """The model, changed in place, with random factors; input (1, 3, side, side) on the model's device."""
    from hscc import HSCConv2d

    sizes: dict[str, int] = {}
    convs = {name: conv for name, conv in model.named_modules() if type(conv) is nn.Conv2d}
    convs = {n: c for n, c in convs.items() if c.groups == 1 and c.kernel_size[0] > 1 and c.in_channels >= 16}
    hooks = [
        conv.register_forward_pre_hook(lambda _, x, name=name: sizes.update({name: x[0].shape[-1]}))
        for name, conv in convs.items()
    ]
    parameter = next(model.parameters())
    model(torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype))
    for hook in hooks:
        hook.remove()
    for name, conv in convs.items():
        layer = Layer(name, conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], sizes[name])
        plan = make_plan(Case(layer, "4", 1, reduction)).to(parameter.device, parameter.dtype)
        bias = plan.v.new_zeros(plan.regions, conv.out_channels)
        model.set_submodule(name, HSCConv2d(plan, bias))
    return model.requires_grad_(False)


def conv_flops(model: nn.Module, x: Tensor) -> int:
    """Floating-point operations of the convolutions, dense and compressed, for one image."""
    from hscc import HSCConv2d

    total = 0

    def count(layer, inputs, output):
        nonlocal total
        dense = type(layer) is nn.Conv2d
        total += 2 * output[0].numel() * layer.weight[0].numel() if dense else layer.plan.flops()

    hooks = [m.register_forward_hook(count) for m in model.modules() if type(m) in (nn.Conv2d, HSCConv2d)]
    model(x[:1])
    for hook in hooks:
        hook.remove()
    return total


def run_network(case: Network, compiled: bool = True) -> Row | str:
    """Whole networks with random weights, dense against compressed with fused ReLUs, each eager and compiled."""
    import torchvision
    from hscc import fuse_

    from ..networks.correctness import error_ratio

    dtype = getattr(torch, case.dtype)

    def build() -> nn.Module:
        torch.manual_seed(0)
        model = getattr(torchvision.models, case.model)().eval().requires_grad_(False)
        return model.to(DEVICE, dtype, memory_format=torch.channels_last)

    dense, ours = build(), compress(build(), _SIDE, case.reduction)
    fuse_(ours)
    x = torch.randn(case.batch, 3, _SIDE, _SIDE).to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)
    error = error_ratio(ours, x[:2])
    calls = {"dense": dense, "ours": ours}
    if compiled:
        calls |= {f"compiled {name}": torch.compile(model) for name, model in calls.items()}
    ms, failed = time_each(calls, rotated(x, x.nbytes)) if error <= 1 else ({}, {})
    torch.compiler.reset()
    reduction = conv_flops(dense, x) / conv_flops(ours, x)
    return Row.of(case.name, None, reduction, error, ms, failed, None)
