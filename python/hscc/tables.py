"""The report as a person reads it in a terminal."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

Report = LayerReport = Any  # of report.py, which imports this


def told(report: Report) -> str:
    """Tables of layers and, where an accuracy was asked for, of trials; then a line for each thing else."""
    console = Console(width=120)
    with console.capture() as capture:
        console.print(_layers(report))
        if report.trials:
            console.print(_trials(report))
        for line in _lines(report):
            console.print(line, markup=False, highlight=False)
    return capture.get()


def _layers(report: Report) -> Table:
    timed, alone = report.latency_error is not None, any(layer.alone is not None for layer in report.layers)
    more = [*(["alone"] if alone else []), *(["ms"] if timed else [])]
    table = Table("layer", "regions", "ranks", "MFLOP", "fewer", "parameters", "error", *more)

    def own(layer: LayerReport) -> list[str]:
        return [
            *(["" if layer.alone is None else f"{layer.alone:.5f}"] if alone else []),
            *([f"{layer.dense_ms:.3f} > {layer.ms:.3f}"] if timed else []),
        ]

    for layer in report.layers:
        table.add_row(
            layer.name,
            (f"{len(layer.ranks)} share {layer.rows}" if layer.rows else str(len(layer.ranks) or "-"))
            + (f" of {layer.squeeze}" if layer.squeeze else "")
            + (f" in {layer.groups} groups" if layer.groups > 1 else ""),
            layer.reason or _ranks(layer),
            f"{layer.dense_flops / 1e6:.1f} > {layer.flops / 1e6:.1f}",
            f"{layer.dense_flops / max(layer.flops, 1):.2f}x",
            f"{layer.dense_parameters} > {layer.parameters}",
            f"{layer.error:.4f}",
            *own(layer),
        )
    table.add_section()
    table.add_row(
        "all",
        "",
        "",
        f"{report.dense_flops / 1e6:.1f} > {report.flops / 1e6:.1f}",
        f"{report.flop_reduction:.2f}x",
        f"{report.dense_parameters} > {report.parameters}",
        "",
        *([""] if alone else []),
        *([f"{report.dense_ms:.3f} > {report.ms:.3f}"] if timed else []),
    )
    return table


def _ranks(layer: LayerReport) -> str:
    """Of each region and cluster; of a grouped layer how many regions have which."""
    told = [" ".join("dense" if r is None else str(r) for r in region) for region in layer.ranks]
    if layer.groups == 1:
        return "; ".join(told)
    return "; ".join(f"{count} x {ranks}" for ranks, count in sorted(Counter(told).items(), key=lambda one: -one[1]))


def _trials(report: Report) -> Table:
    timed = report.dense_call_ms is not None
    table = Table("FLOPs, fewer", "parameters, fewer", "points lost", "at most", "holds", *(["ms"] if timed else []))
    for trial in report.trials:
        table.add_row(
            f"{trial.flop_reduction:.2f}x",
            f"{trial.parameter_reduction:.2f}x",
            f"{trial.drop:.2f}",
            f"{trial.bound:.2f}",
            ("yes" if trial.holds else "no") + (", taken" if trial.chosen else ""),
            *(["" if trial.ms is None else f"{trial.ms:.2f}"] if timed else []),
        )
    return table


def _lines(report: Report) -> list[str]:
    size = f"{report.dense_bytes / 1e6:.2f} > {report.bytes / 1e6:.2f} MB ({report.byte_reduction:.2f}x)"
    if report.latency_error is not None:
        size += f", {report.speedup:.2f}x faster (predicted; median error {report.latency_error:.0%})"
    if report.measured_speedup:
        size += f", {report.measured_speedup:.2f}x measured"
    lines = [f"convolutions: {size}"]
    if (whole := report.whole) is not None:
        dense = ", ".join(f"{name} {ms:.2f}" for name, ms in sorted(whole.dense_ms.items(), key=lambda one: one[1]))
        measured = f", {whole.measured_ms:.2f} measured" if whole.measured_ms else ""
        lines.append(
            f"whole network, {whole.images} image{'s' * (whole.images > 1)}, ms: dense {dense}; compressed "
            f"{whole.predicted_ms:.2f} predicted{measured}{' in float' if report.int8 else ''}, {whole.speedup:.2f}x"
        )
    if (trial := report.chosen) is not None:
        told = f"{trial.samples} samples: dense {100 * report.dense_score:.2f}, {trial.drop:.2f} points lost, at most "
        told += f"{trial.bound:.2f}"
        if trial.ms is not None:
            told += f"; a call takes {report.dense_call_ms:.2f} > {trial.ms:.2f} ms"
        lines.append(told)
    if report.int8:
        lines.append(
            f"in int8: {len(report.int8)} layers; they miss up to {max(report.int8.values()):.2%} of their energy"
        )
    if report.portable:
        lines.append("portable: an export is plain convolutions")
    if report.refitted:
        lines.append(f"refitted to them: {', '.join(report.refitted)}")
    if report.seconds:
        longest = sorted(report.seconds.items(), key=lambda stage: -stage[1])
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in longest if seconds >= 0.05)
        lines.append(f"took {sum(report.seconds.values()):.1f} s" + (f": {stages}" if stages else ""))
    return [*lines, *(f"warning: {warning}" for warning in report.warnings)]


def quantised(report: Any) -> str:
    """Of a ``QuantizeReport``: a row a layer."""
    table = Table("layer", "first stage", "error")
    for name in (*report.errors, *(report.stays.keys() - report.errors.keys())):
        error = report.errors.get(name)
        table.add_row(name, report.stays.get(name, "int8"), "" if error is None else f"{error:.6f}")
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
