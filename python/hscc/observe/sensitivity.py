"""How much the network's output moves with each layer's outputs: the metric in which factors should be good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from . import distributed
from .data import Calibration, evaluation, images, watch
from .values import kind, tensors


class NotDifferentiable(ValueError):
    """The model's outputs have no gradient."""


class Sensitivity(NamedTuple):
    """Sums over samples: ``gram`` (O, O) of channels, over all positions; ``energy`` (P,) of positions, or (1,) of all;
    float64."""

    gram: Tensor
    energy: Tensor

    @classmethod
    def empty(cls, channels: int, positions: int, device: torch.device) -> Sensitivity:
        options = {"dtype": torch.float64, "device": device}
        return cls(torch.zeros(channels, channels, **options), torch.zeros(positions, **options))

    def add(self, gradient: Tensor) -> None:
        """gradient: (N, O, Ho, Wo) or (O, Ho, Wo)."""
        rows = images(gradient).flatten(2).transpose(0, 1).float()  # [O, N, P]
        energy = rows.square().sum((0, 1))
        self.energy.add_(energy if len(self.energy) > 1 else energy.sum())
        rows = rows.flatten(1)
        self.gram.add_(rows @ rows.T)


def measure(
    model: nn.Module, calibration: Calibration, layers: Mapping[str, nn.Conv2d], positions: Mapping[str, int]
) -> dict[str, Sensitivity]:
    """The sensitivity of each layer, whose output has so many positions; 1 where all are one.

    The gram is E g g^T over samples and positions, g the gradient of a random projection of the model's outputs:
    in expectation J^T J, J the Jacobian of the centred outputs.

    Raises :class:`NotDifferentiable` when the outputs do not depend on the layers differentiably.
    """
    sums = {
        name: Sensitivity.empty(layer.out_channels, positions[name], layer.weight.device)
        for name, layer in layers.items()
    }
    generator, seen = calibration.generator(), []

    def keep(name: str, x: Tensor, y: Tensor) -> Tensor | None:
        if y.requires_grad:
            seen.append((name, get_gradient_edge(y)))  # what follows may work in place
            return None
        seen.append((name, y.requires_grad_()))
        return y.clone()

    with evaluation(model, gradients=True), watch(layers, keep):
        for batch in calibration.batches("sensitivity"):
            seen.clear()
            projection = _project(calibration.forward(model, batch), generator)
            gradients = torch.autograd.grad(projection, [place for _, place in seen], allow_unused=True)
            for (name, _), gradient in zip(seen, gradients, strict=True):
                if gradient is not None:
                    sums[name].add(gradient)
    for found in sums.values():
        distributed.sum_(*found)
    return sums


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
