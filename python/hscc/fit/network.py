"""All layers of a network in order, each fitted behind the compressed ones before it; then the last linear layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from ..config import Config
from ..nn import surgery
from ..observe import rectifiers
from ..observe.data import Calibration
from ..search.plan import LayerPlan
from . import fitting, heads, reconstruct


def fit(
    model: nn.Module,
    layers: Mapping[str, LayerPlan],
    names: Mapping[str, tuple[str, ...]],
    calibration: Calibration,
    config: Config,
) -> tuple[dict[str, nn.Module], dict[str, Tensor]]:
    """The modules that take the place of the layers that do not stay dense, and new values of the head's parameters.

    ``model`` is not changed; ``names`` are all names of each layer.
    """
    student, fitted = copy.deepcopy(model), {}
    rectified = rectifiers.find(model, calibration, layers) if reads(layers, config) else {}
    for name, layer in layers.items():
        if layer.stays_dense:
            continue
        if config.sequential or layer.structure.squeeze:
            fitted[name] = reconstruct.fit(model, student, calibration, layer, rectified.get(name), config)
        else:
            fitted[name] = fitting.fit(layer, layer.stats.moments.total(), config)
        if config.sequential:
            surgery.swap_(student, names[name], fitted[name])
    head = heads.refit(model, student, calibration, config.skip) if config.sequential and fitted else {}
    return fitted, head


def reads(layers: Mapping[str, LayerPlan], config: Config) -> bool:
    """Whether fitting reads the data again."""
    return config.sequential or any(layer.structure.squeeze for layer in layers.values())
