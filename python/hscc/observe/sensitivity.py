"""How much the network's output moves with each layer's outputs: the metric in which factors should be good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..maths.regions import RegionMap
from . import distributed
from .data import Calibration, evaluation, watch
from .values import kind, tensors

WEIGHT_FLOOR = 0.01  # of the mean: a position that looks irrelevant on few images still counts a little


class NotDifferentiable(ValueError):
    """The model's outputs have no gradient."""


def measure(
    model: nn.Module,
    calibration: Calibration,
    layers: Mapping[str, nn.Conv2d],
    cells: Mapping[str, RegionMap],
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each layer its gram (O, O) and the weight (cells,) of a position of each cell, 1 on average; float64.

    The gram is E g g^T over samples and positions, g the gradient of a random projection of the model's outputs:
    in expectation J^T J, J the Jacobian of the centred outputs.

    Raises :class:`NotDifferentiable` when the outputs do not depend on the layers differentiably.
    """
    sums = {
        name: torch.zeros(cells[name].count, layer.out_channels, layer.out_channels).to(
            layer.weight.device, torch.float64
        )
        for name, layer in layers.items()
    }
    generator, seen = calibration.generator(), []

    def keep(name: str, x: Tensor, y: Tensor) -> Tensor:
        y = y.requires_grad_() if not y.requires_grad else y
        seen.append((name, y))
        return y.clone()  # what follows may work in place

    with evaluation(model, gradients=True), watch(layers, keep):
        for batch in calibration.batches("sensitivity"):
            seen.clear()
            projection = _project(calibration.forward(model, batch), generator)
            gradients = torch.autograd.grad(projection, [y for _, y in seen], allow_unused=True)
            for (name, _), gradient in zip(seen, gradients, strict=True):
                if gradient is not None:
                    _add(sums[name], gradient, cells[name])
    distributed.sum_(*sums.values())
    return {name: _summary(total, cells[name]) for name, total in sums.items()}


def plain(layer: nn.Conv2d, cells: RegionMap) -> tuple[Tensor, Tensor]:
    """The metric in which all channels and positions count the same."""
    options = {"dtype": torch.float64, "device": layer.weight.device}
    return torch.eye(layer.out_channels, **options), torch.ones(cells.count, **options)


def _project(output: Any, generator: torch.Generator) -> Tensor:
    """A random projection of every floating-point tensor in a model's output, each sample's values centred.

    A sample's only value stays as it is, since centred it would be 0; scalars, such as a loss, are passed over.
    """
    found = [torch.view_as_real(y) if y.is_complex() else y for y in tensors(output) if y.requires_grad and y.ndim]
    if not found:
        raise NotDifferentiable(f"got outputs without gradient ({kind(output)})")
    total = 0.0
    for y in found:
        noise = torch.randn(y.shape, generator=generator).to(y)
        if y.shape[1:].numel() > 1:
            noise = noise - noise.flatten(1).mean(1).view(-1, *[1] * (y.ndim - 1))
        total = total + (y * noise).sum()
    return total


def _add(total: Tensor, gradient: Tensor, cells: RegionMap) -> None:
    labels = cells.labels.reshape(-1).to(gradient.device)
    rows = gradient.reshape(-1, *gradient.shape[-3:]).flatten(2).float()
    for cell in range(cells.count):
        g = rows[:, :, (labels == cell).nonzero().squeeze(1)].transpose(1, 2).flatten(0, 1)
        total[cell] += (g.T @ g).double()


def _summary(sums: Tensor, cells: RegionMap) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor(cells.sizes(), dtype=torch.float64, device=sums.device)
    energy = sums.diagonal(dim1=1, dim2=2).sum(1)
    if energy.sum() == 0:
        return torch.eye(sums.shape[1]).to(sums), torch.ones_like(sizes)
    weights = energy / sizes
    weights = weights.clamp_min(WEIGHT_FLOOR * (energy.sum() / sizes.sum()))
    return sums.sum(0), weights * sizes.sum() / (weights * sizes).sum()
