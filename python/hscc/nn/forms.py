"""Layers that are plain convolutions in another form: what takes their place holds ``nn.Conv2d``, which compress."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .chain import stage
from .conv2d import HSCConv2d, called, objection, trainable
from .effective import effective, plain
from .groups import united
from .padding import around, stays_open

LEAST_CHANNELS = 16  # of a group: narrower ones take no less time with factors (docs/layers.md)


class Form(nn.Module):
    """A layer made of plain convolutions; a class of its own, so that ``save`` and ``load_`` know it."""

    def forward(self, input: Tensor) -> Tensor:
        return called(self, input) if isinstance(input, fx.Proxy) else self.compute(input)


class LinearMap(Form):
    """``nn.Linear``: (N, H, W, C) by a 1 x 1 convolution ``conv`` of its map, (N, C) by one of a single position."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def compute(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return self.conv(x.movedim(-1, 1)).movedim(1, -1)
        return self.conv(x.reshape(-1, x.shape[-1], 1, 1)).reshape(*x.shape[:-1], -1)


class Spread(Form):
    """``nn.ConvTranspose2d`` whose kernel is its stride: ``conv`` gives all kh kw outputs of an input, (kh, kw, O)."""

    def __init__(self, conv: nn.Module, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.conv, self.kernel = conv, kernel

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        y = super().forward(input)
        if output_size is not None and tuple(output_size[-2:]) != tuple(y.shape[-2:]):
            raise ValueError(f"output_size: got {output_size}, expected {tuple(y.shape[-2:])}")
        return y

    def compute(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self.compute(x.unsqueeze(0)).squeeze(0)
        y = self.conv(x)
        if stays_open(*y.shape[2:]):
            return self._open(y)
        y = y.movedim(1, -1).unflatten(-1, (*self.kernel, -1))  # [N, H, W, kh, kw, O]
        return y.transpose(2, 3).flatten(3, 4).flatten(1, 2).movedim(-1, 1)

    def _open(self, y: Tensor) -> Tensor:
        """The same for a graph of any size, in which PyTorch cannot prove that the dimensions above may be joined."""
        y = y.unflatten(1, (math.prod(self.kernel), -1)).transpose(1, 2).flatten(1, 2)  # as these operators want them
        (kh, kw), (height, width) = self.kernel, y.shape[2:]
        if kh == kw:
            return F.pixel_shuffle(y, kh)
        return F.fold(y.flatten(2), (height * kh, width * kw), self.kernel, stride=self.kernel)


class Grouped(Form):
    """``nn.Conv2d`` of several groups: one convolution each, of its own channels, until they are :meth:`united`."""

    def __init__(self, convs: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(convs)  # "groups" is the convolution's own
        self.columns = 0  # of the last input

    def united(self, parts: list[nn.Module]) -> HSCConv2d:
        """One layer for all groups, each ``HSCConv2d`` or dense; after a call of the form, whose input had its size."""
        factored = next(part for part in parts if isinstance(part, HSCConv2d))
        layers = [part if isinstance(part, HSCConv2d) else HSCConv2d.dense(part, factored.out_size) for part in parts]
        left, right, *_ = around(factored.pad, factored.padding_mode, factored.geometry, 1, self.columns)
        plan, bias, wide = united(
            [layer.plan for layer in layers], [layer.bias.detach() for layer in layers], self.columns + left + right
        )
        made = HSCConv2d(plan, bias).requires_grad_(trainable(factored))
        return made.adopt_(factored).widen_(wide)

    def compute(self, x: Tensor) -> Tensor:
        self.columns = x.shape[-1]
        channels = x.chunk(len(self.parts), -3)
        return torch.cat([conv(its) for conv, its in zip(self.parts, channels, strict=True)], -3)


def form_of(layer: nn.Module) -> nn.Module:
    """What computes as the layer does, in evaluation mode: a :class:`Form`, or a plain ``nn.Conv2d``.

    Raises ValueError with the reason, a sentence, where there is none.
    """
    if type(layer) is nn.Conv2d and layer.groups == 1:
        raise ValueError(objection(layer))
    make = next((make for kind, make in _FORMS.items() if isinstance(layer, kind)), None)
    if make is None:
        raise ValueError(f"{type(layer).__name__} is not supported, only two-dimensional convolutions")
    form = make(layer)
    if reason := next(filter(None, (objection(m) for m in form.modules() if isinstance(m, nn.Conv2d))), None):
        raise ValueError(reason)
    return form.requires_grad_(trainable(layer)).train(layer.training)


def _linear(layer: nn.Linear) -> LinearMap:
    if type(layer).forward is not nn.Linear.forward:
        raise ValueError(f"{type(layer).__name__} has a forward of its own")
    return LinearMap(plain(layer.weight[:, :, None, None], layer.bias))


def _transposed(layer: nn.ConvTranspose2d) -> Spread:
    if type(layer).forward is not nn.ConvTranspose2d.forward:
        raise ValueError(f"{type(layer).__name__} has a forward of its own")
    shape = layer.kernel_size, layer.stride
    if shape[0] != shape[1] or {*layer.padding, *layer.output_padding} != {0} or {*layer.dilation} != {1}:
        raise ValueError(
            f"transposed convolution of kernel {shape[0]}, stride {shape[1]} and padding {layer.padding}: "
            "only those whose kernel is their stride are supported"
        )
    if layer.groups != 1:
        raise ValueError(f"transposed convolution of {layer.groups} groups is not supported")
    weight = layer.weight.detach().permute(2, 3, 1, 0)  # [kh, kw, O, C]
    bias = None if layer.bias is None else layer.bias.repeat(weight[..., 0, 0].numel())
    return Spread(plain(weight.flatten(0, 2)[:, :, None, None], bias), layer.kernel_size)


def _grouped(layer: nn.Conv2d) -> nn.Module:
    if layer.groups == 1:
        return effective(layer)
    if layer.groups == layer.in_channels:
        raise ValueError("depthwise convolution: an output reads a single channel, so that factors save nothing")
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    if min(inputs, outputs) < LEAST_CHANNELS:
        raise ValueError(
            f"grouped convolution: groups of {inputs} to {outputs} channels, expected at least {LEAST_CHANNELS}: "
            "narrower ones take no less time with factors"
        )
    conv = effective(layer)
    convs = [stage(conv, weight, (True, True)) for weight in conv.weight.detach().chunk(layer.groups)]
    if conv.bias is not None:
        for one, bias in zip(convs, conv.bias.detach().chunk(layer.groups), strict=True):
            one.bias = nn.Parameter(bias)
    return Grouped(convs)


_FORMS: dict[type[nn.Module], Callable] = {
    nn.Linear: _linear,
    nn.ConvTranspose2d: _transposed,
    nn.Conv2d: _grouped,
}
