"""One layer fitted behind a disturbed prefix: on patches or outputs, in parts, and through its ReLU."""

from __future__ import annotations

import copy
from dataclasses import replace

import hscc
import pytest
import torch
from hscc.fit import reconstruct
from hscc.fit.reconstruct import Values
from hscc.maths.factors import Metric
from hscc.nn.conv2d import patches, weight_rows
from hscc.nn.surgery import Student
from hscc.observe.data import Calibration
from hscc.observe.pairs import Pairs
from hscc.search.plan import LayerPlan
from hscc.search.ranks import DENSE
from torch import nn


@pytest.fixture(scope="module")
def case():
    """(model, student with another first layer, data, plan)."""
    torch.manual_seed(0)
    images = nn.functional.interpolate(torch.randn(64, 3, 8, 8), size=(20, 20), mode="bilinear")
    model = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU())
    model += nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 3))
    data = list(images.split(16))
    plan = hscc.plan(model.eval(), data, hscc.Config(hscc.flops(6), regions=4, reconstruction="independent"))
    student = copy.deepcopy(model)
    student[0].weight.data += 0.02 * torch.randn_like(student[0].weight)
    return model, student, data, plan


def structured(plan, **options):
    """The second layer behind a squeeze to half its channels, in its richest structure, every cluster of rank 5."""
    from hscc.search import squeeze, structure

    stats = plan.layers["2"].stats
    several = structure.structures(stats, hscc.Config(hscc.flops(6), regions=4, **options), [4], True)
    own = squeeze.candidates(stats.conv, stats.inputs, stats.gram)[-1]
    found = replace(several[-1], squeeze=own)
    count = sum(map(len, found.clusters))
    choice = plan.layers["2"].choice._replace(ranks=(5,) * count, pool=8 if found.shared else None)
    return LayerPlan(stats, found, choice)


def fit(case, layer, through=False):
    model, other, data, plan = case
    student = Student(model, {"0": ("0",)})
    student.replace("0", other[0])
    if not through:
        layer = replace(layer, stats=replace(layer.stats, reader=None))
    with Pairs(student, Calibration.of(model, data), {"2": model[2]}, 0) as pairs:
        return reconstruct.fit(pairs, layer, plan.config)


@torch.no_grad()
def missed(case, module: nn.Module, relu: bool) -> float:
    """Squared error of the second layer in its metric."""
    model, student, data, plan = case
    root = Metric.of(plan.layers["2"].stats.gram).root.float()
    total = 0.0
    for x in data:
        got, wanted = module(student[:2](x)), model[:3](x)
        if relu:
            got, wanted = got.relu(), wanted.relu()
        total += torch.einsum("oc,nchw->nohw", root, got - wanted).square().mean().item()
    return total


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "stride": 2},
        {"dilation": 2},
        {"padding": "same"},
        {"padding": (2, 1), "padding_mode": "reflect"},
    ],
)
def test_patches_are_what_the_convolution_reads(options: dict) -> None:
    conv, x = nn.Conv2d(4, 6, (3, 2), **options).double(), torch.randn(3, 4, 9, 8, dtype=torch.float64)
    seen = torch.einsum("od,ndhw->nohw", weight_rows(conv), patches(conv, x)) + conv.bias[:, None, None]
    torch.testing.assert_close(seen, conv(x))


@pytest.mark.parametrize("patched", [True, False])
def test_dense_outputs_from_the_values(case, monkeypatch, patched: bool) -> None:
    monkeypatch.setattr(reconstruct, "PATCH_PRODUCTS", 9 if patched else 0)
    monkeypatch.setattr(reconstruct, "AT_A_TIME", 3 * 144 * 100)  # three images of patches
    model, _, data, plan = case
    layer = replace(plan.layers["2"], structure=replace(plan.layers["2"].structure, squeeze=None))
    values = Values.of(layer)
    assert values.patched == patched
    x = model[:2](data[0])
    parts = list(values.parts(x, model[2](x)))
    assert len(parts) == (6 if patched else 1)
    for seen, wanted in parts:
        got = torch.einsum("ox,nxhw->nohw", values.basis.dense.float(), seen)
        left = (wanted - got).flatten(2).permute(1, 0, 2).flatten(1)
        torch.testing.assert_close(left, left[:, :1].expand_as(left), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"sharing": False, "clusters": 2}], ids=["shared rows", "two clusters"])
def test_patches_lose_no_more_than_outputs(case, monkeypatch, options: dict) -> None:
    """Their rows may be any, those on outputs are combinations of the dense layer's."""
    layer = structured(case[-1], **options)
    assert layer.structure.shared == (not options)
    on_patches = missed(case, fit(case, layer), relu=False)
    monkeypatch.setattr(Values, "of", classmethod(lambda cls, layer: on_outputs(layer)))
    assert on_patches < missed(case, fit(case, layer), relu=False)


def on_outputs(layer) -> Values:
    from hscc.maths.factors import Basis
    from hscc.nn.conv2d import dense_bias

    squeeze = layer.structure.squeeze
    conv = squeeze.conv
    basis = Basis.outputs(weight_rows(conv).double(), dense_bias(conv).double())
    return Values(conv, squeeze.layer(), basis, False)


def test_a_dense_cluster_is_fitted_to_its_inputs(case) -> None:
    layer = structured(case[-1], sharing=False)
    dense = replace(layer, structure=replace(layer.structure, squeeze=None))
    whole = (DENSE,) * sum(map(len, dense.structure.clusters))
    fitted = fit(case, replace(dense, choice=layer.choice._replace(ranks=whole)))
    assert missed(case, fitted, relu=False) < missed(case, case[0][2], relu=False)


def test_errors_that_the_relu_hides_do_not_count(case, monkeypatch) -> None:
    layer = structured(case[-1], sharing=False)
    plain, through = fit(case, layer), fit(case, layer, through=True)
    assert missed(case, through, relu=True) < 0.95 * missed(case, plain, relu=True)
    assert missed(case, through, relu=False) > missed(case, plain, relu=False)
    monkeypatch.setattr(reconstruct, "KEPT", 0)
    for key, value in fit(case, layer, through=True).state_dict().items():
        assert torch.equal(value, plain.state_dict()[key])


def test_no_sample_is_kept_beyond_the_limit(monkeypatch) -> None:
    x, y = torch.zeros(2, 3), torch.zeros(2, 1)
    monkeypatch.setattr(reconstruct, "KEPT", 2 * (x.nbytes + y.nbytes))
    samples = reconstruct.Samples()
    for _ in range(3):
        samples.add(reconstruct.Sample(x, y, None, (torch.zeros(6),)))
    assert [one.values is None for one in samples.kept] == [False, True]


class Block(nn.Module):
    """A residual block with batch norms that are not trivial."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.first, self.second, self.relu = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels), nn.ReLU()
        for norm in (self.first, self.second):
            norm.weight.data.uniform_(0.5, 2)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.relu(self.second(self.b(self.relu(self.first(self.a(x))))) + x)


@torch.no_grad()
def test_a_residual_branch_makes_up_for_its_shortcut(monkeypatch) -> None:
    torch.manual_seed(0)
    images = nn.functional.interpolate(torch.randn(192, 3, 8, 8), size=(20, 20), mode="bilinear")
    model = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), Block(16), Block(16)).eval()
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5))
    model, data, test = model + tail, list(images[:128].split(16)), images[128:]

    def error() -> float:
        student = copy.deepcopy(model)
        hscc.compress_(student, data, hscc.Config(hscc.flops(5), regions=4))
        return (student(test) - model(test)).square().mean().item()

    through = error()
    monkeypatch.setattr(Pairs, "_sums", lambda *args: None)
    assert through < 0.9 * error()


class Twice(nn.Module):
    """Two branches that add the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU()
        self.a, self.b = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))

    def forward(self, x):
        x = self.relu(self.first(x))
        return torch.cat([self.a(x) + x, self.b(x) + x], 1)


@torch.no_grad()
def test_two_branches_that_add_the_same_both_know_it(monkeypatch) -> None:
    torch.manual_seed(0)
    model, known, sums = nn.Sequential(Twice(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), {}, Pairs._sums

    def noted(pairs, one, name):
        found = sums(pairs, one, name)
        known.setdefault(name, []).append(found is not None)
        return found

    monkeypatch.setattr(Pairs, "_sums", noted)
    hscc.compress_(model, list(torch.randn(64, 3, 20, 20).split(16)), hscc.Config(hscc.flops(3), regions=1))
    assert known == {"0.first": [False] * 4, "0.a": [True] * 4, "0.b": [True] * 4}
