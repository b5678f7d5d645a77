"""What a model consists of, and the way back to the dense one."""

from __future__ import annotations

import copy

import hscc
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.hscc.users.networks import config, unchanged


def network() -> nn.Sequential:
    body = nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1)
    tail = nn.ReLU(), nn.ConvTranspose2d(64, 32, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)
    return nn.Sequential(*body, *tail).eval()


@pytest.fixture
def x() -> list[Tensor]:
    return [F.interpolate(torch.randn(16, 3, 8, 8), size=(22, 24)) for _ in range(4)]


def test_a_summary_says_what_the_report_said(x) -> None:
    for method in ("hscc", "svd", "tucker2"):
        model = network()
        report = hscc.compress_(model, x, config(3, method=method))
        mode = [module.training for module in model.modules()]
        found = hscc.summary(model, x[0])
        for row, told in zip(found.layers, report.layers, strict=True):
            assert (row.name, row.flops, row.parameters) == (told.name, told.flops, told.parameters)
            assert (row.dense_flops, row.dense_parameters) == (told.dense_flops, told.dense_parameters)
            if method != "tucker2":
                assert (row.squeeze, row.rows, sorted(row.region_sizes)) == (
                    *(told.squeeze, told.rows),
                    sorted(told.region_sizes),
                )
                assert sorted(row.ranks, key=str) == sorted(told.ranks, key=str)
        assert str(found).count("\n") >= len(found.layers)
        assert [module.training for module in model.modules()] == mode


def test_a_summary_of_a_dense_model_and_of_another_size(x) -> None:
    dense = network()
    found = hscc.summary(dense, x[0])
    assert [row.reason for row in found.layers] == ["dense"] * 3
    assert found.flops == found.dense_flops == 2 * (11 * 12 * 32 * 27 + 11 * 12 * 64 * 288 + 11 * 12 * 64 * 128)
    larger = hscc.summary(dense, torch.randn(2, 3, 44, 48))
    assert larger.flops == 4 * found.flops
    with pytest.raises(ValueError, match="got Sequential, in which no convolution runs"):
        hscc.summary(nn.Sequential(nn.Linear(3, 2)), torch.randn(2, 3))


@pytest.mark.parametrize("fused", [False, True])
def test_back_to_the_dense_model(x, fused: bool) -> None:
    dense, calls = network(), []
    model = copy.deepcopy(dense)
    hscc.compress_(model, x, config(3))
    model[3].register_forward_hook(lambda module, args, y: calls.append(type(module)))
    if fused:
        assert hscc.fuse_(model)
    back = hscc.restore_(model, dense)
    calls.clear()  # tracing calls hooks
    assert set(back) >= {"3", "5"}
    torch.testing.assert_close(model(x[0]), dense(x[0]))
    assert [type(module) for module in model] == [type(module) for module in dense]
    assert calls == [nn.Conv2d]  # hooks stay
    model[3].weight.data.zero_()
    assert dense[3].weight.any()  # nothing is shared
    assert hscc.restore_(model, dense) == ()
    torch.testing.assert_close(model(x[0]), dense(x[0]))


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (nn.Linear(3, 4), "dense: got a Linear, expected a Sequential"),
        (network()[:4], r"dense: got \['0', '1', '2', '3'\] in the model, expected \['0', '1', "),
        (nn.Sequential(*network()[:-1], nn.Linear(32, 5)), "another architecture .*'8.weight'"),
    ],
)
def test_another_architecture_is_refused(x, other: nn.Module, match: str) -> None:
    model = network()
    hscc.compress_(model, x, config(3))

    def call() -> None:
        with pytest.raises(ValueError, match=match):
            hscc.restore_(model, other)

    unchanged(model, call)
