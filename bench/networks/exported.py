"""Times exported networks in ONNX Runtime and OpenVINO: dense, compressed with regions, compressed to be portable.

``python -m bench.networks.exported --model brain_mri --reduction 5.3 --threads 1 --json out.json``

All are of examples/, trained, on their own images. "kernel" is the compressed network as an AOTInductor package with
our kernels, "torch_aot" the dense one as a package. Outputs are compared with the model's before anything is timed.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import hscc
import torch
from hscc.exports.model import export
from torch import Tensor, nn

from ..accuracy import examples
from ..kernels.peers import runtimes
from ..timing import header, interleaved, keep_freed_memory
from .times import aot
from .whole import compressed, ready

TOLERANCE = 1e-4  # of the largest output


def made(name: str, args: argparse.Namespace) -> tuple[dict[str, tuple[nn.Module, float]], Tensor]:
    """The dense network, one with regions and a portable one, with FLOP reductions; images that nobody has seen."""
    dense, spec, _ = examples.network(name)
    dense = copy.deepcopy(dense).eval().requires_grad_(False)
    images, test = (
        spec.preprocess(examples.images(name, split, count, 0)[0])
        for split, count in (("calibration", args.calibration), ("test", args.batch))
    )
    models = {"dense": (ready(copy.deepcopy(dense)), 1.0)}
    for kind in ("regions", "portable"):
        config = hscc.Config(hscc.flops(args.reduction), portable=kind == "portable", effort=args.effort)
        file = Path(args.cache, f"{name}-{args.reduction:g}x-{kind}-{args.effort}-{args.calibration}.safetensors")
        model, facts = compressed(dense, images, config, file)
        models[kind] = model.requires_grad_(False), facts["flop_reduction"]
    return models, test


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
        row["ms"] = round(statistics.median(times[row["kind"], row["runtime"]]), 4)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.networks.exported", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=[*examples.EXAMPLES], default=["brain_mri"])
    parser.add_argument("--reduction", type=float, default=5.3, help="so many times fewer FLOPs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calibration", type=int, default=64, help="images")
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
            print("{network} {kind:9s} {runtime:12s} {ms:9.3f} ms  {flop_reduction:.2f}x fewer".format(**rows[-1]))
    if args.json:
        Path(args.json).write_text(json.dumps({"header": head, "cases": rows}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
