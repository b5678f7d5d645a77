"""Throughput and latency of serving, dense and compressed in the same run: ``python -m bench.serving --help``.

Each load is put on the models in turn, in several rounds, as a machine's speed changes with time. The clients live in
this process, so on few cores they take their share of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
from functools import partial
from pathlib import Path

import torch
from hscc.serving.engine import Limits

from ..accuracy.examples import EXAMPLES, network
from ..timing import header, keep_freed_memory
from . import table
from .load import Load, closed, opened
from .targets import Target, engines, example_models, url


async def measure(targets: list[Target], args: argparse.Namespace) -> list[dict]:
    """A row for each target and load."""
    loads = {("closed", n): partial(closed, clients=n) for n in args.clients}
    loads |= {("open", rate): partial(opened, rate=rate) for rate in args.rates}
    rows = []
    for (kind, level), run in loads.items():
        total = {target.name: Load() for target in targets}
        bare = {target.name: [] for target in targets}
        for _ in range(args.rounds):
            seconds = args.seconds / args.rounds
            for target in targets:
                total[target.name] += await run(target.ask, seconds=seconds)
                if target.bare is not None:
                    bare[target.name].append(await asyncio.to_thread(target.bare, seconds / 2))
        for target in targets:
            rows.append({"name": target.name, "load": kind, "level": level})
            rows[-1] |= row(total[target.name], target.images, bare[target.name])
            print(json.dumps(rows[-1]), flush=True)
    return rows


def row(load: Load, images_each: int, bare: list[float]) -> dict:
    """``share`` is the throughput over that of the bare model at a full batch, timed between the rounds."""
    images = load.rate * images_each
    found = {"images_per_s": round(images, 2), "requests": len(load.latencies), **load.percentiles()}
    found["refused"] = dict(load.refused)
    if bare:
        alone = statistics.mean(bare)
        found |= {"bare_images_per_s": round(alone, 2), "share": round(images / alone, 4)}
    return found


async def on_engines(args: argparse.Namespace) -> list[dict]:
    models = example_models(args.data, args.reductions, args.calibration)
    spec = network(args.data)[1]
    limits = Limits(args.batch, args.delay_ms, args.queue, min(64, args.queue))
    async with engines(models, (spec.channels, *spec.size), limits, args.images) as targets:
        return await measure(targets, args)


async def on_url(args: argparse.Namespace) -> list[dict]:
    async with url(args.url, args.models, args.images, os.environ.get("HSCC_API_KEY")) as targets:
        return await measure(targets, args)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument("--data", choices=EXAMPLES, default="brain_mri")
    parser.add_argument("--reductions", type=float, nargs="*", default=[5.3], help="times fewer FLOPs")
    parser.add_argument("--calibration", type=int, default=64, help="images")
    parser.add_argument("--url", help="a running server instead; a key is read from HSCC_API_KEY")
    parser.add_argument("--models", nargs="+", help="their names at that server")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32], help="of closed loops")
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="requests a second of open loops")
    parser.add_argument("--images", type=int, default=1, help="in a request")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load on each model")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=Limits.batch)
    parser.add_argument("--delay-ms", type=float, default=Limits.delay_ms)
    parser.add_argument("--queue", type=int, default=Limits.queue, help="images")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args(argv)
    if (args.url is None) != (args.models is None):
        parser.error("--url and --models belong together")
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    head = header(args.threads, args.batch)
    print(json.dumps(head))
    rows = asyncio.run(on_engines(args) if args.url is None else on_url(args))
    print("\n".join(table.lines(rows)))
    if args.json:
        text = json.dumps({"header": head | {"images": args.images}, "cases": rows}, indent=1)
        args.json.write_text(text + "\n", encoding="utf-8")
    return int(any(not case["requests"] for case in rows))
