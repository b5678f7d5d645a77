"""The tables of docs/guard.md, from the cases of a result file."""

from __future__ import annotations

import re

from ..tables import line

TITLES = {"foreign": "clearly foreign", "unseen": "not looked at when the guard was chosen", "near": "near"}
METHODS = ("maximum softmax", "energy", "ReAct energy")


def page(text: str, cases: list[dict]) -> str:
    """A page with the tables between ``<!-- NAME -->`` and ``<!-- end -->`` replaced; ValueError without the marks."""
    for name, rows in (("summary", summary(cases)), ("kinds", kinds(cases))):
        table = "\n".join(rows)
        place = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = place.subn(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"page: got {count} places for {name!r}, expected one")
    return text


def title(case: dict) -> str:
    return f"{case['network']}, {'dense' if case['reduction'] == 1 else format(case['reduction'], 'g') + 'x'}"


def summary(cases: list[dict]) -> list[str]:
    """A row a network."""
    lines = [
        line("network", "least AUROC, clearly foreign", "without gamma", "false alarms at 5 %",
             "6 draws of 512", "6 draws of 128", "ms, batch 1", "the guard adds", "batch 32"),
        "|---" * 9 + "|",
    ]  # fmt: skip
    for case in cases:
        clear = {kind: row["auroc"]["guard"] for kind, row in case["kinds"].items() if row["group"] == "foreign"}
        steady = min(value for kind, value in clear.items() if not kind.startswith("gamma"))
        one, many = case["latency"]["1"], case["latency"]["32"]
        drawn = (case["draws"][count] for count in ("512", "128"))
        spans = (f"{100 * min(d):.1f} to {100 * max(d):.1f} %, mean {100 * sum(d) / len(d):.1f} %" for d in drawn)
        lines.append(
            line(title(case), f"{min(clear.values()):.3f} ({min(clear, key=clear.get)})", f"{steady:.3f}",
                 f"{100 * case['false_alarms']:.1f} % of {case['new']:,}", *spans, f"{one['model']:.2f}",
                 f"{100 * one['share']:.1f} %", f"{100 * many['share']:.1f} %")
        )  # fmt: skip
    return lines


def kinds(cases: list[dict]) -> list[str]:
    """A table a compressed network: AUROC of the guard beside its baselines."""
    lines = []
    for case in cases:
        if case["reduction"] == 1:
            continue
        usual = f"{100 * case['accuracy']:.1f} %"
        lines += [
            f"**{title(case)}** (accuracy on new images {usual})",
            "",
            line("images", "guard", *METHODS, "flagged", "accuracy"),
            "|---" * (4 + len(METHODS)) + "|",
        ]
        for group, heading in TITLES.items():
            lines.append(line(f"*{heading}*", *[""] * (3 + len(METHODS))))
            for kind, row in case["kinds"].items():
                if row["group"] == group:
                    values = (f"{row['auroc'][method]:.3f}" for method in ("guard", *METHODS))
                    accuracy = "" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
                    lines.append(line(kind, *values, f"{100 * row['flagged']:.1f} %", accuracy))
        lines.append("")
    return lines
