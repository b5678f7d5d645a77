"""PackedPlan: what packing gives, what validation refuses, FLOPs against two independent counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors
from hscc_kernels.testing import CASES, make_inputs, plain

CASE = next(c for c in CASES if c.name == "clusters")
_, PLAN, _ = make_inputs(CASE, torch.float32)


def changed(name: str, index: tuple, value: int) -> PackedPlan:
    tensor = getattr(PLAN, name).clone()
    tensor[index] = value
    return PLAN._replace(**{name: tensor})


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (changed("positions", (0,), 49), "plan.positions: got other values, expected each of 0..48 once"),
        (changed("positions", (0,), -1), "plan.positions"),
        (changed("channels", (0, 0), 23), "plan.channels: got other values, expected each of 0..22 once"),
        (changed("rows", (3,), 99), r"plan.rows: got 0..99, expected 0..20"),
        (changed("work", (slice(None), 0), 1), "plan.work: .* expected every region once"),
        (changed("work", (0, 2), 5), "plan.work"),
        (changed("work", (0, 3), 40), "plan.work"),
        (changed("work", (1, 5), 9), "plan.work"),
        (changed("clusters", (0, 1), 3), "plan.clusters"),
        (changed("clusters", (2, 3), 999), "plan.clusters"),
        (changed("clusters", (1, 4), 10**6), "plan.clusters"),
        (changed("clusters", (1, 4), -1), "plan.clusters: got .* expected rank = channels in a dense cluster"),
        (PLAN._replace(rows=PLAN.rows.long()), "plan.rows: got torch.int64, expected torch.int32"),
        (PLAN._replace(u=PLAN.u.double()), "plan.u: got torch.float64"),
        (PLAN._replace(v=PLAN.v[:, 1:]), "plan.v"),
        (PLAN._replace(sizes=PLAN.sizes[1:]), "plan.sizes: got .*, expected ten ints"),
        (PLAN._replace(sizes=(*PLAN.sizes[1:], "7")), "plan.sizes: got .*, expected ten ints"),
        (PLAN._replace(sizes=(0, *PLAN.sizes[1:])), "plan.sizes: got .*, expected ten ints, at least"),
    ],
)
def test_validation(plan: PackedPlan, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        plan.validate()


def test_work_list_starts_with_the_dearest_region() -> None:
    macs = [item.macs for item in PLAN.work_items()]
    assert macs == sorted(macs, reverse=True)
    assert len(set(macs)) > 1


def test_flops_by_hand() -> None:
    """Two regions of a 2 x 3 map: 4 positions of rank 3 over 5 channels, 2 positions dense; D = 2."""
    factored = RegionFactors(torch.arange(3), (ClusterFactors(torch.arange(5), 0, torch.randn(5, 3)),))
    dense = RegionFactors(torch.arange(3, 8), (ClusterFactors(torch.arange(5), 0, None),))
    labels = torch.tensor([[0, 0, 1], [0, 0, 1]])
    plan = PackedPlan.pack(torch.randn(8, 2), [factored, dense], labels, Geometry((1, 1)))
    assert plan.flops() == 2 * (4 * (3 * 2 + 3 * 5) + 2 * (5 * 2))
    assert plan.parameters() == 8 * 2 + 3 * 5 + 2 * 5


@pytest.mark.parametrize("case", [c for c in CASES if c.shape[0]], ids=lambda case: case.name)
def test_flops_as_counted_by_torch(case) -> None:
    x, plan, bias = make_inputs(case, torch.float32)
    with FlopCounterMode(display=False) as counter:
        plain(x, plan, bias, case.activation)
    assert counter.get_total_flops() == case.shape[0] * plan.flops()


def test_fields_are_the_arguments_of_the_op() -> None:
    schema = torch.ops.hscc.lowrank_conv2d_cpu.default._schema
    assert [argument.name for argument in schema.arguments] == ["x", "bias", *PackedPlan._fields, "activation"]
    assert PLAN.geometry == CASE.geometry
    assert PLAN.out_size == PLAN.geometry.out_size(*CASE.shape[2:])


def test_mapped_moves_the_regions() -> None:
    labels = torch.zeros(4, 3, dtype=torch.int64)
    labels[1:, 1:] = 1
    plan = PLAN.mapped(labels).validate()
    assert plan.out_size == (4, 3)
    assert sorted(item.position_count for item in plan.work_items()) == [6, 6]
    with pytest.raises(ValueError, match=r"labels: got 0..2, expected 0..1"):
        PLAN.mapped(labels + labels)


def test_channels_ascend_in_a_cluster() -> None:
    """Whatever their order when packed; a dense cluster's rows are its channels, so it keeps theirs."""
    u, mixed = torch.randn(4, 2), torch.tensor([2, 0, 3, 1])
    parts = [(mixed, u[mixed]), (torch.arange(4), u), (mixed, None)]
    factors = [RegionFactors(torch.arange(4), (ClusterFactors(channels, 0, u),)) for channels, u in parts]
    plan = PackedPlan.pack(torch.randn(4, 3), factors, torch.tensor([[0, 1, 2]]), Geometry((1, 1)))
    assert plan.channels.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], mixed.tolist()]
    assert torch.equal(plan.u.view(2, 2, 4)[0], plan.u.view(2, 2, 4)[1])


def test_parts_that_do_not_fit() -> None:
    part = RegionFactors(torch.arange(2), (ClusterFactors(torch.arange(3), 0, torch.randn(4, 2)),))
    with pytest.raises(ValueError, match=r"U of a cluster: got \(4, 2\), expected \(3, rank\)"):
        PackedPlan.pack(torch.randn(2, 4), [part], torch.zeros(1, 1), Geometry((1, 1)))
