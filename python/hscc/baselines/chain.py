"""One convolution as a chain of plain ones (:class:`ConvChain`): what it saw, and what ranks gain and cost.

Tucker-2 and the spatial SVD both split a convolution at its inputs (BALF at its outputs: see there): the first stage
sees patches x (m,), A (m, J) is the weight unfolded on them, and A ~ L R of rank r makes L the first stage and R the
rest. The best L R for inputs of covariance S minimises |S^(1/2) (A - L R)|; that is the output error where the patches
that one output reads are uncorrelated. S is the covariance on calibration data ("activation") or the identity
("weight": the plain SVD). With "activation", the last bias gives every output channel the dense layer's mean over the
calibration images and positions, borders included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import Config
from ..maths.moments import Moments, Profile
from ..nn.chain import ConvChain, stage
from ..nn.conv2d import dense_bias, trainable
from ..search.cost import Cost


@dataclass
class Seen:
    """Sums over the calibration data: the first stage's patches (m,), the outputs (O,), the input image (C, H, W)."""

    inputs: Moments
    outputs: Moments
    image: Tensor

    @classmethod
    def empty(cls, patches: Tensor, x: Tensor, y: Tensor) -> Seen:
        inputs, outputs = (
            Moments.empty(
                torch.zeros(t.shape[2:].numel(), dtype=torch.int64, device=t.device),
                torch.zeros(1, t.shape[1], dtype=torch.float64, device=t.device),
                paired=False,
            )
            for t in (patches, y)
        )
        return cls(inputs, outputs, torch.zeros_like(x[0], dtype=torch.float64))

    def add(self, patches: Tensor, x: Tensor, y: Tensor) -> None:
        self.inputs.add(patches)
        self.outputs.add(y)
        self.image += x.double().sum(0)

    @property
    def sums(self) -> tuple[Tensor, ...]:
        return *self.inputs.sums, *self.outputs.sums, self.image

    @property
    def positions(self) -> int:
        """Of one output."""
        return len(self.outputs.labels)

    def energy(self) -> float:
        """Of the outputs about their means, summed over all that was seen."""
        outputs = self.outputs.region(0)
        return max(outputs.count * outputs.covariance.trace().item(), 1e-30)

    def mean_image(self) -> Tensor:
        """(1, C, H, W)."""
        return self.image[None] * self.positions / self.outputs.count


@dataclass(frozen=True)
class Chain:
    """One convolution, what it saw, and the rank of each mode it gets; no ranks: it stays dense."""

    name: str
    conv: nn.Conv2d
    config: Config
    profile: Profile
    seen: Seen
    ranks: tuple[int, ...] = ()
    missed: float = 0.0  # share of energy, as predicted for those ranks

    first_axes = (False, False)  # along which the first stage has the kernel, stride and padding of the dense layer

    @classmethod
    def patches(cls, conv: nn.Conv2d) -> nn.Conv2d:
        """Gathers what the first stage sees: (N, C, H, W) -> (N, m, H', W')."""
        kernel = [k if own else 1 for k, own in zip(conv.kernel_size, cls.first_axes, strict=True)]
        size = conv.in_channels * kernel[0] * kernel[1]
        return stage(conv, torch.eye(size).view(size, conv.in_channels, *kernel), cls.first_axes)

    @property
    def dense(self) -> Cost:
        """Of the layer without factorization."""
        return Cost.dense(self.conv, self.profile.calls * self.seen.positions)

    def unfolded(self) -> Tensor:
        """A (m, J), float64."""
        raise NotImplementedError

    def gains(self) -> list[Tensor]:
        """For each mode (m,): the energy of each further rank."""
        raise NotImplementedError

    def numbers(self, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the first stage and of the rest, each (n,), for ranks (n, modes)."""
        raise NotImplementedError

    def factored(self) -> ConvChain:
        """The convolutions for the chosen ranks."""
        raise NotImplementedError

    def useful(self, ranks: Tensor) -> Tensor:
        """(n,) whether no stage has more rank than its neighbours let through."""
        return torch.ones(len(ranks), dtype=torch.bool)

    def flops(self, ranks: Tensor) -> Tensor:
        """(n,) of one image, for ranks (n, modes)."""
        first, rest = self.numbers(ranks)
        return 2 * self.profile.calls * (first * len(self.seen.inputs.labels) + rest * self.seen.positions)

    def parameters(self, ranks: Tensor) -> Tensor:
        """(n,) with the bias, for ranks (n, modes)."""
        return sum(self.numbers(ranks)) + self.conv.out_channels

    def costs(self, ranks: Tensor) -> list[Cost]:
        """(n,) for ranks (n, modes)."""
        size = self.conv.weight.element_size()
        return [
            Cost(flops, numbers, numbers * size)
            for flops, numbers in zip(self.flops(ranks).tolist(), self.parameters(ranks).tolist(), strict=True)
        ]

    def split(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gains (k,), L (m, k) and R (k, J) of A = ``weight`` (m, J), strongest first."""
        identity = torch.eye(len(weight)).to(weight)
        covariance = identity
        if self.config.factorization == "activation":
            seen = self.seen.inputs.region(0).covariance
            variance = seen.diagonal().mean().clamp_min(1e-30)
            covariance = seen + self.config.ridge * variance * identity
        values, vectors = torch.linalg.eigh(covariance)
        _, s, right = torch.linalg.svd((vectors * values.clamp_min(0).sqrt()).T @ weight, full_matrices=False)
        return s**2, weight @ right.T, right

    def leading(self, energy: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues (O,) and eigenvectors (O, O) of the outputs' energy (O, O), strongest first.

        "weight": of the rows of the weight instead, which is the energy behind white inputs.
        """
        if self.config.factorization == "weight":
            rows = self.conv.weight.detach().double().flatten(1)
            energy = rows @ rows.T
        values, vectors = torch.linalg.eigh(energy)
        return values.flip(0).clamp_min(0), vectors.flip(1)

    def centred(self, stages: ConvChain) -> ConvChain:
        """With the bias that gives every channel the dense layer's mean; ready as :meth:`finished` says."""
        bias = dense_bias(self.conv).double()
        if self.config.factorization == "activation":
            with torch.no_grad():
                mean = stages(self.seen.mean_image().to(self.conv.weight.dtype)).double().mean((0, 2, 3))
            bias = self.seen.outputs.region(0).mean - mean
        return self.finished(stages, bias)

    def finished(self, stages: ConvChain, bias: Tensor) -> ConvChain:
        """Gives the last stage its bias (O,), and the whole the dense layer's mode."""
        stages[-1].bias = nn.Parameter(bias.to(self.conv.weight.dtype, copy=True))
        return stages.requires_grad_(trainable(self.conv)).train(self.conv.training)
