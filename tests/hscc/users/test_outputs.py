"""Outputs of every kind: of one value a sample, nested, with a loss, without gradient."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import hscc
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.hscc.users.networks import Net, config, network


def trained(seed: int) -> tuple[nn.Module, list[Tensor], Tensor, Tensor]:
    """A network that tells two kinds of pictures apart by one logit, calibration, test images and their classes."""
    torch.manual_seed(seed)

    def pictures(count: int) -> tuple[Tensor, Tensor]:
        kinds = torch.randint(2, (count,))
        coarse = F.interpolate(torch.randn(count, 3, 4, 4), size=16)
        fine = torch.randn(count, 3, 16, 16)
        return torch.where(kinds[:, None, None, None] == 1, coarse + 0.5 * fine, 0.75 * coarse + fine), kinds

    model, (images, kinds) = network(1).train(), pictures(512)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        for part, wanted in zip(images.split(64), kinds.split(64), strict=True):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(model(part)[:, 0], wanted.float()).backward()
            optimizer.step()
    return model.eval(), list(pictures(128)[0].split(32)), *pictures(1000)


class Twin(nn.Module):
    """The same function as two logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return torch.cat([-z / 2, z / 2], 1)


class Flat(Twin):
    """The same function with outputs (N,)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, 0]


def test_one_logit_is_as_good_as_two() -> None:
    errors = {Twin: [], Flat: [], nn.Sequential: []}
    for seed in (0, 1):
        dense, data, test, kinds = trained(seed)
        with torch.no_grad():
            z = dense(test)[:, 0]
        assert ((z > 0) == kinds).float().mean() > 0.9
        for kind, found in errors.items():
            model = copy.deepcopy(dense)
            hscc.compress_(kind(model), data, hscc.Config(hscc.flops(6), seed=seed))
            with torch.no_grad():
                found.append(((model(test)[:, 0] - z).square().mean() / z.var()).item())
    mean = {kind: sum(found) / len(found) for kind, found in errors.items()}
    assert mean[nn.Sequential] < 1.2 * mean[Twin]
    assert mean[Flat] == pytest.approx(mean[nn.Sequential], rel=1e-3)


@dataclass
class Answer:
    logits: Tensor
    aside: list


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: Answer(y, []),
        lambda y: {"out": [y, (y * 2, None)]},
        lambda y: [y.sum(), (y, "text")],
        lambda y: torch.complex(y, y),
    ],
    ids=["dataclass", "nested", "with a loss", "complex"],
)
def test_outputs_of_every_kind_count(x, wrap) -> None:
    plain, wrapped = Net(), Net(lambda net, x: wrap(Net.forward(plain, x)))
    wrapped.load_state_dict(plain.state_dict())
    wrapped.body = [lambda net, x: wrap(net.head(net.b(net.a(x).relu()).relu().mean((2, 3))))]
    report = hscc.compress_(wrapped, x, config())
    assert report.warnings == ()
    assert isinstance(wrapped.b, (hscc.HSCConv2d, hscc.SqueezedConv2d))


def test_outputs_without_gradient_are_told_and_errors_count_the_same(x) -> None:
    model = Net(lambda net, x: net.head(net.b(net.a(x).relu()).relu().mean((2, 3))).argmax(1))
    report = hscc.compress_(model, x, config())
    assert "sensitivity: got outputs without gradient (tensor (16,)), so that all errors count the same" in str(report)
