"""Which convolutions only a ReLU reads, and what may change behind it unseen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hscc.observe import rectifiers
from hscc.observe.data import Calibration
from hscc.observe.rectifiers import Rectifier
from torch import Tensor, nn


class Net(nn.Module):
    """Convolution ``a`` or ``b``, then whatever ``body`` does."""

    def __init__(self, body) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.body = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def found(body) -> dict[str, Rectifier]:
    net = Net(body).eval()
    return rectifiers.find(net, Calibration.of(net, [torch.randn(2, 3, 8, 8)]), ["a", "b"])


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: nn.ReLU()(net.a(x)),
        lambda net, x: nn.ReLU(inplace=True)(net.a(x)) + 1,
        lambda net, x: F.relu(net.a(x)),
        lambda net, x: net.a(x).relu(),
        lambda net, x: torch.relu_(net.a(x)) * 2,
        lambda net, x: net.norm(net.a(x)).relu(),
        lambda net, x: (lambda y: y.relu().view(y.shape[0], -1, y.size(2)))(net.a(x)),
        lambda net, x: net.a(x).relu() + net.a(x + 1).relu(),
        lambda net, x: net.a(x).relu() + net.b(x),
        lambda net, x: torch.cat([net.a(x).relu(), F.leaky_relu(net.b(x))]),
    ],
)
def test_a_relu_alone(body) -> None:
    assert set(found(body)) == {"a"}


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: net.a(x),
        lambda net, x: (lambda y: y + y.relu())(net.a(x)),
        lambda net, x: (lambda y: {"features": y, "last": [y.relu()]})(net.a(x)),
        lambda net, x: (net.a(x) + net.b(x)).relu(),
        lambda net, x: F.leaky_relu(net.a(x)),
        lambda net, x: net.a(x).relu() + net.a(x + 1),
        lambda net, x: net.norm(net.a(x)).relu() + net.a(x).relu(),
        lambda net, x: (lambda y: net.norm(y).relu() + y)(net.a(x)),
        lambda net, x: (lambda y: net.norm(y).relu() + y.relu())(net.a(x)),
        lambda net, x: (lambda y: y.relu() + net.norm(y))(net.a(x)),
        lambda net, x: net.norm.train()(net.a(x)).relu(),
        lambda net, x: torch.stack([net.a(x), net.b(x)]).relu(),
    ],
)
def test_other_readers(body) -> None:
    assert found(body) == {}


def test_a_batch_norm_in_between() -> None:
    net = Net(lambda net, x: net.norm(net.a(x)).relu()).eval()
    for tensor in (net.norm.running_mean, net.norm.weight.data, net.norm.bias.data):
        tensor.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    scale, shift = rectifiers.find(net, Calibration.of(net, [torch.randn(1, 3, 8, 8)]), ["a"])["a"]
    y = torch.randn(5, 4, 3, 3)
    torch.testing.assert_close(scale * y + shift, net.norm(y))


def test_no_hook_stays_behind() -> None:
    net = Net(lambda net, x: net.a(x).relu() @ x)
    with pytest.raises(RuntimeError):
        rectifiers.find(net, Calibration.of(net, [torch.randn(2, 3, 8, 8)]), ["a", "b"])
    assert not any(m._forward_hooks for m in net.modules())
    assert net.training


def test_wanted_is_the_nearest_of_all_that_the_relu_makes_equal() -> None:
    scale = torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0]).view(5, 1, 1)
    shift = torch.tensor([0.0, 1.0, -1.0, -1.0, 1.0]).view(5, 1, 1)
    y, now = (3 * torch.randn(7, 5, 4, 6) for _ in range(2))

    def behind(t: Tensor) -> Tensor:
        return (scale * t + shift).relu()

    wanted = Rectifier(scale, shift).wanted(y, now)
    torch.testing.assert_close(behind(wanted), behind(y))
    on = scale * y + shift > 0
    assert torch.equal(wanted[on], y[on])
    for z in torch.linspace(-9, 9, 91):
        equal = ((behind(z.expand_as(y)) == 0) & ~on) * 1.0
        assert (equal * ((wanted - now).abs() - (z - now).abs())).max() <= 1e-6
