"""The plain convolution that a subclass of ``nn.Conv2d`` computes, by its effective weight."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .padding import SameConv2d

_CALL = inspect.signature(lambda input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1: None)
_CLOSE = 1e-5  # of the largest output, or what rounding to its dtype makes of it


def plain(weight: Tensor, bias: Tensor | None, kind: type[nn.Conv2d] = nn.Conv2d, **options: Any) -> nn.Conv2d:
    """A convolution of weight (O, C / groups, kh, kw) on the same storage; ``options`` as of ``nn.Conv2d``."""
    channels = weight.shape[1] * options.get("groups", 1)
    conv = kind(channels, weight.shape[0], tuple(weight.shape[2:]), bias=bias is not None, device="meta", **options)
    conv.weight = nn.Parameter(weight.detach())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach())
    return conv


def effective(conv: nn.Conv2d) -> nn.Conv2d:
    """What it computes in evaluation mode: weight norms, standardised weights, paddings of its own are in it.

    A subclass with a ``forward`` of its own is run on random images of two sizes, to see the one convolution that it
    makes of them. Raises ValueError with the reason where its outputs are not those of one.
    """
    kind = type(conv)
    if kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward:
        return plain(conv.weight, conv.bias, **_options(conv), padding=conv.padding, padding_mode=conv.padding_mode)
    own = f"{kind.__name__} has a forward of its own"
    calls = _Calls()
    try:
        with torch.no_grad(), calls:
            seen = [(x, conv.forward(x)) for x in _images(conv)]
    except Exception as error:
        raise ValueError(f"{own}, which fails on random images ({type(error).__name__})") from error
    if len(calls.seen) == len(seen):
        for made in _candidates(conv, calls.seen[-1]):
            if all(_agree(made(x), y) for x, y in seen):
                return made
    raise ValueError(f"{own}, which is not one convolution")


class _Calls(TorchFunctionMode):
    """Keeps the arguments of ``F.conv2d``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d:
            call = _CALL.bind(*args, **(kwargs or {}))
            call.apply_defaults()
            self.seen.append(call.arguments)
        return function(*args, **(kwargs or {}))


def _options(conv: nn.Conv2d) -> dict[str, Any]:
    return {name: getattr(conv, name) for name in ("stride", "dilation", "groups")}


def _images(conv: nn.Conv2d) -> Iterator[Tensor]:
    """Of two sizes, so that strides leave something over in one of them."""
    random = torch.Generator().manual_seed(0)
    rows, columns = (d * (k - 1) + 3 * s for d, k, s in zip(conv.dilation, conv.kernel_size, conv.stride, strict=True))
    for more in (1, 2):
        yield torch.randn(2, conv.in_channels, rows + more, columns + 2 * more - 1, generator=random).to(conv.weight)


def _candidates(conv: nn.Conv2d, call: dict[str, Any]) -> Iterator[nn.Conv2d]:
    """With the weight that was seen: its padding, that which the layer tells, and the one that depends on the size."""
    options = {name: call[name] for name in ("stride", "dilation", "groups")}
    for padding in ({"padding": call["padding"]}, {"padding": conv.padding, "padding_mode": conv.padding_mode}):
        yield plain(call["weight"], call["bias"], **options, **padding)
    yield plain(call["weight"], call["bias"], SameConv2d, **options)


@torch.no_grad()
def _agree(made: Tensor, y: Any) -> bool:
    if not isinstance(y, Tensor) or y.shape != made.shape:
        return False
    close = max(_CLOSE, 4 * torch.finfo(y.dtype).eps)
    return torch.allclose(made, y, rtol=0, atol=close * y.abs().max().item())
