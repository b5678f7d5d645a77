"""AlexNet's convolution trunk with a small head, in plain PyTorch."""

from torch import nn


def build(classes: int = 4) -> nn.Module:
    """AlexNet's five convolutions and one linear layer: float32 (n, 3, 224, 224) -> logits (n, classes).

    The average pool in the head takes other sizes of picture too, from 96 pixels on. All layers lie in one
    flat ``nn.Sequential``; the weights start from Kaiming's values, as the trunk has no normalisation.
    """
    model = nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(256 * 3 * 3, classes),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model
