"""Whether a whole network is right: the gate before any of its times."""

from __future__ import annotations

import copy
from unittest import mock

from torch import Tensor, nn

from hscc_kernels import testing


def error_ratio(model: nn.Module, x: Tensor) -> float:
    """The compressed model against the reference in float32 and float64, by the rule of the kernels' tests."""
    with mock.patch("hscc_kernels.dispatch._PREFERRED", "reference"):
        plain, exact = model(x), copy.deepcopy(model).double()(x.double())
    return testing.error_ratio(model(x), plain, exact)
