"""Whole networks on a GPU, dense against compressed with random factors: their time, not their accuracy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from .cases import Case, Layer, make_plan
from .gpu_cases import rotated, time_each
from .gpu_results import Row

_SIDE = 224
MODELS = ("alexnet", "vgg16", "resnet50")


class Network(NamedTuple):
    """A network of torchvision whose k x k convolutions (from 16 channels on) get four regions at a FLOP reduction."""

    model: str
    reduction: float

    @property
    def name(self) -> str:
        return f"{self.model}/R4/{self.reduction:g}x"


def compressed(model: nn.Module, side: int, reduction: float) -> nn.Module:
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


def run_network(case: Network, batch: int) -> Row | str:
    """Whole networks with random weights, dense against compressed, each eager and compiled."""
    import torchvision
    from hscc import HSCConv2d

    from .correctness import error_ratio

    def build() -> nn.Module:
        torch.manual_seed(0)
        model = getattr(torchvision.models, case.model)().eval().requires_grad_(False)
        return model.to("cuda", torch.bfloat16, memory_format=torch.channels_last)

    dense, ours = build(), compressed(build(), _SIDE, case.reduction)
    x = torch.randn(batch, 3, _SIDE, _SIDE).to("cuda", torch.bfloat16).contiguous(memory_format=torch.channels_last)
    error = error_ratio(ours, x[:2])
    calls = {"dense": dense, "compiled dense": torch.compile(dense), "ours": ours, "compiled ours": torch.compile(ours)}
    ms, failed = time_each(calls, rotated(x, x.nbytes)) if error <= 1 else ({}, {})
    torch.compiler.reset()
    left = conv_flops(ours, x) + sum(m.plan.flops() for m in ours.modules() if isinstance(m, HSCConv2d))
    reduction = conv_flops(dense, x) / left
    return Row.of(case.name, reduction, error, ms, failed, None)
