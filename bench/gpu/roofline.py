"""Floors on paper: bytes, FLOPs and least time, dense and fused low-rank. ``python -m bench.gpu.roofline``."""

from __future__ import annotations

import argparse
from typing import NamedTuple


class Machine(NamedTuple):
    """Rates that a floor is made of; the defaults of the command line were measured on one H200."""

    bytes_per_s: float
    flops_per_s: float


H200 = Machine(4.3e12, 790e12)


class Conv(NamedTuple):
    """A convolution as often as a network has it."""

    name: str
    count: int
    in_channels: int
    out_channels: int
    kernel: int
    in_side: int
    out_side: int

    @property
    def patch(self) -> int:
        return self.in_channels * self.kernel**2


class Work(NamedTuple):
    """What one call must move and compute at least."""

    bytes: int
    flops: int

    def floor(self, machine: Machine) -> float:
        """Seconds: the slower of memory and arithmetic."""
        return max(self.bytes / machine.bytes_per_s, self.flops / machine.flops_per_s)


def dense_work(conv: Conv, batch: int, item: int = 2) -> Work:
    weights = conv.patch * conv.out_channels + conv.out_channels
    return Work(
        item * (_activations(conv, batch) + weights),
        2 * batch * conv.out_side**2 * conv.patch * conv.out_channels,
    )


def fused_work(conv: Conv, batch: int, rank: float, regions: int = 1, item: int = 2) -> Work:
    """x and y once, factors of every region once, the index map once; Z never leaves the chip."""
    factors = regions * (rank * (conv.patch + conv.out_channels) + conv.out_channels)
    flops = 2 * batch * conv.out_side**2 * rank * (conv.patch + conv.out_channels)
    return Work(round(item * (_activations(conv, batch) + factors) + 4 * conv.out_side**2), round(flops))


def rank_at(conv: Conv, reduction: float) -> int:
    """The rank at which both stages together take 1 / reduction of the dense FLOPs."""
    return max(1, round(conv.patch * conv.out_channels / reduction / (conv.patch + conv.out_channels)))


def _activations(conv: Conv, batch: int) -> int:
    return batch * (conv.in_channels * conv.in_side**2 + conv.out_channels * conv.out_side**2)


ALEXNET = (
    Conv("conv1", 1, 3, 64, 11, 224, 55),
    Conv("conv2", 1, 64, 192, 5, 27, 27),
    Conv("conv3", 1, 192, 384, 3, 13, 13),
    Conv("conv4", 1, 384, 256, 3, 13, 13),
    Conv("conv5", 1, 256, 256, 3, 13, 13),
)
VGG16 = (
    Conv("conv1_1", 1, 3, 64, 3, 224, 224),
    Conv("conv1_2", 1, 64, 64, 3, 224, 224),
    Conv("conv2_1", 1, 64, 128, 3, 112, 112),
    Conv("conv2_2", 1, 128, 128, 3, 112, 112),
    Conv("conv3_1", 1, 128, 256, 3, 56, 56),
    Conv("conv3_2", 2, 256, 256, 3, 56, 56),
    Conv("conv4_1", 1, 256, 512, 3, 28, 28),
    Conv("conv4_2", 2, 512, 512, 3, 28, 28),
    Conv("conv5", 3, 512, 512, 3, 14, 14),
)


def resnet50() -> tuple[Conv, ...]:
    """The stem and four stages of bottlenecks; the first of a stage halves the map (but in stage 1) and has a skip."""
    convs = [Conv("stem", 1, 3, 64, 7, 224, 112)]
    entering, before = 64, 56
    for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), 1):
        side = 56 >> (stage - 1)
        convs += [
            Conv(f"{stage}.0 reduce", 1, entering, width, 1, before, before),
            Conv(f"{stage}.0 middle", 1, width, width, 3, before, side),
            Conv(f"{stage}.0 skip", 1, entering, 4 * width, 1, before, side),
            Conv(f"{stage}.n reduce", blocks - 1, 4 * width, width, 1, side, side),
            Conv(f"{stage}.n middle", blocks - 1, width, width, 3, side, side),
            Conv(f"{stage}.n expand", blocks, width, 4 * width, 1, side, side),
        ]
        entering, before = 4 * width, side
    return tuple(convs)


NETWORKS = {"AlexNet": ALEXNET, "VGG-16": VGG16, "ResNet-50": resnet50()}


def table(convs: tuple[Conv, ...], batch: int, reduction: float, machine: Machine) -> list[str]:
    """Markdown lines: a row a layer, and the sum over the network."""
    lines = [
        "| layer | times | rank | dense GFLOP | dense MB | dense floor µs | fused GFLOP | fused MB | fused floor µs "
        "| floor ratio | gathered MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    totals = [0.0] * 7
    for conv in convs:
        rank = rank_at(conv, reduction)
        dense, fused = dense_work(conv, batch), fused_work(conv, batch, rank)
        numbers = [
            *(dense.flops / 1e9, dense.bytes / 1e6, dense.floor(machine) * 1e6),
            *(fused.flops / 1e9, fused.bytes / 1e6, fused.floor(machine) * 1e6),
            2 * batch * conv.out_side**2 * conv.patch / 1e6,
        ]
        totals = [total + conv.count * number for total, number in zip(totals, numbers, strict=True)]
        lines.append(_row(conv.name, str(conv.count), str(rank), numbers))
    return [*lines, _row("all", str(sum(c.count for c in convs)), "", totals)]


def _row(name: str, count: str, rank: str, numbers: list[float]) -> str:
    *parts, gathered = numbers
    cells = [f"{number:.1f}" for number in parts]
    return f"| {name} | {count} | {rank} | {' | '.join(cells)} | {parts[2] / parts[5]:.2f} | {gathered:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--reduction", type=float, default=5.3, help="dense FLOPs over low-rank FLOPs")
    parser.add_argument("--bandwidth", type=float, default=H200.bytes_per_s, help="bytes a second of a copy")
    parser.add_argument("--peak", type=float, default=H200.flops_per_s, help="FLOP a second of a bf16 matrix product")
    arguments = parser.parse_args()
    machine = Machine(arguments.bandwidth, arguments.peak)
    for name, convs in NETWORKS.items():
        print(f"### {name}\n", *table(convs, arguments.batch, arguments.reduction, machine), "", sep="\n")


if __name__ == "__main__":
    main()
