"""The Markdown tables of docs/performance.md from result files: ``python -m bench.tables FILE.json [FILE.json ...]``.

Of several files of layers the first one's layers are listed, and the means of all of them side by side; files of whole
networks make one table.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .kernels.cases import LAYERS, SHORT
from .kernels.layers import geomean
from .kernels.peers import EAGER

Rows = dict[tuple[str, str], dict]  # by layer and "R4 5.3x"
PEERS = ("eager", "fp32", "int8")  # what whole networks are compared with, the best of each


def line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def by_case(cases: list[dict]) -> Rows:
    rows: Rows = {}
    for case in cases:
        layer, regions, _, reduction = case["name"].split("/")
        rows[layer, f"{regions} {reduction}"] = case
    return rows


def measured(rows: Rows) -> list[str]:
    """Layers with every case of the short list that the file has at all."""
    columns = {column for _, column in rows} & {f"R{regions} {reduction:g}x" for regions, reduction in SHORT}
    return [name for name in LAYERS if all(usable(rows.get((name, column))) for column in columns)]


def layers(rows: Rows) -> list[str]:
    """A row a layer."""
    columns = ["R1 5.3x", "R4 3x", "R4 5.3x", "R4 10x", "R4 20x", "Runequal 5.3x"]
    lines = [
        line("layer", "ms, R = 1", "ms, R = 4", "eta, R = 1", "R = 4, 3x", "R = 4, 5.3x", "R = 4, 10x", "R = 4, 20x",
             "unequal", "over ORT / OpenVINO, R = 4", "over the chain, R = 1"),
        "|---" * 11 + "|",
    ]  # fmt: skip
    for name in measured(rows):
        one, four = rows[name, "R1 5.3x"], rows[name, "R4 5.3x"]
        etas = (f"{rows[name, column]['eta']:.2f}" if (name, column) in rows else "" for column in columns)
        times = (f"{case['ms']:.3f}" for case in (one, four))
        runtimes = f"{four['eta_runtimes']:.2f}" if "eta_runtimes" in four else ""
        lines.append(line(name, *times, *etas, runtimes, f"{one['speedup_over_best_chain']:.2f}x"))
    return lines


def means(files: dict[str, Rows]) -> list[str]:
    """A row a geometric mean over the k x k layers, a column a file."""

    def mean(rows: Rows, column: str, key: str) -> str:
        values = [rows[name, column][key] for name in wide(rows) if key in rows.get((name, column), ())]
        return f"{geomean(values):.2f} (least {min(values):.2f})" if values else ""

    def slower(rows: Rows, column: str) -> str:
        ratios = [rows[n, column]["gflops"] / rows[n, "R1 5.3x"]["gflops"] for n in wide(rows)]
        return f"{100 / geomean(ratios) - 100:+.1f} %"

    def wide(rows: Rows) -> list[str]:
        return [name for name in measured(rows) if LAYERS[name].kernel > 1]

    table = [
        ("eta, R = 4", "0.90, least 0.75", mean, "R4 5.3x", "eta"),
        ("eta, R = 1", "", mean, "R1 5.3x", "eta"),
        ("eta, R = 4 at 3x", "0.90, least 0.75", mean, "R4 3x", "eta"),
        ("eta, R = 4 at 10x", "0.90, least 0.75", mean, "R4 10x", "eta"),
        ("eta, R = 4 at 20x", "0.90, least 0.75", mean, "R4 20x", "eta"),
        ("a plain copy of the maps as eta, R = 4 at 20x", "", mean, "R4 20x", "eta_copy"),
        ("over the best of ONNX Runtime and OpenVINO, R = 4", "0.85", mean, "R4 5.3x", "eta_runtimes"),
        ("over the best unfused chain, R = 1", "1.00", mean, "R1 5.3x", "speedup_over_best_chain"),
        ("time of unequal regions against R = 1 at equal FLOPs", "at most +5 %", slower, "Runequal 5.3x"),
        ("time of four equal regions against R = 1 at equal FLOPs", "", slower, "R4 5.3x"),
    ]
    return [
        line("geometric mean over the k x k layers", "wanted", *files),
        "|---" * (2 + len(files)) + "|",
        line("layers", "", *(len(wide(rows)) for rows in files.values())),
        *(line(title, wanted, *(f(rows, *of) for rows in files.values())) for title, wanted, f, *of in table),
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
            own = ", ".join(f"{case[f'{way}_ms']:.2f}" for way in ("eager", "compiled", "aot") if f"{way}_ms" in case)
            fewer = f"{case['flop_reduction']:.2f}x fewer", f"{case['param_reduction']:.2f}x fewer"
            faster = f"{case['speedup_over_best_dense']:.2f}x", f"{case['eta']:.2f}", f"{case['speedup_over_all']:.2f}x"
            lines.append(line(case["name"], *fewer, f"{100 * case['difference']:+.2f}", own, *faster))
        lines.append("")
    return lines


def wholes(cases: list[dict]) -> list[str]:
    """A row for each compressed network, by its fastest way, beside the fastest dense way in float32 and in 8 bits.

    Errors are relative to the dense output and, in brackets, to how far that moves from image to image.
    """
    lines = [
        line("network", "batch", "threads", "FLOPs", "error ours / int8", "ms: ours", "eager", "fp32", "int8",
             "faster than eager", "fp32", "int8", "eta"),
        "|---" * 13 + "|",
    ]  # fmt: skip
    for key in dict.fromkeys((case["network"], case["batch"], case["threads"]) for case in cases):
        group = [c for c in cases if (c["network"], c["batch"], c["threads"]) == key and usable(c)]
        kinds = {kind: [c for c in group if c["kind"] == kind] for kind in ("fp32", "int8", "ours")}
        kinds["eager"] = [case for case in kinds["fp32"] if case["name"] in EAGER]
        best = {kind: min(of, key=lambda case: case["ms"]) for kind, of in kinds.items() if of}
        peers = [f"{best[kind]['ms']:.2f} {best[kind]['name']}" if kind in best else "" for kind in PEERS]
        for name in dict.fromkeys(case["name"].rpartition(" ")[0] for case in kinds["ours"]):
            own = min((c for c in kinds["ours"] if c["name"].rpartition(" ")[0] == name), key=lambda case: case["ms"])
            errors = " / ".join(
                f"{case['error']:.2f} ({case['error_images']:.2f})" for case in (own, best.get("int8")) if case
            )
            faster = [f"{own[f'over_{kind}']:.2f}x" if kind in best else "" for kind in PEERS]
            ours = f"{own['ms']:.2f} {own['name'].partition(' ')[2]}"  # how, and whether in int8
            fewer = f"{own['flop_reduction']:.2f}x fewer"
            lines.append(line(*key, fewer, errors, ours, *peers, *faster, f"{own['eta']:.2f}"))
    return lines


def usable(case: dict | None) -> bool:
    return case is not None and "ms" in case


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    files = parser.parse_args(argv).files
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for file, head in zip(files, (result["header"] for result in results), strict=True):
        print(f"{file.stem}: {head['machine']}, {head['threads']} threads, batch {head['batch']}, ", end="")
        print(f"{head['peak_gflops']} GFLOP/s in registers, commit {head['commit']}, {head['date']}")
    print()
    if "kind" in results[0]["cases"][0]:
        print("\n".join(wholes([case for result in results for case in result["cases"]])))
        return 0
    if "way" in results[0]["cases"][0]:
        print("\n".join(row for result in results for row in networks(result["cases"])))
        return 0
    rows = {file.stem: by_case(result["cases"]) for file, result in zip(files, results, strict=True)}
    print("\n".join([*layers(rows[files[0].stem]), "", *means(rows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
