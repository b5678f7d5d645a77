"""Tucker-2: 1 x 1, k x k, 1 x 1."""

from __future__ import annotations

import torch
from torch import Tensor

from ..nn.chain import ConvChain, stage
from .chain import Chain


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
        return self.leading(self.seen.outputs.region(0).covariance)

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


def _tensorly():
    try:
        import tensorly.decomposition
    except ImportError as error:
        raise ImportError("method 'tucker2' on weights needs tensorly: pip install 'hscc[baselines]'") from error
    return tensorly
