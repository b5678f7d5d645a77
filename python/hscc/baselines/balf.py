"""BALF's factors: k x k, then 1 x 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn.chain import ConvChain, stage
from ..nn.conv2d import dense_bias
from .chain import Chain


class Balf(Chain):
    """kh x kw to r channels, then 1 x 1; one rank (González-Martínez 2025, arXiv:2509.25136).

    W (O, C kh kw) becomes the truncated SVD of W S^(1/2) times S^(-1/2), S the uncentred second moment of the patches
    ("weight": the identity). That is U U^T W for the r leading eigenvectors U of W S W^T, the second moment of the
    outputs without bias, so that these are all that is looked at. The bias stays the dense layer's.
    """

    @classmethod
    def patches(cls, conv: nn.Conv2d) -> nn.Conv2d:
        return stage(conv, conv.weight.detach(), (True, True))

    def output_basis(self) -> tuple[Tensor, Tensor]:
        """Gains (O,) and U (O, O), strongest first."""
        seen = self.seen.inputs.region(0)
        return self.leading(seen.covariance + torch.outer(seen.mean, seen.mean))

    def gains(self) -> list[Tensor]:
        return [self.output_basis()[0][: self.conv.weight[0].numel()]]

    def numbers(self, ranks: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv.weight[0].numel() * ranks[:, 0], self.conv.out_channels * ranks[:, 0]

    def factored(self) -> ConvChain:
        weight = self.conv.weight.detach().double()
        u = self.output_basis()[1][:, : self.ranks[0]]
        first, last = torch.einsum("or,ocij->rcij", u, weight), u[..., None, None]
        stages = ConvChain(stage(self.conv, first, (True, True)), stage(self.conv, last, (False, False)))
        return self.finished(stages, dense_bias(self.conv))
