"""Tucker-2 and the spatial SVD: the usual low-rank convolutions, as a :class:`ConvChain` of plain ``nn.Conv2d``.

Both split a convolution at its inputs: the first stage sees patches x (m,), A (m, J) is the weight unfolded on them,
and A ~ L R of rank r makes L the first stage and R the rest. The best L R for inputs of covariance S minimises
|S^(1/2) (A - L R)|; that is the output error where the patches that one output reads are uncorrelated. S is the
covariance on calibration data ("activation") or the identity ("weight": the plain SVD). With "activation", the last
bias gives every output channel the dense layer's mean over the calibration images and positions, borders included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import Config
from .layer import dense_bias
from .ranks import Cost
from .stats import Moments, Profile


class ConvChain(nn.Sequential):
    """What a convolution becomes: several plain ``nn.Conv2d``; a class of its own, so that ``save`` sees it."""


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
        flops = 2 * self.profile.calls * self.seen.positions * self.conv.weight.numel()
        numbers = sum(p.numel() for p in self.conv.parameters())
        return Cost(flops, numbers, numbers * self.conv.weight.element_size())

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

    def centred(self, stages: ConvChain) -> ConvChain:
        """Gives the last stage its bias, and the whole the dense layer's mode."""
        bias = dense_bias(self.conv).double()
        if self.config.factorization == "activation":
            with torch.no_grad():
                mean = stages(self.seen.mean_image().to(self.conv.weight.dtype)).double().mean((0, 2, 3))
            bias = self.seen.outputs.region(0).mean - mean
        stages[-1].bias = nn.Parameter(bias.to(self.conv.weight.dtype))
        return stages.requires_grad_(self.conv.weight.requires_grad).train(self.conv.training)


class Tucker2(Chain):
    """1 x 1, kh x kw core, 1 x 1; ranks (r of the input channels, s of the output channels) (Kim et al. 2016).

    "weight": partial Tucker decomposition by tensorly (higher-order orthogonal iteration); ranks from the mode-wise
    singular values. "activation": the last stage is the s leading eigenvectors U of the output covariance, the first
    comes from A (C, s kh kw), the unfolded U^T W, and the covariance of the input channels. The two errors are
    orthogonal, so that the missed energies of the modes add up.
    """

    def unfolded(self) -> Tensor:
        return self.conv.weight.detach().double().transpose(0, 1).flatten(1)

    def output_basis(self) -> tuple[Tensor, Tensor]:
        """Gains (O,) and U (O, O), strongest first."""
        if self.config.factorization == "activation":
            energy = self.seen.outputs.region(0).covariance
        else:
            rows = self.conv.weight.detach().double().flatten(1)
            energy = rows @ rows.T
        values, vectors = torch.linalg.eigh(energy)
        return values.flip(0).clamp_min(0), vectors.flip(1)

    @property
    def taps(self) -> int:
        return self.conv.kernel_size[0] * self.conv.kernel_size[1]

    def gains(self) -> list[Tensor]:
        return [self.split(self.unfolded())[0], self.output_basis()[0][: self.conv.in_channels * self.taps]]

    def numbers(self, ranks: Tensor) -> tuple[Tensor, Tensor]:
        r, s = ranks.T
        return self.conv.in_channels * r, self.taps * r * s + self.conv.out_channels * s

    def useful(self, ranks: Tensor) -> Tensor:
        r, s = ranks.T
        return (r <= s * self.taps) & (s <= r * self.taps)

    def factored(self) -> ConvChain:
        first, core, last = self._from_weight() if self.config.factorization == "weight" else self._from_activations()
        return self.centred(
            ConvChain(
                stage(self.conv, first[..., None, None], (False, False)),
                stage(self.conv, core, (True, True)),
                stage(self.conv, last[..., None, None], (False, False)),
            )
        )

    def _from_weight(self) -> tuple[Tensor, Tensor, Tensor]:
        tensorly = _tensorly()
        weight, (r, s) = self.conv.weight.detach(), self.ranks
        with tensorly.backend_context("numpy", local_threadsafe=True):
            (core, (last, first)), _ = tensorly.decomposition.partial_tucker(
                weight.double().cpu().numpy(), [s, r], modes=[0, 1], random_state=self.config.seed
            )
        return tuple(torch.from_numpy(part.copy()).to(weight.device) for part in (first.T, core, last))

    def _from_activations(self) -> tuple[Tensor, Tensor, Tensor]:
        r, s = self.ranks
        u = self.output_basis()[1][:, :s]
        weight = torch.einsum("os,ocij->csij", u, self.conv.weight.detach().double())
        _, left, right = self.split(weight.flatten(1))
        return left[:, :r].T, right[:r].view(-1, *weight.shape[1:]).transpose(0, 1), u


class SpatialSVD(Chain):
    """kh x 1, then 1 x kw; one rank (Jaderberg et al. 2014). The patches are columns of kh inputs."""

    first_axes = (True, False)

    def unfolded(self) -> Tensor:
        weight = self.conv.weight.detach().double().permute(1, 2, 0, 3)  # [C, kh, O, kw]
        return weight.flatten(2).flatten(0, 1)

    def gains(self) -> list[Tensor]:
        return [self.split(self.unfolded())[0]]

    def numbers(self, ranks: Tensor) -> tuple[Tensor, Tensor]:
        kh, kw = self.conv.kernel_size
        return self.conv.in_channels * kh * ranks[:, 0], self.conv.out_channels * kw * ranks[:, 0]

    def factored(self) -> ConvChain:
        (rank,), (kh, kw) = self.ranks, self.conv.kernel_size
        _, left, right = self.split(self.unfolded())
        first = left[:, :rank].T.reshape(rank, self.conv.in_channels, kh, 1)
        last = right[:rank].view(rank, self.conv.out_channels, 1, kw).transpose(0, 1)
        return self.centred(ConvChain(stage(self.conv, first, (True, False)), stage(self.conv, last, (False, True))))


def stage(like: nn.Conv2d, weight: Tensor, axes: tuple[bool, bool]) -> nn.Conv2d:
    """A convolution of ``weight`` with the stride, padding and dilation of ``like`` along ``axes``, plain elsewhere.

    Without bias; ``weight`` (O, C, kh, kw) takes the dtype and the device of the other.
    """

    def along(values: tuple[int, int], plain: int) -> tuple[int, int]:
        return tuple(value if own else plain for value, own in zip(values, axes, strict=True))

    conv = nn.utils.skip_init(  # initialising would draw from the user's random generator
        nn.Conv2d,
        weight.shape[1],
        weight.shape[0],
        tuple(weight.shape[2:]),
        along(like.stride, 1),
        like.padding if isinstance(like.padding, str) else along(like.padding, 0),
        along(like.dilation, 1),
        bias=False,
        padding_mode=like.padding_mode,
        device=like.weight.device,
        dtype=like.weight.dtype,
    )
    conv.weight = nn.Parameter(weight.to(like.weight).contiguous())
    return conv


def _tensorly():
    try:
        import tensorly.decomposition
    except ImportError as error:
        raise ImportError("method 'tucker2' on weights needs tensorly: pip install 'hscc[baselines]'") from error
    return tensorly
