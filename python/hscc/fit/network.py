"""All layers of a network in order, each fitted behind the compressed ones before it; then the last linear layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..config import Config
from ..nn.surgery import Student
from ..observe import memory
from ..observe.data import Calibration
from ..observe.pairs import Pairs
from ..search.plan import LayerPlan
from . import fitting, heads, reconstruct
from .heads import Head


def fit(
    model: nn.Module,
    layers: Mapping[str, LayerPlan],
    names: Mapping[str, tuple[str, ...]],
    calibration: Calibration,
    config: Config,
) -> tuple[Student, Head]:
    """``model`` with modules in the place of the layers that do not stay dense, and what becomes of its last layer.

    ``names`` are all names of each layer.
    """
    student = Student(model, names)
    factored = {name: layer for name, layer in layers.items() if not layer.stays_dense}
    paired = {name: layer for name, layer in factored.items() if config.sequential or layer.structure.squeeze}
    besides = {name: layer.stats.reader.beside for name, layer in paired.items() if layer.stats.reader}
    once = {name: layer.stats.conv for name, layer in paired.items() if layer.stats.profile.calls == 1}
    memory.give_back()
    room = memory.room(config.memory, sum(layer.stats.nbytes for layer in layers.values()), calibration.device)
    with Pairs(student, calibration, once, room, besides) as pairs:
        for name, layer in calibration.track(factored.items(), "fit"):
            if name in paired:
                pairs.put(name, reconstruct.fit(pairs, layer, config))
            else:
                pairs.put(name, fitting.fit(layer, None, config))
    head = heads.refit(student, calibration, config.skip) if config.sequential and student.modules else Head()
    return student, head


def reads(layers: Mapping[str, LayerPlan], config: Config) -> bool:
    """Whether fitting reads the data again."""
    return config.sequential or any(layer.structure.squeeze for layer in layers.values())
