"""What a guard looks at: grey levels of the image, and mean activations ahead of two layers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..nn.chain import ConvChain
from ..nn.conv2d import HSCConv2d
from ..nn.projection import SqueezedConv2d

CHANNELS = 64  # of a layer that are looked at, at most
LEVELS, PIXELS = 16, 256  # quantiles of grey levels, of about so many pixels on a grid
_OURS = (HSCConv2d, SqueezedConv2d, ConvChain)
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, *_OURS)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions, what compression made of them, and linear layers, by name."""
    found: dict[str, nn.Module] = {}
    inside: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, _LAYERS) and id(module) not in inside:
            found[name] = module
            inside.update(map(id, module.modules()))
    return found


def chosen(order: Iterable[str]) -> tuple[str, ...]:
    """Of layers in the order of their calls the middle one; none where that is the first, which sees the image."""
    names = list(order)
    return tuple(names[len(names) // 2 :][:1]) if len(names) > 1 else ()


@contextmanager
def watched(model: nn.Module, names: Iterable[str], seen: dict[str, Tensor]) -> Iterator[None]:
    """In the block ``seen`` gets :func:`pooled` inputs of the layers' first calls, by this thread alone, in order.

    Inputs, not outputs: they stay what they are when batch norms and ReLUs are folded into the layers before.

    Raises ValueError for a layer that the model lacks.
    """
    owner, key = threading.get_ident(), object()
    parts = {name: _part(model, name) for name in names}

    def hook(name: str):
        def see(module: nn.Module, args: tuple) -> None:
            if threading.get_ident() == owner and name not in seen and args and _maps(module, args[0]):
                seen[name] = pooled(module, args[0].detach())

        return see

    try:
        for name, part in parts.items():  # not by register_...: numbers of handles are drawn without a lock, and slowly
            part._forward_pre_hooks[key] = hook(name)
        yield
    finally:
        for part in parts.values():
            part._forward_pre_hooks.pop(key, None)


def pooled(module: nn.Module, x: Tensor) -> Tensor:
    """The mean over positions of a layer's input, of the first channels: (N, C, H, W), or of a linear layer
    (N, ..., C), becomes (N, c)."""
    if isinstance(module, nn.Linear):
        x = x[..., :CHANNELS]
        return x.mean(tuple(range(1, x.ndim - 1))) if x.ndim > 2 else x
    return (x[:, :CHANNELS] if x.shape[1] > CHANNELS else x).mean((2, 3))


def levels(x: Tensor) -> Tensor:
    """Quantiles of an image's values in its middle channel: of grey images any, of colours green, which is nearest to
    their luminance. The least and the largest are among them. (N, C, H, W) becomes (N, LEVELS)."""
    height, width = x.shape[2:]
    step = max(1, min(round((height * width / PIXELS) ** 0.5), height, width))
    grid = x.detach()[:, x.shape[1] // 2, step // 2 :: step, step // 2 :: step]
    values = grid.flatten(1).sort(1).values
    return values.index_select(1, _places(values.shape[1], x.device))


def _maps(module: nn.Module, x: object) -> bool:
    """Whether :func:`pooled` takes it."""
    return isinstance(x, Tensor) and (x.ndim == 4 or (isinstance(module, nn.Linear) and x.ndim > 1))


def _part(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"model: got one without {name!r}, expected one as the guard was fitted to") from None


@lru_cache(maxsize=64)
def _places(count: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.linspace(0, count - 1, LEVELS, dtype=torch.float64).round().long().to(device)
