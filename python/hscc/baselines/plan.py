"""The usual low-rank convolutions as peers of ours: same data, budgets and reports, as plain modules of PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..config import Config
from ..maths.moments import Profile
from ..nn.surgery import Student
from ..observe import calibrate, distributed
from ..observe.data import Calibration
from ..report import LayerReport
from ..search import allocate
from ..search.cost import Cost, row, total
from ..search.ranks import Choice
from .balf import Balf
from .chain import Chain, Seen
from .spatial_svd import SpatialSVD
from .tucker2 import Tucker2


class Options(NamedTuple):
    """What a layer may become: ranks (n,), the missed share of energy (n,), and what it costs (n, kinds of cost)."""

    ranks: list[tuple[int, ...]]
    missed: np.ndarray
    costs: np.ndarray

    @classmethod
    def of(cls, chain: Chain) -> Options:
        """All ranks that are cheaper than the dense layer, and the dense layer."""
        missed = [(1 - gains.cumsum(0) / gains.sum().clamp_min(1e-30)).clamp_min(0) for gains in chain.gains()]
        multiple = chain.config.rank_multiple or 1
        steps = [torch.arange(min(multiple, len(m)), len(m) + 1, multiple) for m in missed]
        ranks = torch.cartesian_prod(*steps).view(-1, len(steps))
        error = sum(mode[column - 1] for mode, column in zip(missed, ranks.T, strict=True))
        keep = chain.useful(ranks) & (chain.flops(ranks) < chain.dense.flops)
        costs = np.array([*chain.costs(ranks[keep]), chain.dense], dtype=np.float64)
        return cls([*map(tuple, ranks[keep].tolist()), ()], np.append(error[keep].numpy(force=True), 0.0), costs)

    def choice(self, index: int) -> Choice:
        return Choice(1 - float(self.missed[index]), Cost(*self.costs[index].tolist()), self.ranks[index])

    def at(self, price: Cost) -> Choice:
        """Of the most gain less cost."""
        return self.choice((self.missed + self.costs @ np.array(price)).argmin())

    def keeping(self, share: float) -> Choice:
        """Of the least FLOPs that keep ``share`` of the energy."""
        return self.choice(np.where(self.missed <= 1 - share + 1e-9, self.costs[:, 0], np.inf).argmin())

    def within(self, limit: Cost) -> Choice:
        """Of the most gain that costs no more."""
        fits = (self.costs <= np.array(limit)).all(1)
        return self.choice(np.where(fits, self.missed, np.inf).argmin())


METHODS = {"tucker2": Tucker2, "spatial_svd": SpatialSVD, "balf": Balf}


def look(
    model: nn.Module, calibration: Calibration, profiles: Mapping[str, Profile], config: Config
) -> dict[str, Chain]:
    """What each of the profiled layers sees on the calibration data; no ranks yet."""
    layers = {name: model.get_submodule(name) for name in profiles}
    kind = METHODS[config.method]
    patches = {name: kind.patches(conv) for name, conv in layers.items()}
    seen: dict[str, Seen] = {}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        first = patches[name](x)
        if name not in seen:
            seen[name] = Seen.empty(first, x, y)
        seen[name].add(first, x, y)

    calibrate.visit(model, calibration, layers, see, "moments")
    for sums in seen.values():
        distributed.sum_(*sums.sums)
    return {name: kind(name, conv, config, profiles[name], seen[name]) for name, conv in layers.items()}


def fit(
    model: nn.Module, layers: Mapping[str, Chain], names: Mapping[str, tuple[str, ...]], calibration: Calibration
) -> tuple[Student, list[LayerReport]]:
    """The model with factored layers in place, and a row a layer, its error measured on the dense model's inputs."""
    student = Student(model, names)
    for name, layer in layers.items():
        if layer.ranks:
            student.replace(name, layer.factored())
    missed = {name: layers[name].seen.outputs.count.new_zeros(1) for name in student.modules}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        missed[name] += (stages[name](x) - y).double().square().sum()

    stages = {name: nn.Sequential(*module) for name, module in student.modules.items()}  # without the layer's hooks
    calibrate.visit(model, calibration, {name: layers[name].conv for name in missed}, see, "errors")
    distributed.sum_(*missed.values())
    measured = [
        replace(layer, missed=missed[name].item() / layer.seen.energy()) if name in missed else layer
        for name, layer in layers.items()
    ]
    return student, [row_of(layer) for layer in measured]


def with_ranks(layers: Mapping[str, Chain], limit: Cost, share: float | None) -> dict[str, Chain]:
    """The layers with the ranks that miss least energy within ``limit``, or the cheapest that keep ``share`` of it."""
    if not layers:
        return {}
    options = {name: Options.of(layer) for name, layer in layers.items()}
    if share is not None:
        chosen = {name: option.keeping(share) for name, option in options.items()}
    else:
        least = Cost(*sum(option.costs.min(0) for option in options.values()))
        if not least.within(limit):
            raise ValueError(
                f"budget: got a limit of {limit.against(limit)}, expected at least {least.against(limit)}, which rank "
                "1 everywhere takes"
            )
        dense = total(layer.dense for layer in layers.values())
        found = allocate.choose({name: [option] for name, option in options.items()}, dense, limit)
        chosen = {name: choice for name, (_, choice) in found.items()}
        for name, option in options.items():  # prices skip options: spend what they left
            others = (choice.cost.times(-1) for other, choice in chosen.items() if other != name)
            chosen[name] = option.within(total([limit, *others]))
    return {
        name: replace(layer, ranks=chosen[name].ranks, missed=1 - chosen[name].gain) for name, layer in layers.items()
    }


def row_of(layer: Chain) -> LayerReport:
    """Of a planned or fitted layer."""
    if not layer.ranks:
        reason = "stays dense: factors would not be cheaper under this budget"
        return row(layer.name, layer.dense, layer.dense, reason=reason, error=layer.missed)
    cost, positions = layer.costs(torch.tensor([layer.ranks]))[0], layer.seen.positions
    return row(layer.name, layer.dense, cost, ranks=(layer.ranks,), region_sizes=(positions,), error=layer.missed)
