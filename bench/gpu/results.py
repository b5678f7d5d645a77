"""Results of the GPU report: rows, their table and picture, and the file that is written after every case."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean
from typing import NamedTuple

from .roofline import Machine, Work

COLUMNS = ("case", "fewer FLOPs", "best dense ms", "chain ms", "ours ms", "speed-up", "eta", "floor ms", "of floor")


class Row(NamedTuple):
    """A case that passed its gate.

    ms: median milliseconds of each call; those named "... dense", "... chain" and "ours ..." are compared.
    failed: peers that could not run, with the reason. group, work: None where there is no mean to take, no floor, as
    for a whole network.
    """

    name: str
    group: str | None
    reduction: float
    error_ratio: float
    ms: dict[str, float]
    failed: dict[str, str]
    work: Work | None = None

    def best(self, kind: str) -> float | None:
        """Least milliseconds of a kind of call ("ours", "dense", "chain"); None where none ran."""
        return min((ms for name, ms in self.ms.items() if kind in name.split()), default=None)

    @property
    def speedup(self) -> float:
        return self.best("dense") / self.best("ours")

    @property
    def eta(self) -> float:
        """The share of the FLOPs saved that became time saved."""
        return self.speedup / self.reduction

    @classmethod
    def of(
        cls, name: str, group: str | None, reduction: float, error: float, ms: dict, failed: dict, work: Work | None
    ) -> Row | str:
        """The row, or a sentence that says why there is no speed-up to show."""
        if not error <= 1:
            return f"wrong result, error ratio {error:.3g}"
        row = cls(name, group, reduction, error, ms, failed, work)
        if row.best("ours") is None or row.best("dense") is None:
            return "; ".join(f"{call}: {reason}" for call, reason in failed.items())
        return row


@dataclass
class Report:
    """What is known so far. refused: cases without a speed-up, with the reason. steps: whether each command passed."""

    header: dict[str, str | int]
    machine: Machine | None = None
    rows: list[Row] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    steps: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path, header: dict[str, str | int]) -> Report:
        """An empty report, or the one in the folder; ValueError when that is of another machine or batch."""
        path = out / "report.json"
        if not path.exists():
            return cls(header)
        stored = json.loads(path.read_text())
        if stored["header"] != header:
            raise ValueError(f"{path}: got results of {stored['header']}, expected of {header}; take another --out")
        rows = [Row(*(row[name] for name in Row._fields)) for row in stored["rows"]]
        rows = [row._replace(work=row.work and Work(**row.work)) for row in rows]
        machine = stored["machine"] and Machine(**stored["machine"])
        return cls(header, machine, rows, stored["refused"], stored["steps"])

    def knows(self, name: str) -> bool:
        return name in self.refused or any(row.name == name for row in self.rows)

    def add(self, name: str, result: Row | str) -> None:
        if isinstance(result, Row):
            self.rows.append(result)
        else:
            self.refused[name] = result

    def lines(self) -> list[str]:
        """The report in Markdown."""
        head = [", ".join(f"{key} {value}" for key, value in self.header.items())]
        if self.machine:
            rates = self.machine.bytes_per_s / 1e12, self.machine.flops_per_s / 1e12
            head.append("copy {:.2f} TB/s, bf16 products {:.0f} TFLOP/s".format(*rates))
        head += [f"{name}: {'passed' if passed else 'FAILED'}" for name, passed in self.steps.items()]
        head += [f"refused: {name}: {reason}" for name, reason in self.refused.items()]
        head += [f"missing: {row.name}, {call}: {reason}" for row in self.rows for call, reason in row.failed.items()]
        return [
            *(f"- {line}" for line in head),
            "",
            *means(self.rows, self.machine),
            "",
            *table(self.rows, self.machine),
        ]

    def save(self, out: Path) -> None:
        """Writes report.json, report.md and, where matplotlib is installed, report.png."""
        records = [
            {**row._asdict(), "work": row.work and row.work._asdict(), "speedup": row.speedup, "eta": row.eta}
            for row in self.rows
        ]
        machine = self.machine and self.machine._asdict()
        values = {"header": self.header, "machine": machine, "steps": self.steps, "rows": records}
        partial = out / "report.json.part"  # a call cut short here leaves the last whole file
        partial.write_text(json.dumps({**values, "refused": self.refused}, indent=1) + "\n")
        partial.replace(out / "report.json")
        (out / "report.md").write_text("\n".join(self.lines()) + "\n")
        if self.rows and importlib.util.find_spec("matplotlib"):
            picture(self.rows, out / "report.png")


def means(rows: Sequence[Row], machine: Machine | None) -> list[str]:
    """Markdown lines: geometric means of each group, the least speed-up and the most time over the floor."""
    columns = ("group", "layers", "speed-up", "least", "eta", "over the chain", "times the floor", "most")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for group in dict.fromkeys(row.group for row in rows if row.group):
        members = [row for row in rows if row.group == group]
        speedups = [row.speedup for row in members]
        chain = [row.best("chain") / row.best("ours") for row in members if row.best("chain")]
        over = [row.best("ours") / 1e3 / row.work.floor(machine) for row in members if machine and row.work]
        numbers = [geometric_mean(speedups), min(speedups), geometric_mean([row.eta for row in members])]
        numbers += [geometric_mean(chain) if chain else math.nan]
        numbers += [geometric_mean(over), max(over)] if over else [math.nan] * 2
        lines.append(f"| {group} | {len(members)} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |")
    return lines


def table(rows: Sequence[Row], machine: Machine | None) -> list[str]:
    """Markdown lines; "of floor" is the share of the roofline that our time reaches."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        ours, chain = row.best("ours"), row.best("chain")
        floor = row.work.floor(machine) * 1e3 if row.work and machine else None
        cells = (
            *(
                row.name,
                f"{row.reduction:.2f}",
                f"{row.best('dense'):.4f}",
                f"{chain:.4f}" if chain else "",
                f"{ours:.4f}",
            ),
            *(f"{row.speedup:.2f}", f"{row.eta:.2f}"),
            *((f"{floor:.4f}", f"{floor / ours:.0%}") if floor else ("", "")),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def picture(rows: Sequence[Row], path: Path) -> None:
    """Speed-up over the best dense peer against FLOP reduction; the diagonal is eta = 1."""
    from matplotlib.figure import Figure

    axes = (figure := Figure((7, 5))).subplots()
    for row in rows:
        axes.plot(row.reduction, row.speedup, "o", color="tab:blue")
        axes.annotate(row.name.split("/")[0], (row.reduction, row.speedup), fontsize=6)
    end = max(row.reduction for row in rows)
    axes.plot((1, end), (1, end), "--", color="gray", label="all FLOPs saved become time saved")
    axes.set(xlabel="fewer FLOPs", ylabel="speed-up over the best dense convolution", xscale="log", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")
