"""Times whole networks that people use, dense in every runtime, in 8 bits, and compressed, all in turn in one run.

``python -m bench.networks.whole --model resnet50 --reduction 3 --int8 --threads 1 --rounds 9 --json out.json``

Weights of the large networks are random and their images made up: times and FLOPs are a trained network's, accuracies
are not; the networks of examples/ are trained and see their own images. "error" is relative, of outputs against dense
ones, on images that nothing was calibrated on. "error_images" is relative to how far dense outputs move from image to
image: 1 says nothing of the image; random deep networks hardly tell images apart.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import hscc
import torch
from hscc.io.checkpoint import read_metadata
from torch import Tensor, nn

from hscc_kernels import testing

from ..kernels.peers import EAGER, Bound, runtimes, torch_calls
from ..timing import commit, header, interleaved, keep_freed_memory, ratio
from .calibration import measured
from .calibration import told as told_cost
from .correctness import SHARE, in_int8, int8_ratio, int8_references, references
from .int8 import HAS_EXPORT, exported, int8_peers
from .sources import Source, names, source
from .times import aot, own_calls

TOLERANCE = 1e-3  # of float32 outputs' relative error, but ours; Winograd kernels round more than others


class Call(NamedTuple):
    """What takes part: dense in "fp32" or "int8", or "ours". Of these ``facts`` has an ``error_ratio`` by the rule of
    the kernels' tests; at most 1 passes."""

    kind: str
    run: Callable[[], object]
    output: Tensor
    facts: dict

    @property
    def right(self) -> bool:
        return self.facts.get("error_ratio", 0) <= 1 and bool(self.output.isfinite().all())


Calls = dict[str, Call]


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def ready(model: nn.Module) -> nn.Module:
    """A compressed network as its users run it: all that is done to it after compression is done here, in place."""
    hscc.fuse_(model)
    return model.eval().to(memory_format=torch.channels_last)


def cached(folder: str, name: str, config: hscc.Config, images: Tensor) -> Path:
    """Where a compressed network is kept."""
    return Path(folder, f"{name}-{config.effort}-{len(images)}-images-{images.shape[-1]}.safetensors")


def compressed(
    dense: nn.Module, images: Tensor, config: hscc.Config, file: Path, int8: bool = False
) -> tuple[nn.Module, dict]:
    """The compressed network, ready, and what it is; from the file if that holds it, else made and written there.

    In ``int8`` it is quantised after that, with the same images.
    """
    model, settings = copy.deepcopy(dense), {"bench.config": config.to_json(), "bench.images": str(len(images))}
    known = read_metadata(file) if file.is_file() else {}
    if settings.items() <= known.items():
        report = hscc.load_(model, file)
    else:
        report, cost = measured(model, images.split(8), config)
        print(f"{file.stem}: {told_cost({'images': len(images), **cost})}", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        known = {**settings, "bench.commit": commit(), "bench.cost": json.dumps(cost)}
        hscc.save(model, file, report=report, metadata=known)
    most = TOLERANCE
    if int8:
        with torch.no_grad():
            floating = model(images[:2])
        made = hscc.quantize_(model, images.split(8))
        off = rms(model(images[:2]) - floating) / rms(floating)
        most = SHARE * off  # as last bits flip when batch norms fold
        stay = sum(name in made.errors for name in made.stays)
        print(f"{file.stem}: in int8, which costs {off:.2g} of the outputs; {stay} layers stay", flush=True)
    with torch.no_grad():  # the gate before the times knows the model as it then is
        before, after = model(images[:2]), ready(model)(images[:2])
    if not (error := rms(after - before) / rms(before)) <= most:
        raise ValueError(f"ready: got outputs that it moved by {error:.2g}, expected at most {most:.2g}")
    return model, {
        "flop_reduction": round(report.flop_reduction, 3),
        "param_reduction": round(report.parameter_reduction, 3),
        "compressed_at": known["bench.commit"],
        "compression": json.loads(known["bench.cost"]),
    }


def dense_calls(dense: nn.Module, x: Tensor, images: Tensor, threads: int, compiled: bool) -> Calls:
    """Every peer that is installed; one in float32 whose output is wrong is an error."""
    runs = torch_calls(dense, x, compiled)
    if compiled:
        runs["torch_aot"] = aot(dense, x.contiguous(memory_format=torch.channels_last), frozen=True)
    calls = {name: Call("fp32", run, run(), {}) for name, run in runs.items()}
    if HAS_EXPORT:
        graph = exported(dense, x)
        bound = {"fp32": runtimes(graph, x, threads), "int8": int8_peers(graph, x, images, threads)}
        calls |= {name: called(kind, one) for kind, found in bound.items() for name, one in found.items()}
    return calls


def called(kind: str, bound: Bound) -> Call:
    bound.run()
    return Call(kind, bound.run, bound.read(), {})


def our_calls(name: str, model: nn.Module, facts: dict, x: Tensor, compiled: bool) -> Calls:
    """The compressed model in each way; x is NCHW, as loaders give it. What is timed is what is checked."""
    whole, calls = in_int8(model), {}
    wanted = (int8_references if whole else references)(model, x)
    for way, run in own_calls(model, x, compiled).items():
        output = run()
        error = (int8_ratio if whole else testing.error_ratio)(output, *wanted)
        calls[f"{name} {way}"] = Call("ours", run, output, {**facts, "error_ratio": round(error, 4)})
    return calls


def measure(calls: Calls, wanted: Tensor, spread: float, rounds: int) -> list[dict]:
    """A row a call, all timed in turn but those that are wrong; ``wanted`` is the dense output (N, ...), ``spread`` the
    root mean square of what changes in it with the image."""
    rows = []
    for name, call in calls.items():
        off = rms(call.output - wanted)
        error = off / rms(wanted)
        if call.kind == "fp32" and not error <= TOLERANCE:
            raise ValueError(f"{name}: got a dense output that is off by {error:.2g}, expected at most {TOLERANCE}")
        rows.append({"name": name, "kind": call.kind, **call.facts, "error": round(error, 7)})
        rows[-1]["error_images"] = round(off / spread, 7)
    times = interleaved({name: call.run for name, call in calls.items() if call.right}, rounds, slice_ms=100.0)
    over = {kind: [name for name in times if calls[name].kind == kind] for kind in ("fp32", "int8")}
    over["eager"] = [name for name in EAGER if name in times]
    for row in rows:
        if (name := row["name"]) not in times:
            continue
        row["ms"] = round(statistics.median(times[name]), 5)
        row |= {f"over_{kind}": round(ratio(times, names, name), 3) for kind, names in over.items() if names}
        if "flop_reduction" in row:
            row["eta"] = round(row["over_fp32"] / row["flop_reduction"], 4)
    return rows


def told(row: dict) -> str:
    name = f"{row['network']} batch {row['batch']} {row['name']:24s} {row['kind']:4s}"
    if "ms" not in row:
        return f"{name} WRONG, error ratio {row.get('error_ratio')}; not timed"
    text = f"{name} {row['ms']:9.3f} ms"
    text += "".join(f"  {row[key]:5.2f}x {key.replace('_', ' ')}" for key in row if key.startswith("over_"))
    text += f"  error {row['error']:.2g}, images {row['error_images']:.2g}"
    if row["kind"] == "ours":
        text += f" (ratio {row['error_ratio']:.2f})  {row['flop_reduction']:.2f}x fewer FLOPs  eta {row['eta']:.3f}"
    return text


class Network(NamedTuple):
    """Where it comes from, and the compressed ones with what they are."""

    source: Source
    compressed: dict[str, tuple[nn.Module, dict]]


def made(name: str, args: argparse.Namespace) -> Network:
    found, models = source(name, args.calibration, max(args.batch), args.size), {}
    for reduction in args.reduction:
        config = hscc.Config(hscc.flops(reduction), effort=args.effort)
        file = cached(args.cache, f"{name}-{reduction:g}x", config, found.images)
        models[f"{reduction:g}x"] = compressed(found.dense, found.images, config, file)
        if args.int8:
            models[f"{reduction:g}x int8"] = compressed(found.dense, found.images, config, file, int8=True)
    return Network(found, models)


@torch.inference_mode()
def timed(network: Network, batch: int, args: argparse.Namespace) -> list[dict]:
    torch._dynamo.reset()
    (dense, images, others), models = network
    x, compiled = others[:batch].contiguous(), not args.no_compile
    outputs = torch.cat([dense(part) for part in images.split(8)])
    calls = dense_calls(dense, x, images, args.threads, compiled)
    for name, (model, facts) in models.items():
        calls |= our_calls(name, model, facts, x, compiled)
    return measure(calls, dense(x), rms(outputs - outputs.mean(0)), args.rounds)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.networks.whole", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=names(), default=["resnet50"])
    parser.add_argument("--reduction", type=float, nargs="+", default=[3.0], help="so many times fewer FLOPs")
    parser.add_argument("--int8", action="store_true", help="each in int8 as well")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calibration", type=int, default=32, help="images, of the compression and of int8")
    parser.add_argument("--effort", default="normal", help="of the compression's search")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--cache", default="out/networks", help="folder of compressed networks; they are made once")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled calls out")
    parser.add_argument("--json", help="write the results to this file")
    args = parser.parse_args(argv)
    networks = {name: made(name, args) for name in args.model}  # with all threads there are
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    head, rows = header(args.threads, args.batch), []
    print(json.dumps(head))
    for (name, network), batch in product(networks.items(), args.batch):
        for row in timed(network, batch, args):
            rows.append({"network": name, "batch": batch, "threads": args.threads, **row})
            print(told(rows[-1]), flush=True)
        if args.json:  # so that what comes next can fail
            Path(args.json).write_text(json.dumps({"header": head, "cases": rows}, indent=1), encoding="utf-8")
    return int(any("ms" not in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
