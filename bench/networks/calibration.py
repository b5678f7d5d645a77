"""What a whole compression takes, by images, stage by stage: ``python -m bench.networks.calibration --help``.

Beside it a dense pass over the same images, in the same run; seconds are of the wall clock.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator

import hscc
import numpy as np
import psutil
import torch
from torch import Tensor, nn

from ..accuracy import examples
from ..timing import header
from .models import MODELS

NETWORKS = {**MODELS, "alexnet": lambda: examples.network("brain_mri")[0]}


class Images:
    """Random batches of 3 x size x size, made when they are read: their number takes no memory."""

    def __init__(self, count: int, batch: int, size: int = 224) -> None:
        self.sizes = [batch] * (count // batch) + [count % batch] * (count % batch > 0)
        self.shape = 3, size, size

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(size, *self.shape, generator=generator) for size in self.sizes)


class Peak:
    """The most memory that the process has in a block, in MiB, looked at every 20 ms."""

    def __enter__(self) -> Peak:
        self.mib, self.over = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()

    def _look(self) -> None:
        process, over = psutil.Process(), False
        while not over:
            self.mib = max(self.mib, process.memory_info().rss / 2**20)
            over = self.over.wait(0.02)


def measured(model: nn.Module, images: Iterable[Tensor], config: hscc.Config) -> tuple[hscc.Report, dict]:
    """A dense pass and a compression in place: seconds and peak memory of each, seconds of the stages."""
    with torch.no_grad(), Peak() as dense:
        for _ in range(2):  # the second is warm
            start = time.perf_counter()
            for x in images:
                model(x)
            seconds = time.perf_counter() - start
    start = time.perf_counter()
    with Peak() as whole:
        report = hscc.compress_(model, images, config, show_progress=True)
    return report, {
        "dense_seconds": seconds,
        "dense_mib": round(dense.mib),
        "seconds": time.perf_counter() - start,
        "mib": round(whole.mib),
        "stages": report.seconds,
        "flop_reduction": report.flop_reduction,
    }


def told(row: dict) -> str:
    more = row["mib"] - row["dense_mib"]
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row["stages"].items())
    return (
        f"{row['images']} images: {row['seconds']:.1f} s, a dense pass {row['dense_seconds']:.1f} s, "
        f"{more} MiB above it ({stages})"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.networks.calibration", description=__doc__)
    parser.add_argument("--model", choices=NETWORKS, default="resnet50")
    parser.add_argument("--images", type=int, nargs="+", default=[16, 32, 64], help="numbers of images, rising")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--regions", type=int, default=16)
    parser.add_argument("--effort", default="normal", help="of the search")
    parser.add_argument("--memory", type=float, help="GiB that it may hold")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--reduction", type=float, default=3, help="so many times fewer FLOPs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the results to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    memory = None if args.memory is None else int(args.memory * 2**30)
    config = hscc.Config(hscc.flops(args.reduction), regions=args.regions, effort=args.effort, memory=memory)
    head = header(args.threads, args.batch)
    print(json.dumps(head))
    torch.manual_seed(0)
    model, rows = NETWORKS[args.model]().eval(), []
    for count in sorted(args.images):
        images = Images(count, args.batch, args.size)
        rows.append({"images": count, **measured(copy.deepcopy(model), images, config)[1]})
        print(f"{args.model}, {told(rows[-1])}", flush=True)
    if len(rows) > 1:
        slope, start = np.polyfit([row["images"] for row in rows], [row["seconds"] for row in rows], 1)
        print(f"{slope:.2f} s an image and {start:.1f} s at the start")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"header": head, "model": args.model, "config": config.to_json(), "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
