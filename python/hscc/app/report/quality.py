"""What is shown of a comparison (``Comparison.to_dict()``): verdicts, metrics, classes, confusions, disagreements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...evaluation.verdict import WORST_FIRST
from . import charts, pictures

SIGNS = {"equivalent": ("good", "✓"), "worse": ("bad", "✗"), "not enough data": ("unsure", "?")}
SHOWN = 12  # disagreements
NONE = "–"


def verdict(comparison: Mapping[str, Any]) -> dict:
    """Answers in short, the sentence, a row a scope (behind the overall one the worst first), and metrics."""
    overall, *parts = comparison["verdicts"]
    parts = sorted(parts, key=lambda part: WORST_FIRST.index(part["answer"]))
    counts = {answer: sum(part["answer"] == answer for part in parts) for answer in WORST_FIRST[:2]}
    same, test = comparison["agreement"], comparison["mcnemar"]
    return {
        "sentence": comparison["verdict"],
        "answers": [(SIGNS[overall["answer"]], f"{overall['answer']} overall")]
        + [(SIGNS[answer], f"{answer} in {n} of {len(parts)} parts") for answer, n in counts.items() if n],
        "rows": [_scope(one) for one in (overall, *parts[: charts.CLASSES])],
        "rest": max(len(parts) - charts.CLASSES, 0),
        "metrics": [
            (m["name"], percent(m["before"]), percent(m["after"]), percent(m["change"], "+"))
            for m in comparison["metrics"]
        ],
        "images": f"{comparison['images']:,}",
        "confidence": f"{100 * comparison['confidence']:g} %",
        "margin": f"{comparison['margin']:g}",
        "agreement": percent(same),
        "mcnemar": (f"{test['lost']:,}", f"{test['won']:,}", f"{test['p']:.2g}"),
    }


def classes(comparison: Mapping[str, Any]) -> dict | None:
    """Figure and table of the classes that changed most, and the confusions; None without classes that have images."""
    there = [one for one in comparison["per_class"] if one["metrics"]]
    if not there:
        return None
    changes = {
        one["class"]: {m["name"]: m["change"] for m in one["metrics"] if None not in m["change"]} for one in there
    }
    if len(there) > charts.CLASSES:
        there = sorted(there, key=lambda one: -max([0, *(abs(c[0]) for c in changes[one["class"]].values())]))
        there = there[: charts.CLASSES]
    return {
        "figure": charts.changes([(one["class"], changes[one["class"]]) for one in there]),
        "tables": [_metrics(there, ("recall", "F1")), _metrics(there, ("precision", "AUC"))],
        "shown": len(there),
        "rest": len(comparison["per_class"]) - len(there),
        **_confusions(comparison),
    }


def disagreements(comparison: Mapping[str, Any], images: Mapping[int, np.ndarray] | Sequence[np.ndarray]) -> list[dict]:
    """Of the images on which the models disagree the first 12: picture, names of label and answers, confidence."""
    names = comparison["classes"]
    return [
        {
            "picture": pictures.thumbnail(images[one["index"]]),
            "index": one["index"],
            "label": names[one["label"]],
            "before": names[one["before"]],
            "after": names[one["after"]],
            "won": one["after"] == one["label"],
            "lost": one["before"] == one["label"],
            "confidence": f"{100 * one['confidence']:.0f} %",
        }
        for one in comparison["disagreements"][:SHOWN]
    ]


def percent(values: Sequence[float | None], sign: str = "") -> str:
    """A share, or a share with its interval, in %; a dash where there is none, or NaN."""
    if values[0] is None or values[0] != values[0]:
        return NONE
    value, *reach = (NONE if one is None else f"{100 * one:{sign}.2f}".replace("-", "−") for one in values)
    return f"{value} ({reach[0]} to {reach[1]})" if reach else value


def _metrics(there: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict:
    """Rows of (class, images, cells), a cell (value after, change) a metric."""
    rows = []
    for one in there:
        own = {metric["name"]: metric for metric in one["metrics"]}
        cells = [(percent(own[name]["after"][:1]), percent(own[name]["change"], "+")) for name in names]
        rows.append((one["class"], f"{one['images']:,}", cells))
    return {"names": names, "rows": rows}


def _scope(one: Mapping[str, Any]) -> dict:
    numbers = [NONE if one[k] is None else f"{one[k]:.2f}".replace("-", "−") for k in ("drop", "low", "high")]
    return {
        "scope": one["scope"],
        "images": f"{one['images']:,}",
        "drop": numbers[0],
        "bounds": f"{numbers[1]} to {numbers[2]}",
        "margin": f"{one['margin']:g}",
        "answer": one["answer"],
        "sign": SIGNS[one["answer"]],
        "needed": f"{one['needed']:,}" if one["needed"] else "",
    }


def _confusions(comparison: Mapping[str, Any]) -> dict:
    """Both matrices as counts with their shares of the row; of many classes those whose rows changed most."""
    before, after = (np.array(comparison[f"confusion_{when}"]) for when in ("before", "after"))
    chosen = np.arange(len(before))
    if len(chosen) > charts.CLASSES:
        chosen = np.sort(np.argsort(-np.abs(after - before).sum(1), kind="stable")[: charts.CLASSES])
    shares = [matrix / np.maximum(matrix.sum(1, keepdims=True), 1) for matrix in (before, after)]
    cells = [
        [[(int(matrix[r, c]), round(float(share[r, c]), 3)) for c in chosen] for r in chosen]
        for matrix, share in zip((before, after), shares, strict=True)
    ]
    return {"confusions": cells, "confused": [comparison["classes"][c] for c in chosen]}
