"""A comparison of two models as text: the verdict first, then what it rests on."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..evaluation.comparison import ClassMetrics, Comparison, Interval, Metric
from ..evaluation.verdict import WORST_FIRST, Verdict

ROWS = 20  # of a table, at most
COLOURS = {"equivalent": "green", "worse": "red", "not enough data": "yellow"}


def show(comparison: Comparison) -> None:
    """Prints to standard output; of many classes and groups the worst, the rest is in the JSON."""
    console = Console(width=120)
    console.print(Text(f"{comparison.verdict}.", f"bold {COLOURS[comparison.answer]}"), soft_wrap=True)
    console.print(_metrics(comparison))
    same, test = _percents(comparison.agreement), comparison.mcnemar
    console.print(
        f"Same choice in {same} % of {comparison.images:,} images; {test.lost} are lost, {test.won} are won "
        f"(McNemar's exact p {test.p:.2g}).",
        highlight=False,
    )
    console.print(_classes(comparison))
    console.print(_verdicts(comparison))


def _metrics(comparison: Comparison) -> Table:
    table = _table(f"In %, with {_share(comparison.confidence)} intervals", "metric")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for metric in comparison.metrics:
        table.add_row(metric.name, *map(_percents, (metric.before, metric.after)), _percents(metric.change, "+"))
    return table


def _classes(comparison: Comparison) -> Table:
    table = _table("Of each class: after, and the interval of the change", "class", "images")
    for heading in ("precision", "recall", "F1", "AUC"):
        table.add_column(heading, justify="right")
    shown = sorted(comparison.per_class, key=_recall)[:ROWS]
    for one in comparison.per_class:
        if one in shown:
            table.add_row(escape(one.name), f"{one.images:,}", *map(_after, one.metrics))
    return _cut(table, len(comparison.per_class))


def _verdicts(comparison: Comparison) -> Table:
    bounds = f"one-sided {_share(comparison.confidence)} bounds"
    table = _table(f"Accuracy lost, points, with {bounds}, all parts together", "of", "images")
    for heading in ("lost", "bounds", "margin", "answer", "images needed"):
        table.add_column(heading, justify="left" if heading == "answer" else "right")
    overall, *parts = comparison.verdicts
    for one in (overall, *sorted(parts, key=lambda part: WORST_FIRST.index(part.answer))[:ROWS]):
        answer = Text(one.answer, COLOURS[one.answer])
        needed = f"{one.needed:,}" if one.needed else ""
        table.add_row(escape(one.scope), f"{one.images:,}", *_drop(one), f"{one.margin:g}", answer, needed)
    return _cut(table, len(parts))


def _table(title: str, *headings: str) -> Table:
    """Names are on the left, numbers on the right."""
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if heading == "images" else "left")
    return table


def _cut(table: Table, number: int) -> Table:
    if number > ROWS:
        table.caption = f"the worst {ROWS} of {number}; --json has all"
    return table


def _recall(one: ClassMetrics) -> float:
    """How much it has changed; classes without images come last."""
    return next((metric.change[0] for metric in one.metrics if metric.name == "recall"), 1.0)


def _drop(verdict: Verdict) -> tuple[str, str]:
    if not verdict.images:
        return "", ""
    return f"{verdict.drop:.2f}", f"{verdict.low:.2f} to {verdict.high:.2f}"


def _percents(interval: Interval, sign: str = "") -> str:
    if interval[0] != interval[0]:  # NaN
        return "-"
    value, low, high = (f"{100 * one:{sign}.2f}" for one in interval)
    return f"{value} ({low} to {high})"


def _after(metric: Metric) -> str:
    if metric.after[0] != metric.after[0]:
        return "-"
    return f"{100 * metric.after[0]:.2f} ({100 * metric.change[1]:+.2f}, {100 * metric.change[2]:+.2f})"


def _share(confidence: float) -> str:
    return f"{100 * confidence:g} %"
