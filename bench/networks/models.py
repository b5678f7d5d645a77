"""Networks that people use, with random weights: torchvision's shapes, without torchvision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size but for its stride, and its batch norm."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """ResNet-18's block (3 x 3 twice) or ResNet-50's (1 x 1, 3 x 3, 1 x 1), and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        relu = nn.ReLU(inplace=True)
        if bottleneck:
            layers = [*conv(inputs, width, 1), relu, *conv(width, width, 3, stride), relu, *conv(width, outputs, 1)]
        else:
            layers = [*conv(inputs, width, 3, stride), relu, *conv(width, outputs, 3)]
        self.path, self.relu = nn.Sequential(*layers), relu
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Sequential(*conv(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.path(x) + self.skip(x))


def resnet(blocks: Sequence[int], bottleneck: bool) -> nn.Sequential:
    layers, inputs = [*conv(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)], 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            layers.append(Residual(inputs, width, 2 if block == 0 and stage else 1, bottleneck))
            inputs = 4 * width if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


class Dense(nn.Module):
    """DenseNet's layer: its outputs beside its inputs."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        relu, narrow = nn.ReLU(inplace=True), 4 * growth
        first, second = nn.Conv2d(inputs, narrow, 1, bias=False), nn.Conv2d(narrow, growth, 3, padding=1, bias=False)
        self.path = nn.Sequential(nn.BatchNorm2d(inputs), relu, first, nn.BatchNorm2d(narrow), relu, second)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.path(x)], 1)


def densenet121() -> nn.Sequential:
    layers, inputs = [*conv(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)], 64
    for stage, count in enumerate((6, 12, 24, 16)):
        if stage:
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, inputs // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            inputs //= 2
        layers += [Dense(inputs + 32 * i, 32) for i in range(count)]
        inputs += 32 * count
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(inputs, 1000))


def vgg16() -> nn.Sequential:
    """With one linear layer instead of three, which are no convolutions."""
    layers, inputs = [], 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class UNet(nn.Module):
    """segmentation_models_pytorch's Unet("resnet18"): (N, 3, H, W), multiples of 32, to (N, 1, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        encoder = resnet((2, 2, 2, 2), bottleneck=False)
        self.downs = nn.ModuleList(encoder[a:b] for a, b in ((0, 3), (3, 6), (6, 8), (8, 10), (10, 12)))
        self.ups, inputs = nn.ModuleList(), 512
        for width, skip in ((256, 256), (128, 128), (64, 64), (32, 64), (16, 0)):
            layers = [*conv(inputs + skip, width, 3), nn.ReLU(inplace=True)]
            self.ups.append(nn.Sequential(*layers, *conv(width, width, 3), nn.ReLU(inplace=True)))
            inputs = width
        self.head = nn.Conv2d(inputs, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        for up, skip in zip(self.ups, [*skips[-2::-1], None], strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = up(x if skip is None else torch.cat([x, skip], 1))
        return self.head(x)


def _falling_(weight: Tensor, decay: float) -> None:
    """Of each filter bank's matrix (O, C kh kw); its norm stays."""
    u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    falling = torch.arange(1, len(s) + 1) ** -decay
    weight.copy_(((u * (falling * s.norm() / falling.norm())) @ v).view_as(weight))


@torch.no_grad()
def settled(model: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...]], decay: float | None = None) -> nn.Module:
    """The model with random weights whose activations neither vanish nor explode, its batch norms' statistics those of
    the batches (N, 3, H, W), and their scales and shifts unlike 1 and 0, so that leaving them out shows. A tuple is of
    the inputs of one call; with a ``decay`` the singular values of convolutions fall as i ** -decay."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if decay is not None:
                _falling_(module.weight, decay)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over the batches
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    model.train()
    for batch in batches:
        model(*batch) if isinstance(batch, tuple) else model(batch)
    return model.eval()


MODELS = {
    "resnet18": lambda: resnet((2, 2, 2, 2), bottleneck=False),
    "resnet50": lambda: resnet((3, 4, 6, 3), bottleneck=True),
    "densenet121": densenet121,
    "vgg16": vgg16,
    "unet": UNet,
}
