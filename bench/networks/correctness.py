"""Whether a whole network is right: the gate before any of its times."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from unittest import mock

from hscc.nn.int8 import Int8Conv2d
from hscc.nn.surgery import swap_
from torch import Tensor, nn

from hscc_kernels import testing

SHARE = 2.0  # of what 8 bits cost, that rounding otherwise may change: with depth last bits flip until nothing is alike


def references(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of a compressed model by the reference, in its own dtype and in float64."""
    with _by_reference():
        return model(x), copy.deepcopy(model).double()(x.double())


def error_ratio(model: nn.Module, x: Tensor) -> float:
    """The compressed model against the reference, by the rule of the kernels' tests."""
    return testing.error_ratio(model(x), *references(model, x))


def int8_references(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of a model with layers in 8 bits by the reference, and with their rows and inputs in float."""
    with _by_reference():
        return model(x), _dequantised(model)(x)


def int8_ratio(output: Tensor, wanted: Tensor, floating: Tensor) -> float:
    """What an output is off by, over twice what 8 bits cost; at most 1 passes.

    Kernels are compared bit by bit in their tests; this finds a network that is put together wrongly.
    """
    return float((output - wanted).norm() / (SHARE * (wanted - floating).norm()))


def in_int8(model: nn.Module) -> bool:
    return any(isinstance(module, Int8Conv2d) for module in model.modules())


def _by_reference() -> AbstractContextManager:
    """Also what has been resolved before."""
    return mock.patch.multiple("hscc_kernels.dispatch", _PREFERRED="reference", _RESOLVED={})


def _dequantised(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, Int8Conv2d):
            swap_(model, [name], module.dequantised())
    return model
