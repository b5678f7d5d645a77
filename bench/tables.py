"""The Markdown tables of docs/performance.md from result files: ``python -m bench.tables FILE.json``."""

from __future__ import annotations

import argparse
import json
import sys

from .cases import LAYERS, SHORT
from .kernels import geomean

Rows = dict[tuple[str, str], dict]  # by layer and "R4 5.3x"
_WANTED = {"R4 5.3x": "0.90, least 0.75", "R4 10x": "0.90, least 0.75"}


def line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def layers(cases: list[dict]) -> list[str]:
    """A row a layer and, over the k x k ones, a row a geometric mean."""
    rows: Rows = {}
    for case in cases:
        layer, regions, _, reduction = case["name"].split("/")
        rows[layer, f"{regions} {reduction}"] = case
    columns = [f"R{regions} {reduction:g}x" for regions, reduction in SHORT]
    lines = [
        line("layer", "ms, R = 1", "ms, R = 4", "eta, R = 1", "eta, R = 4", "R = 4, 10x", "unequal",
             "over ORT / OpenVINO, R = 4", "over the chain, R = 1"),
        "|---" * 9 + "|",
    ]  # fmt: skip
    names = [name for name in LAYERS if all(usable(rows.get((name, column))) for column in columns)]
    for name in names:
        one, four, ten, unequal = (rows[name, column] for column in columns)
        etas = (f"{case['eta']:.2f}" for case in (one, four, ten, unequal))
        times = (f"{case['ms']:.3f}" for case in (one, four))
        runtimes = f"{four['eta_runtimes']:.2f}" if "eta_runtimes" in four else ""
        last = runtimes, f"{one['speedup_over_best_chain']:.2f}x"
        lines.append(line(name, *times, *etas, *last))
    wide = [name for name in names if LAYERS[name].kernel > 1]
    return [*lines, "", *means(rows, wide)]


def means(rows: Rows, names: list[str]) -> list[str]:
    def mean(column: str, key: str) -> str:
        values = [rows[name, column][key] for name in names if key in rows[name, column]]
        if not values:
            return ""
        return f"{geomean(values):.2f} (least {min(values):.2f})"

    def slower(column: str) -> str:
        ratios = [rows[n, column]["gflops"] / rows[n, "R1 5.3x"]["gflops"] for n in names]
        return f"{100 / geomean(ratios) - 100:+.0f} %"

    return [
        line(f"geometric mean over the {len(names)} k x k layers", "wanted", "seen"),
        "|---|---|---|",
        line("eta, R = 4", _WANTED["R4 5.3x"], mean("R4 5.3x", "eta")),
        line("eta, R = 1", "", mean("R1 5.3x", "eta")),
        line("eta, R = 4 at 10x", _WANTED["R4 10x"], mean("R4 10x", "eta")),
        line("over the best of ONNX Runtime and OpenVINO, R = 4", "0.85", mean("R4 5.3x", "eta_runtimes")),
        line("over the best unfused chain, R = 1", "1.00", mean("R1 5.3x", "speedup_over_best_chain")),
        line("time of unequal regions against R = 1 at equal FLOPs", "at most +5 %", slower("Runequal 5.3x")),
        line("time of four equal regions against R = 1 at equal FLOPs", "", slower("R4 5.3x")),
    ]


def networks(cases: list[dict]) -> list[str]:
    """A table a batch size."""
    lines = []
    for batch in dict.fromkeys(case["batch"] for case in cases):
        group = [case for case in cases if case["batch"] == batch and usable(case)]
        lines += [
            line(f"batch {batch}", "FLOPs", "parameters", "points", "ms: eager, compiled, AOT",
                 "faster than PyTorch's best", "eta", "faster than every runtime"),
            "|---" * 8 + "|",
            line("dense: " + ", ".join(group[0]["peers"]), "", "", "",
                 ", ".join(f"{ms:.2f}" for ms in group[0]["peers"].values()), "", "", ""),
        ]  # fmt: skip
        for case in group:
            own = ", ".join(f"{case[f'{way}_ms']:.2f}" for way in ("eager", "compiled", "aot"))
            fewer = f"{case['flop_reduction']:.2f}x fewer", f"{case['param_reduction']:.2f}x fewer"
            faster = f"{case['speedup_over_best_dense']:.2f}x", f"{case['eta']:.2f}", f"{case['speedup_over_all']:.2f}x"
            lines.append(line(case["name"], *fewer, f"{100 * case['difference']:+.2f}", own, *faster))
        lines.append("")
    return lines


def usable(case: dict | None) -> bool:
    return case is not None and "ms" in case


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__)
    parser.add_argument("file")
    with open(parser.parse_args(argv).file, encoding="utf-8") as file:
        data = json.load(file)
    head = data["header"]
    print(f"{head['machine']}, {head['threads']} threads, batch {head['batch']}, {head['peak_gflops']} GFLOP/s in")
    print(f"registers, commit {head['commit']}, {head['date']}\n")
    print("\n".join((networks if "way" in data["cases"][0] else layers)(data["cases"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
