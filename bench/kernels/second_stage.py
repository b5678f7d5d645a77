"""What a second stage in int8 would cost in exactness: ``python -m bench.kernels.second_stage``.

The error of the outputs of a layer against the float layer, as a share of their root mean square: with the second stage
in float32, as ``hscc_kernels/reference_int8.py`` has it, and with Z rounded to 8 bits by the largest |z| of each row on
the same inputs (no calibration could know better ones without cutting off some) and U by the largest of each channel.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from hscc_kernels import Int8Plan, PackedPlan, quantise_rows, testing
from hscc_kernels.reference import clusters_of, im2col, regions_of
from hscc_kernels.reference_int8 import quantise

from .cases import make_input, make_plan, select


def rounded(values: Tensor) -> Tensor:
    """(n, m) to 8 bits, symmetric, a scale for each of m columns; float64."""
    q, scale = quantise_rows(values.T)
    return (q * scale.double()[:, None]).T


def in_int8(x: Tensor, plan: Int8Plan) -> Tensor:
    """Outputs of one image with Z and U in 8 bits, without bias and activation."""
    whole = (quantise(x, plan.scale, plan.zero_point).double() - plan.zero_point) * plan.scale
    patches, float_plan = im2col(whole, plan.dequantised().geometry), plan.dequantised()
    out = x.new_zeros(1, patches.shape[1], plan.channels.shape[1], dtype=torch.float64)
    for item, place, rows in regions_of(plan.positions, plan.rows, plan.work):
        z = rounded(patches[0, place] @ float_plan.v[rows].double().T)
        order = plan.channels[item.region].long()
        for c in clusters_of(plan.clusters, item):
            u = plan.u[c.u_start : c.u_start + c.rank * c.channel_count].view(c.rank, c.channel_count)
            y = z[:, c.row_start : c.row_start + c.rank] @ rounded(u)
            out[0, place[:, None], order[c.channel_start : c.channel_start + c.channel_count]] = y
    return out.view(1, *float_plan.out_size, -1).permute(0, 3, 1, 2)


def errors(plan: PackedPlan, x: Tensor) -> tuple[float, float]:
    exact = testing.exact(x, plan, None, "none")
    int8 = Int8Plan.quantised(plan, x.max().item() / 255, 0)
    ways = testing.plain_int8(x, int8, None, "none"), in_int8(x, int8)
    return tuple(((way - exact).square().mean() / exact.square().mean()).sqrt().item() for way in ways)


def main() -> None:
    found = []
    for case in select(reductions=(5.3,)):
        if case.layer.kernel > 1 and case.regions == "4" and case.layer.size < 100:
            found.append(errors(make_plan(case), make_input(case.layer, 1)))
            print(f"{case.name:30s} float32 {100 * found[-1][0]:.2f} %  int8 {100 * found[-1][1]:.2f} %", flush=True)
    a, b = (100 * statistics.geometric_mean(way) for way in zip(*found, strict=True))
    print(f"geometric means: second stage in float32 {a:.2f} %, in int8 {b:.2f} %")


if __name__ == "__main__":
    main()
