"""The Markdown table of a result file of this bench."""

from __future__ import annotations

from ..tables import line


def lines(rows: list[dict]) -> list[str]:
    """A row for each load and model."""
    found = [
        line("load", "model", "images/s", "of the bare model", "p50 ms", "p95 ms", "p99 ms", "refused"),
        "|---" * 8 + "|",
    ]
    for case in rows:
        load = f"{case['level']:g} clients" if case["load"] == "closed" else f"{case['level']:g} requests/s"
        share = f"{100 * case['share']:.0f} %" if "share" in case else ""
        times = ("" if case[name] is None else f"{case[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms"))
        refused = ", ".join(f"{count} {name}" for name, count in case["refused"].items())
        found.append(line(load, case["name"], f"{case['images_per_s']:.1f}", share, *times, refused))
    return found
