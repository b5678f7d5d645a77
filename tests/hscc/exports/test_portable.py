"""Portable forms compute what the specification does, and leave the model as it was."""

from __future__ import annotations

import pytest
import torch
from hscc import HSCConv2d, Projection, SqueezedConv2d
from hscc.exports.portable import as_portable, form, portable
from hscc.exports.regions import Gathered, Masked, gathered, masked
from torch import nn

from hscc_kernels import reference, testing
from tests.hscc.exports.layers import made

REGIONS = testing.CASES[1]


@pytest.mark.parametrize("case", testing.CASES, ids=lambda case: case.name)
def test_equals_the_reference(case: testing.Case) -> None:
    x, plan, bias = testing.make_inputs(case)
    layer = made(case)
    own, kinds = portable(layer), {"convolutions": nn.Conv2d, "masks": Masked, "gathers": Gathered}
    assert any(isinstance(module, kinds[form(layer)]) for module in own)
    torch.testing.assert_close(own(x), testing.exact(x, plan, bias, case.activation))
    if len(x):
        torch.testing.assert_close(own(x[0]), own(x)[0])


@pytest.mark.parametrize("case", [case for case in testing.CASES if len(case.ranks) > 1], ids=lambda case: case.name)
@pytest.mark.parametrize("make", [masked, gathered])
def test_both_forms_of_regions(case: testing.Case, make) -> None:
    """Whichever is cheaper."""
    x, plan, bias = testing.make_inputs(case)
    own = make(plan, made(case).bias.detach())
    torch.testing.assert_close(own(x), testing.exact(x, plan, bias, "none"))


@pytest.mark.parametrize(
    "case", [case for case in testing.CASES if case.name in ("stride", "clusters", "wide")], ids=str
)
def test_another_size(case: testing.Case) -> None:
    layer, size = made(case), (19, 16)
    x = torch.randn(2, case.shape[1], *size, dtype=torch.float64)
    plan = layer.plan.resized(layer.geometry.out_size(*size))
    torch.testing.assert_close(portable(layer, size)(x), reference.lowrank_conv2d(x, layer.bias, *plan, "relu"))


@pytest.mark.parametrize(("mode", "padding"), [("reflect", 1), ("circular", (2, 1)), ("zeros", "same")])
def test_padding_before_the_op(mode: str, padding) -> None:
    conv = nn.Conv2d(4, 6, (4, 3) if padding == "same" else 3, padding=padding, padding_mode=mode).double()
    x = torch.randn(2, 4, 9, 12, dtype=torch.float64)
    layer = HSCConv2d.dense(conv, tuple(conv(x).shape[2:]))
    own = portable(layer)
    assert sum(isinstance(module, nn.Conv2d) for module in own) == 1  # no U: one convolution
    torch.testing.assert_close(own(x), conv(x))


def test_the_model_is_as_it_was_and_of_plain_modules_inside() -> None:
    torch.manual_seed(3)
    squeezed = SqueezedConv2d.of(Projection(torch.randn(6, 16, dtype=torch.float64)), made(REGIONS))
    model = nn.ModuleDict({"a": squeezed, "b": squeezed.conv, "relu": nn.ReLU()})  # one layer under two names
    model.forward = lambda x: model["relu"](model["a"](x))
    x, before = torch.randn(2, 6, 10, 8, dtype=torch.float64), dict(model.named_modules())
    expected = model(x)
    with as_portable(model, x) as forms:
        assert forms == {"a.squeeze": "convolutions", "a.conv": "gathers"}
        assert not any(isinstance(module, (HSCConv2d, Projection)) for module in model.modules())
        assert model["a"].conv is model["b"]
        torch.testing.assert_close(model(x), expected)
    assert dict(model.named_modules()) == before


def test_a_layer_with_regions_has_one_size() -> None:
    layer = made(REGIONS)
    model = nn.Sequential(layer)
    model.forward = lambda x: layer(x).mean() + layer(x[..., ::2]).mean()
    refused = pytest.raises(ValueError, match="layer '0' with regions at sizes")
    with refused, as_portable(model, torch.randn(1, 16, 10, 8, dtype=torch.float64)):
        pass
