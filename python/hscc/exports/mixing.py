"""Rows of factors turned by a rotation, so that one scale suits all of them in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..nn.chain import ConvChain
from ..nn.projection import SqueezedConv2d
from .plain import fresh


@torch.no_grad()
def mix_(model: nn.Module) -> None:
    """Turns the channels between two convolutions of one layer by a rotation Q: W2 W1 = (W2 Q') (Q W1), in place.

    Rows of a low-rank factor carry their share of the energy, the first thousands of times that of the last; one scale
    for all of their outputs would round the weak ones to nothing. Turned at random all carry the same, as do the
    columns that read them; Ashkboos et al. (2024) treat language models so. Convolutions are ``nn.Conv2d`` themselves,
    as :func:`~hscc.exports.portable.as_portable` has them: copies.
    """
    for first, second in _pairs(model):
        turn = _rotation(first.weight, first.groups)
        rows = turn @ first.weight.double().unflatten(0, (first.groups, -1)).flatten(2)
        first.weight = fresh(rows.view_as(first.weight).to(first.weight))
        columns = torch.einsum("oikl,ji->ojkl", second.weight.double(), turn)
        second.weight = fresh(columns.to(second.weight))


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Conv2d]]:
    """Convolutions with nothing between them."""
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, (ConvChain, SqueezedConv2d)) and module not in inside:
            inside.update(module.modules())
            yield from (pair for pair in pairwise(_flat(module)) if _turns(*pair))


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for part in module:
            yield from _flat(part)
    else:
        yield module


def _turns(first: nn.Module, second: nn.Module) -> bool:
    plain = (type(conv) is nn.Conv2d and set(conv._parameters) == {"weight", "bias"} for conv in (first, second))
    return all(plain) and first.bias is None and first.groups == second.groups


def _rotation(weight: Tensor, groups: int) -> Tensor:
    """Of the output channels of a group, float64, the same for each number of them."""
    size = len(weight) // groups
    drawn = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    return torch.linalg.qr(drawn).Q.to(weight.device)
