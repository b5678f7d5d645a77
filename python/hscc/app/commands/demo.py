"""``hscc demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import Json, Seed, Threads, app, set_threads, write_json


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.json and the pictures.")] = Path("out/demo"),
    example: Annotated[
        Path | None, typer.Option(help="The example's folder; default: the one of this checkout.")
    ] = None,
    flops: Annotated[list[float], typer.Option(help="FLOP reductions; repeat for several.")] = [3, 6],  # noqa: B006
    calibration: Annotated[int, typer.Option(min=1, help="Unlabelled calibration images.")] = 256,
    test: Annotated[int, typer.Option(min=1, help="Test images.")] = 2000,
    threads: Threads = None,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Compresses the example network (synthetic brain MRI) and compares it with the dense one.

    Example: hscc demo --flops 3 --flops 6 --out out/demo
    """
    from .. import demo as demonstration

    set_threads(threads)
    result = demonstration.run(example or demonstration.EXAMPLE, out, flops, calibration, test, seed)
    _print_demo(result)
    files = [str(out / name) for name in ("report.html", "report.json", "regions.png", "ranks.png")]
    typer.echo(f"Wrote {', '.join(files[:-1])} and {files[-1]}.")
    write_json(json_file, result)


def _print_demo(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['data']}; {result['machine']['processor']}, {result['machine']['threads']} threads")
    models = result["models"]
    for heading in ("", *models):
        table.add_column(heading, justify="left" if heading == "" else "right")

    def row(label: str, text) -> None:
        table.add_row(label, *(text(values) for values in models.values()))

    row("accuracy (standard error), %", lambda m: f"{100 * m['accuracy']:.2f} ({100 * m['standard_error']:.2f})")
    row("macro F1", lambda m: f"{m['macro_f1']:.4f}")
    for i, name in enumerate(result["classes"]):
        row(f"F1 {name}", lambda m, i=i: f"{m['class_f1'][i]:.4f}")
    row("conv FLOPs, fewer", lambda m: f"{m['flop_reduction']:.2f}x")
    row("parameters", lambda m: f"{m['parameters']:,}")
    row("MB", lambda m: f"{m['bytes'] / 1e6:.2f}")
    for n in models["dense"]["latency_ms"]:
        row(f"latency, batch {n}, ms", lambda m, n=n: f"{m['latency_ms'][n]:.2f}")
        row(f"speed-up, batch {n}", lambda m, n=n: f"{m['speedup'][n]:.2f}x")
        row(f"conversion eta, batch {n}", lambda m, n=n: f"{m['conversion'][n]:.2f}")
    Console(width=120).print(table)
