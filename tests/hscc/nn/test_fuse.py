"""Fused ReLUs and folded batch norms: same numbers, fewer passes, and nothing touched that others read."""

from __future__ import annotations

import copy
import warnings

import hscc
import pytest
import torch
from hscc.nn.conv2d import HSCConv2d
from hscc.nn.surgery import Folded
from torch import nn

from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors


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
    assert hscc.fuse_(model) == ("0", "4")
    assert [type(module) for module in model[1::2]] == [nn.Identity, nn.ReLU, nn.Identity]
    assert list(model.state_dict()) == keys
    assert (model[0](x) >= 0).all()
    torch.testing.assert_close(model(x), before)
    assert hscc.fuse_(model) == ()


def test_gradients_pass_a_fused_relu():
    model = nn.Sequential(conv(3), nn.ReLU())
    x = torch.randn(2, 3, 6, 6)
    model(x).square().sum().backward()
    expected = model[0].u.grad.clone(), model[0].v.grad.clone(), model[0].bias.grad.clone()
    model.zero_grad()
    hscc.fuse_(model)
    model(x).square().sum().backward()
    torch.testing.assert_close((model[0].u.grad, model[0].v.grad, model[0].bias.grad), expected)


def test_what_others_read_stays():
    model = Residual()
    assert hscc.fuse_(model) == ()
    assert all(layer.activation == "none" for layer in (model.first, model.second, model.third))


def test_a_model_without_factors_has_nothing_to_fuse():
    assert hscc.fuse_(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())) == ()


def norm(channels: int = 4) -> nn.BatchNorm2d:
    """That changes what it reads, one channel closed."""
    layer = nn.BatchNorm2d(channels).eval()
    for tensor in (layer.weight.data, layer.bias.data, layer.running_mean):
        tensor.normal_()
    layer.running_var.uniform_(0.5, 2)
    layer.weight.data[0] = 0
    return layer


def hierarchical() -> HSCConv2d:
    """Two regions: a cluster of rank 2 beside a dense one, and one of rank 1 beside one of rank 0; rows shared."""
    first = ClusterFactors(torch.tensor([3, 0]), 0, torch.randn(2, 2)), ClusterFactors(torch.tensor([2, 1]), 2, None)
    second = (
        ClusterFactors(torch.tensor([1, 2, 3]), 0, torch.randn(3, 1)),
        ClusterFactors(torch.tensor([0]), 0, torch.randn(1, 0)),
    )
    regions = [RegionFactors(torch.arange(4), first), RegionFactors(torch.tensor([1]), second)]
    labels = (torch.arange(36).view(6, 6) % 5 > 2).long()
    plan = PackedPlan.pack(torch.randn(4, 36), regions, labels, Geometry((3, 3), padding=(1, 1)))
    return HSCConv2d(plan, torch.randn(2, 4))


@torch.no_grad()
def test_batch_norms_are_folded_into_factors_and_plain_convolutions():
    model = nn.Sequential(hierarchical(), norm(), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4, bias=False), norm()).eval()
    x = torch.randn(2, 4, 6, 6)
    before = model(x)
    assert hscc.fuse_(model) == ("0", "3")
    assert [type(module) for module in model] == [HSCConv2d, Folded, nn.Identity, nn.Conv2d, Folded]
    torch.testing.assert_close(model(x), before)
    assert hscc.fuse_(model) == ()


@torch.no_grad()
def test_a_batch_norm_stays_where_folding_would_change_what_others_read():
    shared, class_ = norm(), Residual()
    model = nn.Sequential(conv(), shared, conv(), shared).eval()
    assert hscc.fuse_(model) == ()
    layer = hierarchical()
    layer.rows[-1] = 3  # a row of the dense cluster, read by the other region as well
    assert hscc.fuse_(nn.Sequential(layer, norm()).eval()) == ()
    relu = conv()
    relu.activation = "relu"
    assert hscc.fuse_(nn.Sequential(relu, norm()).eval()) == ()
    assert class_(torch.randn(1, 4, 6, 6)).shape == (1, 4, 6, 6)


def test_batch_norms_in_training_are_named():
    with pytest.warns(UserWarning, match=r"1 \(a batch norm in training mode\)"):
        assert hscc.fuse_(nn.Sequential(conv(), nn.BatchNorm2d(4))) == ()


@torch.no_grad()
def test_a_folded_model_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8), nn.ReLU())
    dense += nn.Sequential(nn.Conv2d(8, 4, 3, groups=4, bias=False), norm(4), nn.Flatten(), nn.Linear(400, 3))
    x = torch.randn(32, 3, 12, 12)
    model = copy.deepcopy(dense.eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hscc.compress_(model, x, hscc.Config(hscc.flops(1.5), regions=2))
    compressed = model(x)
    assert hscc.fuse_(model) == ("0", "3")
    torch.testing.assert_close(model(x), compressed, rtol=1e-4, atol=1e-4)
    hscc.save(model, tmp_path / "model.safetensors")
    hscc.load_(dense, tmp_path / "model.safetensors")
    assert type(dense[4]) is Folded
    torch.testing.assert_close(dense(x), model(x))
    with pytest.raises(ValueError, match="expected the dense model's batch norm"):
        hscc.load_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), tmp_path / "model.safetensors")
