"""The last linear layer mends what compressed convolutions lose, and stays where it should."""

from __future__ import annotations

import copy

import hscc
import pytest
import torch
from hscc.fit import heads
from hscc.nn.surgery import Student
from hscc.observe.data import Calibration
from torch import Tensor, nn


def student_of(net: nn.Sequential) -> nn.Sequential:
    """The network with a first layer that loses a third of its channels."""
    student = copy.deepcopy(net)
    with torch.no_grad():
        student[0].weight[::3] = 0
    return student


def refit(net: nn.Module, student: nn.Module, data: list[Tensor]) -> dict[str, Tensor]:
    """New values of the last layer of ``net`` behind the first layer of the student."""
    name = next(iter(dict(net.named_children())))
    pair = Student(net, {name: (name,)})
    pair.replace(name, student.get_submodule(name))
    return heads.refit(pair, Calibration.of(net, data), ()).values


def error(model: nn.Module, dense: nn.Module, data: list[Tensor]) -> float:
    x = torch.cat(data)
    with torch.no_grad():
        return (model(x) - dense(x)).square().mean().item()


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_come_nearer(net, data, bias: bool) -> None:
    if not bias:
        net[9].bias = None
    student = student_of(net)
    found = refit(net, student, data)
    assert set(found) == ({"9.weight", "9.bias"} if bias else {"9.weight"})
    before = error(student, net, data)
    student.load_state_dict(found, strict=False)
    assert error(student, net, data) < 0.8 * before


def test_it_is_the_ridge_regression_of_the_formula(net, data, monkeypatch) -> None:
    monkeypatch.setattr(heads, "PRIOR", 1e-9)
    student = student_of(net)
    student.load_state_dict(refit(net, student, data), strict=False)
    x = torch.cat(data)
    with torch.no_grad():
        rows = torch.cat([student[:9](x), torch.ones(len(x), 1)], 1).double()
        wanted = net(x).double()
        best = rows @ torch.linalg.lstsq(rows, wanted, driver="gelsd").solution
        torch.testing.assert_close(student(x).double(), best, atol=1e-4, rtol=1e-3)


def test_many_readings_of_the_same_model_change_nothing(net, data) -> None:
    for name, value in refit(net, copy.deepcopy(net), data).items():
        torch.testing.assert_close(value, net.state_dict()[name])


def test_compression_refits_it_unless_told_otherwise(net, data) -> None:
    for options, refitted in (({}, True), ({"skip": ["9"]}, False), ({"reconstruction": "independent"}, False)):
        model = copy.deepcopy(net)
        report = hscc.compress_(model, data, hscc.Config(hscc.flops(6), **options))
        assert report.refitted == (("9.weight", "9.bias") if refitted else ())
        assert hscc.Report.from_dict(report.to_dict()) == report
        assert torch.equal(model[9].weight, net[9].weight) != refitted


def test_weights_that_another_module_has_stay(net, data) -> None:
    net.other = nn.Linear(net[9].in_features, net[9].out_features)
    net.other.weight = net[9].weight
    net.other.forward = lambda x: x
    assert refit(net, copy.deepcopy(net), data) == {}


def test_inputs_by_keyword_are_seen(data) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Identity(), nn.Linear(data[0][0].numel(), 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(input=x.flatten(1))

    model = Net()
    assert set(refit(model, copy.deepcopy(model), data)) == {"last.weight", "last.bias"}


def test_without_such_a_layer_nothing_is_found(net, data, monkeypatch) -> None:
    assert refit(net[:6], net[:6], data) == {}
    monkeypatch.setattr(heads, "MOST_INPUTS", 10)
    assert refit(net, net, data) == {}
