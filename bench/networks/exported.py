"""Times exported networks in ONNX Runtime and OpenVINO: dense, compressed with regions, compressed to be portable.

``python -m bench.networks.exported --model vgg16 --reduction 3 5.3 --threads 1 --json out.json``

Networks are those of ``bench.networks.whole``. "kernel" is the compressed network as an AOTInductor package with
our kernels, "torch_aot" the dense one as a package. Outputs are compared with the model's before anything is timed;
"over_dense" is over the dense network in the same runtime, of "kernel" over the fastest one.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import hscc
import torch
from hscc.exports.model import export
from torch import Tensor, nn

from ..kernels.peers import runtimes
from ..timing import header, interleaved, keep_freed_memory, ratio
from .sources import names, source
from .times import aot
from .whole import cached, compressed, ready

TOLERANCE = 1e-4  # of the largest output


def made(name: str, args: argparse.Namespace) -> tuple[dict[str, tuple[nn.Module, float]], Tensor]:
    """The dense network, those with regions and the portable ones, with FLOP reductions; images that nobody has
    seen."""
    found = source(name, args.calibration, args.batch, args.size)
    models = {"dense": (ready(copy.deepcopy(found.dense)), 1.0)}
    for reduction, kind in product(args.reduction, args.kind):
        config = hscc.Config(
            hscc.flops(reduction), portable=kind == "portable", effort=args.effort, rank_multiple=args.rank_multiple
        )
        which = kind if args.rank_multiple is None else f"{kind}-{args.rank_multiple}"
        label = f"{name}-{reduction:g}x" + (f"-{which}" if which != "regions" else "")  # as bench.networks.whole
        file = cached(args.cache, label, config, found.images)
        model, facts = compressed(found.dense, found.images, config, file)
        models[f"{reduction:g}x {kind}"] = model.requires_grad_(False), facts["flop_reduction"]
    return models, found.others


def measure(models: dict[str, tuple[nn.Module, float]], x: Tensor, args: argparse.Namespace) -> list[dict]:
    """A row a network and runtime, all timed in turn."""
    rows, calls = [], {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for kind, (model, reduction) in models.items():
            path, wanted = Path(folder, "model.onnx"), model(x)
            layers = [*export(model, path, example=x, dynamic=()).layers.values()]
            facts = {"flop_reduction": round(reduction, 3), "layers": Counter(layers), "bytes": path.stat().st_size}
            own = {}
            for runtime, bound in runtimes(path.read_bytes(), x, args.threads).items():
                bound.run()
                own[runtime] = bound.run, bound.read()
            package = aot(model, x, frozen=not layers)
            own["kernel" if layers else "torch_aot"] = package, package()
            for runtime, (call, found) in own.items():
                error = ((found - wanted).abs().max() / wanted.abs().max()).item()
                if not error <= TOLERANCE:
                    raise ValueError(f"{kind}: got outputs of {runtime} that are off by {error:.2g}")
                rows.append({"kind": kind, "runtime": runtime, **facts, "error": float(f"{error:.2g}")})
                calls[kind, runtime] = call
        times = interleaved(calls, args.rounds, slice_ms=100.0)
    for row in rows:
        key, peer = (row["kind"], row["runtime"]), ("dense", row["runtime"])
        row["ms"] = round(statistics.median(times[key]), 4)
        peers = [peer] if peer in times else [one for one in times if one[0] == "dense"]
        row["over_dense"] = round(ratio(times, peers, key), 3)
        row["eta"] = round(row["over_dense"] / row["flop_reduction"], 3)
    return rows


def told(row: dict) -> str:
    text = "{network} {kind:14s} {runtime:12s} {ms:9.3f} ms  {flop_reduction:.2f}x fewer FLOPs".format(**row)
    return text + "  {over_dense:.2f}x over dense  eta {eta:.3f}".format(**row)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.networks.exported", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=names(), default=["alexnet"])
    parser.add_argument("--reduction", type=float, nargs="+", default=[5.3], help="so many times fewer FLOPs")
    parser.add_argument("--kind", nargs="+", choices=["regions", "portable"], default=["regions", "portable"])
    parser.add_argument("--rank-multiple", type=int, help="in place of what the config chooses")
    parser.add_argument("--size", type=int, default=224, help="height and width of made-up images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calibration", type=int, default=32, help="images")
    parser.add_argument("--effort", default="normal", help="of the compression's search")
    parser.add_argument("--cache", default="out/networks", help="folder of compressed networks; they are made once")
    parser.add_argument("--json", help="write the results to this file")
    args = parser.parse_args(argv)
    networks = {name: made(name, args) for name in args.model}  # with all threads there are
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    head, rows = header(args.threads, args.batch), []
    print(json.dumps(head))
    for name, (models, x) in networks.items():
        for row in measure(models, x, args):
            rows.append({"network": name, "batch": args.batch, "threads": args.threads, **row})
            print(told(rows[-1]), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"header": head, "cases": rows}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
