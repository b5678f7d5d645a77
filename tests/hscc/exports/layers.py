"""Layers of the kernels' test cases, and small networks of them."""

from __future__ import annotations

import torch
from hscc import HSCConv2d, Projection, SqueezedConv2d
from torch import nn

from hscc_kernels import testing


def made(case: testing.Case, dtype: torch.dtype = torch.float64) -> HSCConv2d:
    """As a compressed network would have it: a bias a region."""
    _, plan, bias = testing.make_inputs(case, dtype)
    shape = plan.channels.shape
    bias = plan.v.new_zeros(shape) if bias is None else bias.expand(shape).contiguous()
    return HSCConv2d(plan, bias, activation=case.activation).eval()


def plain_net() -> nn.Sequential:
    """A squeezed layer and a dense one; any height and width."""
    squeezed = SqueezedConv2d.of(Projection(torch.randn(8, 8) / 3), made(testing.CASES[0], torch.float32))
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), squeezed, nn.MaxPool2d(2), nn.Conv2d(12, 4, 3)
    ).eval()


def regions_net(case: testing.Case = testing.CASES[1]) -> nn.Sequential:
    """A layer with regions behind a first convolution stored channels last, for one grey image of the case's size."""
    layer = made(case, torch.float32)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(layer.out_channels, 3)
    first = nn.Conv2d(1, layer.in_channels, 3, padding=1).to(memory_format=torch.channels_last)
    return nn.Sequential(first, nn.ReLU(), layer, *head).eval()
