"""Times exported networks in ONNX Runtime and OpenVINO: dense, compressed with regions, compressed to be portable.

``python -m bench.networks.exported --model vgg16 --reduction 3 5.3 --threads 1 --json out.json``

Networks are those of ``bench.networks.whole``. "kernel" is the compressed network as an AOTInductor package with
our kernels, "torch_aot" the dense one as a package. Outputs are compared with the model's before anything is timed;
"over_dense" is over the dense network in the same runtime, of "kernel" over the fastest one. In 8 bits "nncf_int8" is
OpenVINO on what NNCF makes of the float file; the others run the file of ``hscc.export_int8``.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import hscc
import torch
from torch import Tensor, nn

from ..kernels.peers import HAS_OPENVINO, openvino_bound, runtimes
from ..timing import header, interleaved, keep_freed_memory, ratio
from .int8 import HAS_NNCF, openvino_int8
from .sources import names, source
from .times import aot
from .whole import cached, compressed, ready

TOLERANCE = 1e-4  # of the largest output
Models = dict[str, tuple[nn.Module, float]]  # with FLOP reductions
Way = tuple[Callable[[], object], Tensor, dict]  # a call, what it gave, facts


def made(name: str, args: argparse.Namespace) -> tuple[Models, Tensor, Tensor]:
    """The dense network, those with regions and the portable ones; images that nobody has seen; calibration images."""
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
    return models, found.others, found.images


def measure(models: Models, x: Tensor, images: Tensor, args: argparse.Namespace) -> list[dict]:
    """A row a network and runtime, all timed in turn; in 8 bits what is calibrated on ``images``."""
    rows, calls, dense = [], {}, models["dense"][0](x)
    for kind, (model, reduction) in models.items():
        wanted = model(x)
        for runtime, (run, found, facts) in ways(model, x, images, args).items():
            error = off(found, wanted)
            if "int8" not in runtime and not error <= TOLERANCE:
                raise ValueError(f"{kind}: got outputs of {runtime} that are off by {error:.2g}")
            facts |= {"flop_reduction": round(reduction, 3), "error": float(f"{error:.2g}")}
            rows.append({"kind": kind, "runtime": runtime, **facts, "error_dense": float(f"{off(found, dense):.2g}")})
            calls[kind, runtime] = run
    times = interleaved(calls, args.rounds, slice_ms=100.0)
    dense_ways = [key for key in times if key[0] == "dense"]
    peers = {name: [key for key in dense_ways if ("int8" in key[1]) == (name == "int8")] for name in ("fp32", "int8")}
    for row in rows:
        key, peer = (row["kind"], row["runtime"]), ("dense", row["runtime"])
        row["ms"] = round(statistics.median(times[key]), 4)
        row["over_dense"] = round(ratio(times, [peer] if peer in times else peers["fp32"], key), 3)
        row["eta"] = round(row["over_dense"] / row["flop_reduction"], 3)
        row |= {f"over_{name}": round(ratio(times, several, key), 3) for name, several in peers.items() if several}
    return rows


def ways(model: nn.Module, x: Tensor, images: Tensor, args: argparse.Namespace) -> dict[str, Way]:
    """The model in each runtime."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "model.onnx")
        done = hscc.export(model, path, example=x, dynamic=())
        layers = Counter(done.layers.values())
        graph, facts = path.read_bytes(), {"layers": dict(layers), "bytes": done.bytes}
        bound = {name: (one, facts) for name, one in runtimes(graph, x, args.threads).items()}
        package = aot(model, x, frozen=not layers)
        found = {"kernel" if layers else "torch_aot": (package, package(), facts)}
        if args.int8 and set(layers) <= {"convolutions"}:
            done = hscc.export_int8(model, path, images, dynamic=() if len(x) == 1 else ("batch",))
            eight = {**facts, "bytes": done.bytes}
            bound |= {
                f"{name}_int8": (one, eight) for name, one in runtimes(path.read_bytes(), x, args.threads).items()
            }
            if HAS_OPENVINO and HAS_NNCF:
                quantised = openvino_int8(graph, [batch.numpy() for batch in images.split(len(x))])
                bound["nncf_int8"] = openvino_bound(quantised, x, args.threads), facts
    for name, (one, facts) in bound.items():
        one.run()
        found[name] = one.run, one.read(), dict(facts)
    return found


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest error relative to the largest output."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def told(row: dict) -> str:
    text = "{network} {kind:14s} {runtime:16s} {ms:9.3f} ms  {flop_reduction:.2f}x fewer FLOPs".format(**row)
    text += "  {over_dense:.2f}x over dense  eta {eta:.3f}".format(**row)
    text += "".join(f"  {row[key]:.2f}x {key.replace('_', ' ')}" for key in ("over_fp32", "over_int8") if key in row)
    return text + f"  error {row['error']:.2g}, of dense {row['error_dense']:.2g}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.networks.exported", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=names(), default=["alexnet"])
    parser.add_argument("--reduction", type=float, nargs="+", default=[5.3], help="so many times fewer FLOPs")
    parser.add_argument("--kind", nargs="+", choices=["regions", "portable"], default=["regions", "portable"])
    parser.add_argument("--int8", action="store_true", help="what has no regions in 8 bits as well")
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
    for name, (models, x, images) in networks.items():
        for row in measure(models, x, images, args):
            rows.append({"network": name, "batch": args.batch, "threads": args.threads, **row})
            print(told(rows[-1]), flush=True)
        if args.json:  # so that what comes next can fail
            Path(args.json).write_text(json.dumps({"header": head, "cases": rows}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
