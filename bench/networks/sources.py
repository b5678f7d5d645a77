"""The networks that whole-network benches measure, by name, with the images that they calibrate on and others."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..accuracy import examples
from .models import MODELS, settled

TRAINED = {
    "alexnet": "brain_mri",
    "resnet20": "resnet20",
    "mobilenet": "mobilenet",
    "unet_mri": "unet",
}  # to names of bench.accuracy


class Source(NamedTuple):
    """A dense network, its calibration images (N, C, H, W), and others that it has not seen."""

    dense: nn.Module
    images: Tensor
    others: Tensor


def names() -> list[str]:
    return [*MODELS, *TRAINED]


def source(name: str, calibration: int, others: int, size: int) -> Source:
    """With so many images; those of networks with random weights are ``size`` pixels wide and high."""
    if name in MODELS:
        torch.manual_seed(0)
        images = pictures(calibration, size)
        found = Source(settled(MODELS[name](), images.split(8)), images, pictures(others, size, seed=1))
    else:
        dense, spec, _ = examples.network(TRAINED[name])
        counts = {"calibration": calibration, "test": others}
        shown = (examples.images(TRAINED[name], split, count, 0)[0] for split, count in counts.items())
        found = Source(copy.deepcopy(dense).eval(), *map(spec.preprocess, shown))
    found.dense.requires_grad_(False)
    return found


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    """Made-up images (count, 3, size, size) in float32, of unit variance and as much contrast at every scale, as
    photographs have."""
    generator, image = torch.Generator().manual_seed(seed), torch.zeros(count, 3, size, size)
    for scale in (2**i for i in range(size.bit_length() - 1)):
        side = -(-size // scale)
        noise = torch.randn(count, 3, side, side, generator=generator)
        image += F.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
    return image / image.std()
