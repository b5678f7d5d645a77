"""Fused ReLUs: same numbers, fewer passes, and nothing touched that others read."""

from __future__ import annotations

import hscc
import torch
from hscc.nn.conv2d import HSCConv2d
from torch import nn


def conv(channels: int = 4) -> HSCConv2d:
    return HSCConv2d.dense(nn.Conv2d(channels, 4, 3, padding=1), (6, 6))


class Residual(nn.Module):
    """One ReLU for two convolutions, and a convolution with two readers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = conv(), conv(), conv()
        self.relu, self.last = nn.ReLU(inplace=True), nn.ReLU()

    def forward(self, x):
        x = self.relu(self.first(x))
        y = self.third(self.relu(self.second(x)))
        return self.last(y) + y.mean()


def test_a_relu_moves_into_the_kernel_and_the_numbers_stay():
    model = nn.Sequential(conv(3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), conv(), nn.ReLU())
    x = torch.randn(2, 3, 6, 6)
    before, keys = model(x), list(model.state_dict())
    assert hscc.fuse_relu_(model) == ("0", "4")
    assert [type(module) for module in model[1::2]] == [nn.Identity, nn.ReLU, nn.Identity]
    assert list(model.state_dict()) == keys
    assert (model[0](x) >= 0).all()
    torch.testing.assert_close(model(x), before)
    assert hscc.fuse_relu_(model) == ()


def test_gradients_pass_a_fused_relu():
    model = nn.Sequential(conv(3), nn.ReLU())
    x = torch.randn(2, 3, 6, 6)
    model(x).square().sum().backward()
    expected = model[0].u.grad.clone(), model[0].v.grad.clone(), model[0].bias.grad.clone()
    model.zero_grad()
    hscc.fuse_relu_(model)
    model(x).square().sum().backward()
    torch.testing.assert_close((model[0].u.grad, model[0].v.grad, model[0].bias.grad), expected)


def test_what_others_read_stays():
    model = Residual()
    assert hscc.fuse_relu_(model) == ()
    assert all(layer.activation == "none" for layer in (model.first, model.second, model.third))


def test_a_model_without_factors_has_nothing_to_fuse():
    assert hscc.fuse_relu_(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())) == ()
