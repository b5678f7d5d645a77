"""Accuracy against time of a network of examples/: dense and compressed, in float and in 8 bits, as one picture.

``python -m bench.networks.front --model alexnet --reduction 3 5.3 10 20 --test 10000 --picture front.png``

Of each kind the fastest way of :mod:`bench.networks.exported` is timed, in turn with all others; accuracies are of the
same files, on images that nobody has seen. "regions" are our kernels, "portable" any runtime.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import hscc
import numpy as np
import torch
from hscc.evaluation.paired import standard_error
from hscc.exports.portable import own_layers, regions
from hscc.io.session import OnnxSession
from torch import Tensor, nn

from ..accuracy import examples
from ..timing import header, interleaved, keep_freed_memory
from .exported import Models, made, ways
from .sources import TRAINED

BATCH, TICKS = 32, (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
STYLES = {"dense": "s", "regions": "o", "portable": "^"}  # marks; filled where in 8 bits


Scores = dict[tuple[str, int], np.ndarray]  # (n,), by kind and number of bits


def measure(models: Models, scores: Scores, x: Tensor, images: Tensor, args: argparse.Namespace) -> list[dict]:
    """A row a network and number of bits: time of the fastest way, points lost against dense float, and their error."""
    calls = {}
    for kind, (model, _) in models.items():
        for way, (run, _, _) in ways(model, x, images, args).items():
            calls[kind, 8 if "int8" in way else 32, way] = run
    times = interleaved(calls, args.rounds, slice_ms=100.0)
    medians = {key: statistics.median(several) for key, several in times.items()}
    rows, before = [], scores["dense", 32]
    for key, after in scores.items():
        best = min((one for one in medians if one[:2] == key), key=medians.get)
        row = {"network": args.model, "kind": key[0], "bits": key[1], "runtime": best[2], "ms": round(medians[best], 4)}
        row |= {"flop_reduction": round(models[key[0]][1], 3), "score": round(100 * float(after.mean()), 3)}
        row["lost"] = round(100 * float((before - after).mean()), 3)
        rows.append(row | {"standard_error": round(100 * standard_error(before - after), 3)})
    return rows


def scored(name: str, model: nn.Module, images: Tensor, args: argparse.Namespace) -> dict[int, np.ndarray]:
    """Scores (n,) of the test images: in float by the model, in 8 bits, where it has no regions, by its ONNX file."""
    data = TRAINED[name]
    pixels, truths = examples.images(data, "test", args.test, 0)
    _, spec, _ = examples.network(data)

    def scores(run: Callable[[Tensor], Tensor]) -> np.ndarray:
        parts = (spec.preprocess(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH))
        return examples.EXAMPLES[data].score(torch.cat([run(part) for part in parts]), truths)

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        found, file = {32: scores(model)}, Path(folder, "model.onnx")
        if all(regions(layer) == 1 for layer in own_layers(model).values()):
            hscc.export_int8(model, file, images.split(8))
            found[8] = scores(OnnxSession(file))
    return found


def draw(rows: Sequence[dict], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5))
    axis = figure.add_subplot()
    for kind, mark in STYLES.items():
        for bits in (32, 8):
            own = [row for row in rows if row["kind"].split()[-1] == kind and row["bits"] == bits]
            if not own:
                continue
            face = "none" if bits == 32 else None
            label = f"{kind}, {'float32' if bits == 32 else '8 bits'}"
            x, y, error = ([row[key] for row in own] for key in ("ms", "score", "standard_error"))
            line = axis.errorbar(x, y, error, marker=mark, markerfacecolor=face, label=label, capsize=2, linewidth=1)
            for row in own[:0] if kind == "dense" else own:
                text = f"{row['flop_reduction']:.0f}x"
                place = {"textcoords": "offset points", "xytext": (4, -10), "fontsize": 8}
                axis.annotate(text, (row["ms"], row["score"]), color=line[0].get_color(), **place)
    axis.set_xscale("log")
    low, high = (fit(row["ms"] for row in rows) for fit in (min, max))
    axis.set_xticks([ms for ms in TICKS if low / 2 < ms < 1.3 * high])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    axis.set_xlabel("ms an image, batch 1 (the fastest runtime)")
    axis.set_ylabel("accuracy, %")
    axis.set_title(f"{rows[0]['network']}: accuracy against time; numbers are times fewer FLOPs", fontsize=10)
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.networks.front", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=[*TRAINED], default="alexnet")
    parser.add_argument("--reduction", type=float, nargs="+", default=[3.0, 5.3, 10.0, 20.0], help="times fewer FLOPs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calibration", type=int, default=256, help="images")
    parser.add_argument("--test", type=int, default=10_000, help="images")
    parser.add_argument("--effort", default="normal", help="of the compression's search")
    parser.add_argument("--cache", default="out/networks", help="folder of compressed networks; they are made once")
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument("--picture", type=Path, help="draw them there")
    parser.set_defaults(kind=["regions", "portable"], rank_multiple=None, int8=True, batch=1, size=224)  # of exported
    args = parser.parse_args(argv)
    models, x, images = made(args.model, args)  # with all threads there are
    scores = {
        (kind, bits): own
        for kind, (model, _) in models.items()
        for bits, own in scored(args.model, model, images, args).items()
    }
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    head, rows = header(args.threads, 1), measure(models, scores, x, images, args)
    for row in rows:
        print(
            "{network} {kind:16s} {bits:2d} bits {runtime:16s} {ms:8.3f} ms  {score:.2f} %  lost {lost:.2f} +- "
            "{standard_error:.2f}".format(**row)
        )
    if args.json:
        Path(args.json).write_text(json.dumps({"header": head, "cases": rows}, indent=1), encoding="utf-8")
    if args.picture:
        draw(rows, args.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
