"""The specification itself, against ``F.conv2d``, a dense rebuild of each region, and numerical gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors, backward, reference
from hscc_kernels.backward import lowrank_conv2d_backward
from hscc_kernels.testing import CASES, make_inputs, plain

GEOMETRIES = [
    Geometry((1, 1)),
    Geometry((3, 3), (1, 1), (1, 1)),
    Geometry((3, 2), (2, 1), (0, 1)),
    Geometry((5, 3), (1, 2), (4, 0), (2, 3)),
    Geometry((11, 11), (4, 4), (2, 2)),
]
SMALL = [case for case in CASES if case.name not in ("wide", "first layer")]


def names(case) -> str:
    return case.name


def call(x, plan, bias, activation="none"):
    return reference.lowrank_conv2d(x, bias, *plan, activation)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("factored", [False, True])
def test_full_rank_is_the_convolution(geometry: Geometry, factored: bool) -> None:
    x = torch.randn(2, 5, 17, 16, dtype=torch.float64)
    weight = torch.randn(7, 5, *geometry.kernel, dtype=torch.float64)
    bias = torch.randn(7, dtype=torch.float64)
    expected = F.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation)
    rows = weight.permute(0, 2, 3, 1).flatten(1)
    u = None
    if factored:
        u, s, vt = torch.linalg.svd(rows, full_matrices=False)
        rows = s[:, None] * vt
    cluster = ClusterFactors(torch.arange(7), 0, u)
    labels = torch.zeros(expected.shape[2:], dtype=torch.int64)
    plan = PackedPlan.pack(rows, [RegionFactors(torch.arange(len(rows)), (cluster,))], labels, geometry)
    torch.testing.assert_close(call(x, plan, bias[None]), expected)


@pytest.mark.parametrize("case", SMALL, ids=names)
def test_each_region_is_its_own_dense_convolution(case) -> None:
    x, plan, bias = make_inputs(case, torch.float64)
    bias = torch.zeros(plan.regions, case.out_channels) if bias is None else bias.expand(plan.regions, -1)
    got = call(x, plan, bias.double())
    for item in plan.work_items():
        weight = torch.zeros(case.out_channels, plan.v.shape[1], dtype=torch.float64)
        rows = plan.v[plan.rows[item.row_start : item.row_start + item.row_count].long()]
        for c in plan.cluster_items(item):
            channels = plan.channels[item.region, c.channel_start : c.channel_start + c.channel_count].long()
            part = rows[c.row_start : c.row_start + c.rank]
            if c.u_start >= 0:
                part = plan.u[c.u_start :][: c.rank * c.channel_count].view(c.rank, c.channel_count).T @ part
            weight[channels] = part
        kernel = weight.view(case.out_channels, *case.geometry.kernel, case.shape[1]).permute(0, 3, 1, 2)
        g = case.geometry
        dense = F.conv2d(x, kernel, bias[item.region].double(), g.stride, g.padding, g.dilation)
        place = plan.positions[item.position_start : item.position_start + item.position_count].long()
        torch.testing.assert_close(got.flatten(2)[..., place], dense.flatten(2)[..., place])


@pytest.mark.parametrize("case", CASES, ids=names)
def test_backward_formula_is_the_derivative(case) -> None:
    x, plan, bias = make_inputs(case, torch.float64)
    bias = torch.zeros(plan.regions, case.out_channels).double() if bias is None else bias.expand(plan.regions, -1)
    leaves = [t.clone().requires_grad_() for t in (x, bias, plan.v, plan.u)]
    leafy = plan._replace(v=leaves[2], u=leaves[3])
    y = call(leaves[0], leafy, leaves[1], case.activation)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, leaves, grad, allow_unused=True)
    got = lowrank_conv2d_backward(grad, y.detach(), x, *plan, case.activation, [True] * 4)
    for mine, theirs, leaf in zip(got, expected, leaves, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(leaf) if theirs is None else theirs)


def test_backward_of_images_in_parts(monkeypatch) -> None:
    case = next(c for c in CASES if c.name == "clusters")._replace(shape=(5, 2, 9, 7))
    x, plan, _ = make_inputs(case, torch.float64)
    y = plain(x, plan, None, "relu")
    arguments = torch.randn_like(y), y, x, *plan, "relu", [True] * 4
    whole = lowrank_conv2d_backward(*arguments)
    patches = len(plan.positions) * plan.v.shape[1]
    for images in (0, 1, 2):
        monkeypatch.setattr(backward, "PATCH_NUMBERS", images * patches)
        torch.testing.assert_close(lowrank_conv2d_backward(*arguments), whole)


def test_backward_skips_what_is_not_needed() -> None:
    x, plan, bias = make_inputs(CASES[0], torch.float64)
    y = plain(x, plan, bias, "none")
    for index in range(4):
        needs = [i == index for i in range(4)]
        grads = lowrank_conv2d_backward(y, y, x, *plan, "none", needs)
        assert [g.numel() > 0 for g in grads] == needs


def test_gradcheck() -> None:
    case = next(c for c in CASES if c.name == "clusters")._replace(
        shape=(1, 2, 4, 4), out_channels=5, activation="none"
    )
    x, plan, bias = make_inputs(case, torch.float64)

    def function(x, v, u, bias):
        return call(x, plan._replace(v=v, u=u), bias)

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in (x, plan.v, plan.u, bias)])
