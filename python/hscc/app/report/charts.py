"""Figures as inline SVG: text stays text, in the page's font, and colours are the page's CSS variables."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from markupsafe import Markup

WIDTH = 4.7  # inches, 338 points: on a phone a point is about a pixel
CLASSES = 20  # rows of a figure, at most
COLOURS = {  # stand-ins that matplotlib writes, and the CSS variables that take their place
    **{"ink": "#010101", "muted": "#010102", "line": "#010103", "accent": "#010104"},
    **{f"series{i}": f"#01020{i}" for i in range(1, 6)},
}
SERIES, MARKERS = ("accent", *(name for name in COLOURS if name.startswith("series"))), "osD^vP"
RC = {
    **{"svg.fonttype": "none", "text.parse_math": False, "font.size": 10.5, "axes.spines.top": False},
    **{"axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.linewidth": 0.6},
    **dict.fromkeys(("text.color", "axes.labelcolor"), COLOURS["ink"]),
    **dict.fromkeys(("xtick.color", "ytick.color"), COLOURS["muted"]),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), COLOURS["line"]),
    **{"xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0},
    **{"legend.frameon": False, "legend.fontsize": 10, "errorbar.capsize": 0, "axes.labelsize": 10.5},
}


def pareto(points: Sequence[Mapping], by: str, label: str) -> Markup:
    """Accuracy lost (points, with standard errors) against ``by``, a key of the points; each method has a colour, and a
    line through those of its points that no other of them betters here.

    hscc's is the page's accent; the point that is ``chosen`` has a ring.
    """
    methods = sorted(dict.fromkeys(point["method"] for point in points), key=lambda method: method != "hscc")
    lost = [-100 * point["difference"] for point in points]
    with _figure(3.4) as (figure, axes):
        axes.axhline(0, color=COLOURS["muted"], linewidth=0.8)
        for index, method in enumerate(methods):
            own = sorted((p for p in points if p["method"] == method), key=lambda point: point[by])
            colour, marker = COLOURS[SERIES[index % len(SERIES)]], MARKERS[index % len(MARKERS)]
            best = _front(own, by)
            for several, style in (
                (best, {"fmt": f"{marker}-", "markersize": 5.5, "linewidth": 1.2, "label": method}),
                ([p for p in own if p not in best], {"fmt": marker, "markersize": 3.5, "alpha": 0.45}),
            ):
                axes.errorbar(
                    [point[by] for point in several],
                    [-100 * point["difference"] for point in several],
                    [100 * (point.get("difference_standard_error") or 0) for point in several],
                    color=colour,
                    **style,
                )
        for point in points:
            if point.get("chosen"):
                place = (point[by], -100 * point["difference"])
                axes.plot(*place, "o", markersize=13, markerfacecolor="none", markeredgecolor=COLOURS["ink"])
                right = point[by] > sum(other[by] for other in points) / len(points)
                side = {"xytext": (-9, -9), "ha": "right"} if right else {"xytext": (9, -9), "ha": "left"}
                axes.annotate("chosen", place, textcoords="offset points", va="top", **side)  # towards the middle
        _plain_log(axes.xaxis, [point[by] for point in points])
        if max(lost) > 5:  # below a point the axis is linear: ours and far worse ones fit on it
            axes.set_yscale("symlog", linthresh=1)
            _plain_ticks(
                axes.yaxis, [tick for tick in (-5, -1, 0, 1, 2, 5, 10, 20, 50, 100) if tick <= 1.3 * max(lost)]
            )
        axes.margins(x=0.1, y=0.2)
        axes.invert_yaxis()  # up is better
        axes.set(xlabel=label, ylabel="accuracy lost, points")
        if len(methods) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, columnspacing=1, handletextpad=0.4)
        return _svg(figure, f"Accuracy lost against {label}, of {', '.join(methods)}")


def _front(points: Sequence[Mapping], by: str) -> list[Mapping]:
    """Those that no other betters in ``by`` and accuracy: less is better of latencies, more of reductions."""
    sign = -1 if by == "latency_ms" else 1
    goods = [(sign * point[by], point["difference"]) for point in points]
    return [
        point
        for point, own in zip(points, goods, strict=True)
        if not any(a >= own[0] and b >= own[1] and (a, b) != own for a, b in goods)
    ]


def changes(rows: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> Markup:
    """Of each class how recall and F1 have changed: (class, {metric: (value, low, high)}), shares."""
    with _figure(0.9 + 0.42 * len(rows)) as (figure, axes):
        axes.axvline(0, color=COLOURS["muted"], linewidth=0.8)
        for index, metric in enumerate(("recall", "F1")):
            own = [
                (row + 0.3 * index - 0.15, values[metric]) for row, (_, values) in enumerate(rows) if metric in values
            ]
            places, values = [place for place, _ in own], [[100 * one for one in three] for _, three in own]
            reach = [[value - low for value, low, _ in values], [high - value for value, _, high in values]]
            style = {"fmt": MARKERS[index], "markersize": 5, "linewidth": 1.2, "label": metric}
            axes.errorbar([value for value, *_ in values], places, xerr=reach, color=COLOURS[SERIES[index]], **style)
        axes.set_yticks(range(len(rows)), [_short(name) for name, _ in rows], color=COLOURS["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="change, points")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, handletextpad=0.2)
        return _svg(figure, "Changes of recall and F1 of each class, with intervals")


@contextmanager
def _figure(height: float) -> Iterator[tuple]:
    """A figure of that many inches and its axes; no window, no state shared with the user's own figures."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the page needs matplotlib: pip install 'hscc[report]'") from error
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **RC}):
        figure = Figure((WIDTH, height), layout="tight")
        yield figure, figure.add_subplot()


def _plain_log(axis, values: Sequence[float]) -> None:
    """Logarithmic where values differ much, with ticks that are read as they stand."""
    if min(values) <= 0 or max(values) / min(values) < 4:
        return
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    steps = [digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5)]
    _plain_ticks(axis, [step for step in steps if min(values) / 1.3 <= step <= 1.3 * max(values)])


def _plain_ticks(axis, ticks: Sequence[float]) -> None:
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def _short(name: str, most: int = 22) -> str:
    """The end of a long name: with layers it is what differs."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _svg(figure, label: str) -> Markup:
    """The figure for the inside of a page, which gives it font, colours and width; ``label`` is read aloud."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r"font: (?:\w+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for name, stand_in in COLOURS.items():
        text = text.replace(stand_in, f"var(--{name})")
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)[0]
    opening = Markup('<svg class="chart" xmlns:xlink="http://www.w3.org/1999/xlink" {} role="img" aria-label="{}">')
    return opening.format(Markup(box), label) + Markup(rest.replace("xlink:href", "href"))
