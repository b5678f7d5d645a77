"""The last linear layer, refitted to what compressed convolutions give it. Derivation: ``docs/math.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..observe import distributed
from ..observe.data import Calibration, evaluation, forward, watch

PRIOR = 160.0  # samples that the dense weights count for
MOST_INPUTS = 8192  # their moments take half a gigabyte


def refit(model: nn.Module, student: nn.Module, calibration: Calibration, skip: Sequence[str]) -> dict[str, Tensor]:
    """New values of the parameters, by their names, of the last ``nn.Linear`` that runs and shares them with no other
    module: ridge regression of the dense model's outputs there on the student's inputs. Empty where there is none, or
    one in ``skip``, or a very wide one."""
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    linear = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
    layers = {
        name: layer
        for name, layer in linear.items()
        if all(uses[id(t)] == 1 for t in (layer.weight, layer.bias) if t is not None)
    }
    if not layers:
        return {}
    dense, ours = _Last(), _Last()
    sums: list[Tensor] = []
    with (
        evaluation(model, student),
        watch(layers, dense.see),
        watch({name: student.get_submodule(name) for name in layers}, ours.see),
    ):
        for batch in calibration.batches("fitting the last layer"):
            forward(model, batch)
            forward(student, batch)
            if ours.name is None or ours.name in skip or layers[ours.name].in_features > MOST_INPUTS:
                return {}
            _add(sums, ours.x, dense.y - ours.y)
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


def _solved(name: str, layer: nn.Linear, gram: Tensor, cross: Tensor) -> dict[str, Tensor]:
    count, mean, left = gram[-1, -1], gram[:-1, -1] / gram[-1, -1], cross[:, -1] / gram[-1, -1]
    if layer.bias is None:
        mean, left = torch.zeros_like(mean), torch.zeros_like(left)
    covariance = gram[:-1, :-1] - count * torch.outer(mean, mean)
    ridge = PRIOR / count * covariance.diagonal().mean().clamp_min(1e-30)
    covariance.diagonal().add_(ridge)
    step = torch.linalg.solve(covariance, (cross[:, :-1] - count * torch.outer(left, mean)).T).T  # [O, D]
    found = {f"{name}.weight": layer.weight + step.to(layer.weight)}
    if layer.bias is not None:
        found[f"{name}.bias"] = layer.bias + (left - step @ mean).to(layer.bias)
    return {key: value.detach() for key, value in found.items()}
