"""What reads convolutions: what may change behind a ReLU unseen, and what a sum adds."""

from __future__ import annotations

import gc
import math

import pytest
import torch
import torch.nn.functional as F
from hscc.observe import readers
from hscc.observe.data import Calibration
from hscc.observe.readers import Beside, Reader
from torch import Tensor, nn


class Widen(nn.Module):
    """(N, C, 8, 8) -> (N, 4, 6, 6) without a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1, :6, :6].repeat(1, 4, 1, 1) if x.shape[-1] == 8 else x + 1


class Net(nn.Module):
    """Convolution ``a`` or ``b``, then whatever ``body`` does."""

    def __init__(self, body) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.body = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), body
        self.mark = Widen()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def found(body) -> dict[str, Reader]:
    net = Net(body).eval()
    every = readers.find(net, Calibration.of(net, [torch.randn(2, 3, 8, 8)]), ["a", "b"])
    return {name: reader for name, reader in every.items() if reader.lenient}


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
    scale, shift, *_ = readers.find(net, Calibration.of(net, [torch.randn(1, 3, 8, 8)]), ["a"])["a"]
    y = torch.randn(5, 4, 3, 3)
    torch.testing.assert_close(scale * y + shift, net.norm(y))


def test_no_hook_stays_behind() -> None:
    net = Net(lambda net, x: net.a(x).relu() @ x)
    with pytest.raises(RuntimeError):
        readers.find(net, Calibration.of(net, [torch.randn(2, 3, 8, 8)]), ["a", "b"])
    assert not any(m._forward_hooks for m in net.modules())
    assert net.training


@pytest.mark.parametrize("top", [math.inf, 1.5])
@pytest.mark.parametrize("summed", [False, True])
def test_a_change_is_to_the_nearest_of_all_that_the_relu_makes_equal(top: float, summed: bool) -> None:
    scale = torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0]).view(5, 1, 1)
    shift = torch.tensor([0.0, 1.0, -1.0, -1.0, 1.0]).view(5, 1, 1)
    y, now, theirs, ours = (3 * torch.randn(7, 5, 4, 6) for _ in range(4))
    if not summed:
        theirs = ours = torch.zeros(())

    def behind(t: Tensor, beside: Tensor) -> Tensor:
        return (scale * t + shift + beside).clamp(0, top)

    change = Reader(scale, shift, top).change(y, now, (theirs, ours) if summed else None)
    aim, seen = behind(y, theirs), (scale != 0).expand_as(y)
    torch.testing.assert_close(behind(y + change, ours)[seen], aim[seen], rtol=0, atol=1e-5)
    assert not change[~seen].any()
    if not summed:
        assert not change[(aim > 0) & (aim < top)].any()
    for z in torch.linspace(-9, 9, 91):
        equal = (behind(z.expand_as(y), ours) == aim) & seen & ((aim == 0) | (aim == top))
        assert ((y + change - now).abs() - (z - now).abs())[equal].clamp_min(0).sum() <= 1e-3


def test_a_sum_without_relu_is_made_up_for_whole() -> None:
    scale, shift = torch.tensor([2.0, -0.5]).view(2, 1, 1), torch.zeros(2, 1, 1)
    y, now, theirs, ours = (torch.randn(3, 2, 4, 4) for _ in range(4))
    change = Reader(scale, shift).change(y, now, (theirs, ours))
    torch.testing.assert_close(scale * (y + change) + ours, scale * y + theirs)


@pytest.mark.parametrize(
    ("body", "top", "beside"),
    [
        (lambda net, x: (net.a(x) + net.b(x)).relu(), math.inf, Beside("a", True)),
        (lambda net, x: (net.norm(net.b(x)) + net.a(x)).relu(), None, None),  # the other comes later
        (lambda net, x: F.hardtanh(net.mark(x[:, :1]) + net.norm(net.b(x)), 0, 6), 6.0, Beside("mark", True)),
        (lambda net, x: net.mark(x[:, :1]) + net.norm(net.b(x)), None, Beside("mark", True)),
        (lambda net, x: net.mark(x[:, :1]).add_(net.b(x)).relu_(), math.inf, Beside("mark", True)),
        (lambda net, x: (lambda s: s.relu() * s)(net.mark(x[:, :1]) + net.b(x)), None, Beside("mark", True)),
        (lambda net, x: (lambda m: (net.b(x) + m.mul_(2)).relu())(net.mark(x[:, :1])), None, None),  # changed since
        (lambda net, x: (lambda m, y: (y + m) * y)(net.mark(x[:, :1]), net.b(x)), None, None),
        (lambda net, x: (net.mark(net.mark(x[:, :1])) + net.b(x)).relu(), None, None),  # called twice
        (lambda net, x: torch.add(net.mark(x[:, :1]), net.b(x), alpha=2).relu(), None, None),
        (lambda net, x: (net.b(x) + x[:, :1, :1, :1]).relu(), None, None),
        (lambda net, x: (lambda y: (y, net.norm(y).relu()))(net.b(x)), None, None),
        (lambda net, x: (lambda m: m + net.b(x) + net.b(m[:, :3]).mean())(net.mark(x[:, :1])), None, None),
        (lambda net, x: F.relu6(net.b(x)), 6.0, None),
        (lambda net, x: nn.ReLU6()(net.norm(net.b(x))), 6.0, None),
        (lambda net, x: F.hardtanh(net.b(x)), None, None),
    ],
)
def test_sums_and_clips(body, top: float | None, beside: Beside | None) -> None:
    reader = found(body).get("b")
    assert (reader and (reader.top, reader.beside)) == ((top, beside) if top or beside else None)


def test_watching_keeps_no_tensor_alive() -> None:
    held = []

    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            held.append(sum(t.numel() for t in gc.get_objects() if type(t) is Tensor and t.shape == (2, 4, 60, 60)))
            return x

    net = nn.Sequential(nn.Conv2d(3, 4, 5), *(nn.Conv2d(4, 4, 1) for _ in range(6)), Last()).eval()
    readers.find(net, Calibration.of(net, [torch.randn(2, 3, 64, 64)]), [str(i) for i in range(7)])
    assert held[0] <= 2 * 2 * 4 * 60 * 60
