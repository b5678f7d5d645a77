"""Whether a report says what a network will take: ``python -m bench.networks.predicted --threads 1 --json out.json``.

Networks compressed with ``faster_only``, so that the machine's speed counts: a call of the whole network in the best
dense runtime, of the compressed one as the plan predicts it, and as it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import hscc
import torch

from ..timing import header
from .sources import names, source


def row(name: str, args: argparse.Namespace) -> dict:
    dense, images, _ = source(name, args.calibration, 2, 224)
    config = hscc.Config(hscc.flops(args.reduction), faster_only=True, effort=args.effort)
    report = hscc.compress_(copy.deepcopy(dense), images.split(8), config)
    whole = report.whole
    best = whole.dense_ms[whole.best]
    expected, came = best / whole.predicted_ms, best / whole.measured_ms
    print(f"{name:12s} {report.flop_reduction:.2f}x fewer FLOPs; {whole.best} dense {best:.2f} ms, compressed "
          f"{whole.predicted_ms:.2f} predicted, {whole.measured_ms:.2f} measured: {expected:.2f}x, {came:.2f}x, "
          f"{expected / came - 1:+.0%}", flush=True)  # fmt: skip
    return {
        "model": name,
        "flop_reduction": report.flop_reduction,
        "dense_ms": dict(whole.dense_ms),
        "predicted_ms": whole.predicted_ms,
        "measured_ms": whole.measured_ms,
        "speedup": {"predicted": expected, "measured": came},
        "convolutions": {"predicted": report.speedup, "measured": report.measured_speedup},
    }


def alone(name: str, args: argparse.Namespace) -> dict:
    """The row of a network in a process of its own, whose memory no other one has left behind."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "row.json")
        options = {key: str(getattr(args, key)) for key in ("reduction", "calibration", "effort", "threads")}
        told = [text for key, value in options.items() for text in (f"--{key}", value)]
        command = [sys.executable, "-m", "bench.networks.predicted", "--model", name, "--json", str(file), *told]
        subprocess.run(command, check=True)
        (found,) = json.loads(file.read_text(encoding="utf-8"))["cases"]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.networks.predicted", description=__doc__)
    parser.add_argument("--model", nargs="+", choices=names(), metavar="NAME",
                        default=["resnet18", "resnet50", "densenet121", "vgg16", "unet", "alexnet"])  # fmt: skip
    parser.add_argument("--reduction", type=float, default=3.0, help="fewer FLOPs")
    parser.add_argument("--calibration", type=int, default=32, help="images")
    parser.add_argument("--effort", default="quick", choices=["quick", "normal", "thorough"], help="of the search")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    head = header(args.threads, 1)
    rows = [row(args.model[0], args)] if len(args.model) == 1 else [alone(name, args) for name in args.model]
    if args.json:
        args.json.write_text(json.dumps({**head, "cases": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
