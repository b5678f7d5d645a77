"""The last linear layer, refitted to what compressed convolutions give it. Derivation: ``docs/math.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..nn.surgery import Student, below
from ..observe import distributed
from ..observe.data import Calibration, evaluation, watch

PRIOR = 160.0  # samples that the dense weights count for
CONSTANT = 1e-10  # of the inputs' energy: what varies less is rounding
MOST_INPUTS = 8192  # their moments take half a gigabyte


class Head(NamedTuple):
    """New values of parameters, by their names, and why there are none where one would expect them."""

    values: dict[str, Tensor] = {}  # noqa: RUF012 (nobody writes to it)
    warning: str | None = None


def refit(student: Student, calibration: Calibration, skip: Sequence[str]) -> Head:
    """The last ``nn.Linear`` that runs and shares its parameters with no other module: ridge regression of the dense
    model's outputs there on the student's inputs. Empty where there is none, or one in ``skip``, or a very wide one."""
    model = student.model
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    linear = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
    layers = {
        name: layer
        for name, layer in linear.items()
        if all(uses[id(t)] == 1 for t in (layer.weight, layer.bias) if t is not None)
    }
    if not layers:
        return Head()
    sums: list[Tensor] = []
    stays = None
    with evaluation(model):
        for batch in calibration.batches("last layer"):
            dense, ours = _Last(), _Last()
            with watch(layers, dense.see):
                calibration.forward(model, batch)
            with watch(layers, ours.see), student.swapped():
                calibration.forward(model, batch)
            if ours.name is None or below(ours.name, skip) or layers[ours.name].in_features > MOST_INPUTS:
                return Head()
            if dense.name != ours.name or dense.y.shape != ours.y.shape:
                stays = f"{ours.name} was not refitted: the number of its inputs depends on what the layers before give"
                break
            _add(sums, ours.x, dense.y - ours.y)
    if stays := next(filter(None, distributed.gather(stays)), None):
        return Head(warning=stays)
    distributed.sum_(*sums)
    return _solved(ours.name, layers[ours.name], *sums)


class _Last:
    """The last call of any of some layers: its name, input rows x (n, D) and output rows y (n, O); float64."""

    name: str | None = None

    def see(self, name: str, x: Tensor, y: Tensor) -> None:
        self.name, self.x, self.y = name, *(t.reshape(-1, t.shape[-1]).double() for t in (x, y))


def _add(sums: list[Tensor], x: Tensor, left: Tensor) -> None:
    """Adds to the moments of [x, 1], (D + 1, D + 1), and of what is left to explain with it, (O, D + 1)."""
    rows = torch.cat([x, x.new_ones(len(x), 1)], 1)
    for index, new in enumerate((rows.T @ rows, left.T @ rows)):
        if index == len(sums):
            sums.append(new)
        else:
            sums[index] += new


def _solved(name: str, layer: nn.Linear, gram: Tensor, cross: Tensor) -> Head:
    count, mean, left = gram[-1, -1], gram[:-1, -1] / gram[-1, -1], cross[:, -1] / gram[-1, -1]
    if layer.bias is None:
        mean, left = torch.zeros_like(mean), torch.zeros_like(left)
    covariance = gram[:-1, :-1] - count * torch.outer(mean, mean)
    if covariance.diagonal().sum() <= CONSTANT * gram.diagonal()[:-1].sum():
        return Head(warning=f"{name} was not refitted: its inputs are the same for all calibration images")
    ridge = PRIOR / count * covariance.diagonal().mean().clamp_min(1e-30)
    covariance.diagonal().add_(ridge)
    step = torch.linalg.solve(covariance, (cross[:, :-1] - count * torch.outer(left, mean)).T).T  # [O, D]
    found = {f"{name}.weight": layer.weight + step.to(layer.weight)}
    if layer.bias is not None:
        found[f"{name}.bias"] = layer.bias + (left - step @ mean).to(layer.bias)
    return Head({key: value.detach() for key, value in found.items()})
