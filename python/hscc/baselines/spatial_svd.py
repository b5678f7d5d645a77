"""The spatial SVD: k x 1, then 1 x k."""

from __future__ import annotations

from torch import Tensor

from ..nn.chain import ConvChain, stage
from .chain import Chain


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
