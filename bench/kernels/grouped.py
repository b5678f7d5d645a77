"""Grouped convolutions with factors against PyTorch's: ``python -m bench.kernels.grouped --json out.json``.

Layers of ResNeXt-50 and of RegNets; at so many times fewer FLOPs the one op of all groups, a call of ours for each
group, the same factors as two grouped convolutions of PyTorch's, and the dense layer, channels last and not.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from hscc import HSCConv2d
from hscc.exports.portable import portable
from hscc.nn import forms
from torch import Tensor, nn

from hscc_kernels import ClusterFactors, RegionFactors

from .. import timing


class Layer(NamedTuple):
    """A 3 x 3 convolution: channels in and out, groups, outputs in a row, stride."""

    channels: int
    groups: int
    size: int
    stride: int


LAYERS = {
    "resnext50 2": Layer(128, 32, 56, 1),
    "resnext50 3": Layer(256, 32, 28, 1),
    "resnext50 4, stride": Layer(512, 32, 14, 2),
    "resnext50 4": Layer(512, 32, 14, 1),
    "resnext50 5, stride": Layer(1024, 32, 7, 2),
    "resnext50 5": Layer(1024, 32, 7, 1),
    "regnet_x_800mf 3": Layer(288, 18, 14, 1),
    "regnet_y_1_6gf 3": Layer(336, 14, 14, 1),
    "regnet_x_3_2gf 3": Layer(432, 9, 14, 1),
}


def factored(layer: Layer, rank: int) -> tuple[nn.Conv2d, HSCConv2d, forms.Grouped]:
    """The dense convolution, and factors of that rank: in one op, and in one a group."""
    dense = nn.Conv2d(layer.channels, layer.channels, 3, layer.stride, 1, groups=layer.groups, bias=False).eval()
    form, parts, size = forms.form_of(dense), [], (layer.size, layer.size)
    for part in form.parts:
        u, s, v = torch.linalg.svd(part.weight.detach().permute(0, 2, 3, 1).flatten(1), full_matrices=False)
        outputs = torch.arange(part.out_channels)
        cluster = ClusterFactors(outputs, 0, u[:, :rank] * s[:rank])
        regions, labels = [RegionFactors(torch.arange(rank), (cluster,))], torch.zeros(size, dtype=torch.int64)
        parts.append(HSCConv2d.from_conv(part, regions, v[:rank], torch.zeros(1, len(outputs)), labels))
    form.columns = layer.size * layer.stride
    one = form.united(parts)
    form.parts = nn.ModuleList(parts)
    return dense, one, form


def calls(layer: Layer, rank: int, batch: int) -> dict[str, Callable[[], Tensor]]:
    dense, one, form = factored(layer, rank)
    planes = torch.randn(batch, layer.channels, *[layer.size * layer.stride] * 2)
    x = planes.contiguous(memory_format=torch.channels_last)
    chain = portable(one).to(memory_format=torch.channels_last)
    last = nn.Conv2d(**{name: getattr(dense, name) for name in ("in_channels", "out_channels", "kernel_size")},
                     stride=dense.stride, padding=1, groups=dense.groups, bias=False).eval()  # fmt: skip
    last.load_state_dict(dense.state_dict())
    last.to(memory_format=torch.channels_last)
    torch.testing.assert_close(one(x), form(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one(x), chain(x), rtol=1e-4, atol=1e-5)
    return {
        "dense": lambda: last(x),
        "dense, planes": lambda: dense(planes),
        "ours": lambda: one(x),
        "a call a group": lambda: form(x),
        "two grouped": lambda: chain(x),
    }


def measure(layer: Layer, share: float, args: argparse.Namespace) -> dict:
    width = layer.channels // layer.groups
    patch = 9 * width
    rank = max(round(patch * width / share / (patch + width)), 1)
    times = timing.interleaved(calls(layer, rank, args.batch), args.rounds)
    speedup = timing.ratio(times, ["dense", "dense, planes"], "ours")
    reduction = patch * width / (rank * (patch + width))
    return {
        "width": width,
        "rank": rank,
        "reduction": reduction,
        "ms": {name: statistics.median(own) for name, own in times.items()},
        "speedup": speedup,
        "eta": speedup / reduction,
    }


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels.grouped", description=__doc__)
    parser.add_argument("--reduction", type=float, nargs="+", default=[2.0, 3.0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    forms.LEAST_CHANNELS = 1  # that of the library is what this bench says of narrow groups
    head, rows = timing.header(args.threads, args.batch), []
    print("layer, channels of a group, rank, fewer FLOPs: faster than PyTorch's best dense (eta); ms of each")
    for name, layer in LAYERS.items():
        for share in args.reduction:
            rows.append({"layer": name, **measure(layer, share, args)})
            row = rows[-1]
            told = ", ".join(f"{way} {ms:.3f}" for way, ms in row["ms"].items())
            print(f"{name:20s} {row['width']:3d} {row['rank']:3d} {row['reduction']:5.2f}x: {row['speedup']:.2f}x "
                  f"({row['eta']:.2f}); {told}", flush=True)  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({**head, "cases": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
