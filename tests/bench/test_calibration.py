"""The bench of whole compressions: its networks have torchvision's convolutions, its images are counted."""

from __future__ import annotations

import json

import hscc
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.networks import calibration
from bench.networks.models import MODELS


@pytest.mark.parametrize(
    ("name", "convolutions", "parameters", "macs"),
    [
        ("resnet18", 20, 11_689_512, 1_814_073_344),
        ("resnet50", 53, 25_557_032, 4_089_184_256),
        ("densenet121", 120, 7_978_856, 2_834_161_664),
        ("vgg16", 13, 15_227_688, 15_346_630_656 + 512_000),
    ],
)
def test_networks_are_those_that_people_use(name: str, convolutions: int, parameters: int, macs: int) -> None:
    """Of torchvision: ResNet-18 has 11,689,512 parameters, ResNet-50 25,557,032, DenseNet-121 7,978,856."""
    with torch.device("meta"):
        model = MODELS[name]().eval()
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() == 2 * macs


def test_a_compression_is_measured_beside_a_dense_pass() -> None:
    images = calibration.Images(5, 2, 32)
    assert [len(batch) for batch in images] == [2, 2, 1]
    assert len(images) == 3
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()).eval()
    _, row = calibration.measured(model, images, hscc.Config(hscc.flops(2)))
    assert min(row["seconds"], row["dense_seconds"], row["mib"], row["dense_mib"]) > 0
    assert row["flop_reduction"] >= 2
    assert sum(row["stages"].values()) <= row["seconds"]
    assert "5 images" in calibration.told({"images": 5, **row})
    json.dumps(row)
