"""The points of a sweep as a table: the front first, then what it betters."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ..study.points import Point


def show(points: Sequence[Point]) -> None:
    """Prints to standard output: the front, by speed; below it the others; last what was refused."""
    console = Console(width=120)
    known = sorted((point for point in points if point.refused is None), key=lambda point: point.speedup)
    if known:
        dense = known[0]
        console.print(
            f"Dense: {100 * dense.dense_score:.2f} % of {dense.samples:,} samples. Points are of that score, 'at most' "
            "with 95 % confidence, of each alone; ms is one call, faster than the dense one in the same turns.",
            highlight=False,
        )
    for title, own in (
        ("The front: no other is as good in accuracy, FLOPs, parameters and time", [p for p in known if p.on_front]),
        ("Bettered by one of those", [p for p in known if not p.on_front]),
    ):
        if own:
            console.print(_table(title, own))
    for point in points:
        if point.refused is not None:
            console.print(f"{point.setting.name}: {point.refused}", highlight=False)


def _table(title: str, points: Sequence[Point]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    table.add_column("structure")
    for heading in ("budget", "FLOPs", "numbers", "lost, points", "at most", "ms", "faster", "eta"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        own = point.setting
        table.add_row(
            f"{own.method}{', picked' if point.chosen else ''}",
            f"{own.regions} x {own.clusters}, {own.rule}" if own.method == "hscc" else "",
            f"{own.budget:g}" + ("" if own.rule == "energy" else "x"),
            f"{point.flop_reduction:.2f}x",
            f"{point.parameter_reduction:.2f}x",
            f"{-100 * point.difference:.2f} ± {100 * point.difference_standard_error:.2f}",
            f"{100 * point.worst:.2f}",
            f"{point.latency_ms:.2f}",
            f"{point.speedup:.2f}x",
            f"{point.speedup / point.flop_reduction:.2f}",
            style="bold" if point.chosen else None,
        )
    return table
