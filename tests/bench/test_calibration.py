"""The bench of calibration: its network is ResNet-50's convolutions, its images are counted, every pass is timed."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.networks import calibration


def test_the_network_has_the_convolutions_of_resnet50() -> None:
    with torch.device("meta"):
        model = calibration.resnet50()
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 53
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
    assert weights == 25_502_912  # of torchvision's, batch norms and biases left out
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() == 2 * 4_089_184_256


def test_every_pass_is_timed_over_all_images() -> None:
    images = calibration.Images(5, 2)
    assert [len(batch) for batch in images] == [2, 2, 1]
    assert len(images) == 3
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 16), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten()).eval()
    times = calibration.passes(model, images, 2)
    assert list(times) == ["profile", "moments", "sensitivity", "fit"]
    assert min(times.values()) > 0
