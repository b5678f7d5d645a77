"""Small networks that do what networks do besides calling one layer after another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.models import conv


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv(inputs, outputs, 3, stride), nn.ReLU())


class Autoencoder(nn.Module):
    """(N, 3, H, W), multiples of 8, to the same: transposed convolutions on the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(block(3, 32, 2), block(32, 64, 2), block(64, 128, 2), nn.Conv2d(128, 16, 1))
        up = [nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 3, 2, 2)]
        self.decoder = nn.Sequential(block(16, 128), nn.ConvTranspose2d(128, 64, 2, 2), nn.ReLU(), *up)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Small(nn.Module):
    """A stem, what a subclass puts behind it, and a head of ten outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = block(3, 32, 2), block(32, 32)
        self.head = nn.Linear(32, 10)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))


class Shared(Small):
    """One module under two names, each called once."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.body

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.again(self.body(self.stem(x))))


class Twice(Small):
    """One module, called twice at one size."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.body(self.body(self.stem(x))))


class Pyramid(Small):
    """One module, called at two sizes, as a detector's head is."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.scores(self.body(x)) + self.scores(self.body(F.max_pool2d(x, 2)))


class Branches(Small):
    """Python decides by shape, training mode and arguments, and loops."""

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        x = self.stem(x)
        for step in range(depth):
            x = x + self.body(x) if step % 2 == 0 and x.shape[-1] > 4 else F.dropout(x, 0.5, self.training)
        return self.scores(x)


class Dicts(Small):
    """A dict of outputs, one of them a list."""

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        features = self.stem(x)
        deep = self.body(features)
        return {"scores": self.scores(deep), "features": [features, deep]}


class Tuples(Small):
    """Two outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(self.stem(x))
        return self.scores(features), features


class Several(Small):
    """Two images in."""

    def __init__(self) -> None:
        super().__init__()
        self.other = block(3, 32, 2)

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        x = self.stem(image)
        return self.scores(self.body(torch.maximum(x, self.other(other))))


class Reads(Small):
    """A forward that reads a layer's weight besides calling it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.body(self.stem(x))) * self.body[0].weight.abs().mean()
