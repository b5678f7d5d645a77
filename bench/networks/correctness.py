"""Whether a whole network is right: the gate before any of its times."""

from __future__ import annotations

import copy
from unittest import mock

from torch import Tensor, nn

from hscc_kernels import testing


def references(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of a compressed model by the reference, in its own dtype and in float64."""
    with mock.patch("hscc_kernels.dispatch._PREFERRED", "reference"):
        return model(x), copy.deepcopy(model).double()(x.double())


def error_ratio(model: nn.Module, x: Tensor) -> float:
    """The compressed model against the reference, by the rule of the kernels' tests."""
    return testing.error_ratio(model(x), *references(model, x))
