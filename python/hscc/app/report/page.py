"""The page: what goes on it, rendered and written."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..._version import __version__
from ...report import Report
from ...search.latency import processor
from . import charts, layers, pictures, quality, times

POINT = ("method", "flop_reduction", "difference")  # what every point has
Images = Mapping[int, np.ndarray] | Sequence[np.ndarray]


@dataclass(frozen=True)
class Material:
    """What a page is made from; a section whose material is missing is left out.

    Args:
        dense, model: the network before and after, both in evaluation mode, on one device.
        report: what :func:`hscc.compress_` gave, or :func:`hscc.load_`.
        calibration: preprocessed batches, each (n, C, H, W), or one; the first 32 images are looked at.
        images: pictures of the compared images, uint8 (n, H, W[, 3]), or those by index.
        comparison: as of :meth:`hscc.Comparison.to_dict`.
        points: compressions that were tried, dicts: ``method``, ``flop_reduction``, ``difference`` (share of accuracy,
            negative where lost), and optionally ``difference_standard_error``, ``latency_ms``, ``chosen``.
        latency: measured ms of one forward pass, dense and compressed, and the number of its images.
        title: what has been compressed. command: what makes the page again.
    """

    dense: nn.Module
    model: nn.Module
    report: Report | None = None
    calibration: Iterable[Tensor] | Tensor = ()
    images: Images | None = None
    comparison: Mapping[str, Any] | None = None
    points: Sequence[Mapping[str, Any]] = ()
    latency: tuple[float, float, int] | None = None
    title: str = "a model"
    command: str | None = None


def render(material: Material) -> str:
    """The HTML, which loads nothing from anywhere; times layers for 2 s.

    Raises ValueError for models in training mode and points without numbers, ImportError without matplotlib or Jinja2.
    """
    try:
        from jinja2 import Environment, PackageLoader
    except ImportError as error:
        raise ImportError("the page needs Jinja2: pip install 'hscc[report]'") from error
    if material.dense.training or material.model.training:
        raise ValueError("report: got a model in training mode, expected both after .eval()")
    data = material.calibration
    batches = [batch for batch in ([data] if isinstance(data, Tensor) else data) if len(batch)]
    comparison = material.comparison
    compared, pictured = comparison is not None, comparison is not None and material.images is not None
    environment = Environment(loader=PackageLoader(__package__, ""), autoescape=True, trim_blocks=True)
    environment.lstrip_blocks = True
    return environment.get_template("template.html.j2").render(
        title=material.title,
        date=datetime.date.today().isoformat(),
        verdict=quality.verdict(comparison) if compared else None,
        numbers=_numbers(material),
        trade_offs=_trade_offs(material.points or _trials(material.report)),
        classes=quality.classes(comparison) if compared else None,
        **_layers(material, batches),
        times=_times(material, batches),
        disagreements=quality.disagreements(comparison, material.images) if pictured else [],
        warnings=material.report.warnings if material.report else (),
        environment=_environment(),
        command=material.command,
    )


def write(material: Material, path: str | Path) -> None:
    """Renders to a file; an interrupted write leaves no half one. Raises as :func:`render`, and OSError."""
    path, text = Path(path), render(material)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _numbers(material: Material) -> list[dict]:
    """Headline numbers: what, how much better, from which value to which."""
    report, (dense, model) = material.report, (material.dense, material.model)
    size = [sum(t.numel() * t.element_size() for t in m.state_dict().values()) for m in (dense, model)]
    found = []
    if report is not None:
        found = [
            _tile("fewer FLOPs", report.dense_flops, report.flops, 1e-6, "million, in convolutions"),
            _tile("fewer parameters", report.dense_parameters, report.parameters, 1e-3, "thousand, in convolutions"),
        ]
    found.append(_tile("smaller", *size, 1e-6, "MB, the whole network"))
    if material.latency is not None:
        before, after, images = material.latency
        unit = f"ms, {'one image' if images == 1 else f'{images} images'}, measured"
        faster = _tile("faster", before, after, 1, unit)
        eta = before / after / report.flop_reduction if report is not None else None
        found.append({**faster, "eta": None if eta is None else f"{eta:.2f}"})
    return found


def _tile(what: str, before: float, after: float, scale: float, unit: str) -> dict:
    digits = 2 if scale * before < 100 else 0
    values = {name: f"{scale * value:,.{digits}f}" for name, value in (("before", before), ("after", after))}
    return {"what": what, "times": f"{before / max(after, 1e-12):.2f}×", "unit": unit, **values}


def _trade_offs(points: Sequence[Mapping[str, Any]]) -> list:
    """Accuracy lost against what was saved, and against measured time where there is any."""
    if wrong := [point for point in points if not all(point.get(key) is not None for key in POINT)]:
        raise ValueError(f"points: got {dict(wrong[0])}, expected dicts with {', '.join(POINT)}")
    timed = [point for point in points if point.get("latency_ms")]
    figures = [charts.pareto(points, "flop_reduction", "times fewer convolution FLOPs")] if points else []
    return figures + ([charts.pareto(timed, "latency_ms", "ms, measured")] if timed else [])


def _trials(report: Report | None) -> list[dict]:
    """The compressions looked at where an accuracy was asked for, as points."""
    return [
        {
            "method": "hscc",
            "flop_reduction": trial.flop_reduction,
            "difference": -trial.drop / 100,
            "latency_ms": trial.ms,
            "chosen": trial.chosen,
        }
        for trial in (report.trials if report else ())
    ]


def _layers(material: Material, batches: Sequence[Tensor]) -> dict:
    """The maps and matrices, and the rows of ranks and energy, of each layer that hscc made."""
    shown = {name: layers.Layer.of(name, m) for name, m in layers.compressed(material.model).items()}
    seen = layers.look(material.dense, material.model, shown, batches) if shown and batches else {}
    told = {layer.name: layer for layer in material.report.layers} if material.report else {}
    mean = pictures.mean_image(batches) if batches else None
    maps, matrices, rows = [], [], []
    for name, layer in shown.items():
        regions, own = len(layer.ranks), seen.get(name)
        height, width = layer.labels.shape
        caption = f"{height} × {width}, {regions} region{'s' * (regions > 1)}"
        caption += f", first of {layer.groups} groups" * (layer.groups > 1)
        maps.append({"name": name, "caption": caption, "picture": pictures.region_map(layer.labels)})
        if own is not None:
            few = f"{len(layer.order)} of " * (len(layer.order) < layer.channels)
            caption = f"{few}{layer.channels} channels, {len(layer.bounds) + 1} cluster{'s' * bool(layer.bounds)}"
            picture = pictures.correlations(own.correlation)
            matrices.append({"name": name, "caption": caption, "picture": picture, "bounds": layer.bounds})
        rows.append(_row(layer, own, told.get(name)))
    return {
        "mean": None if mean is None else {"picture": pictures.thumbnail(mean, 256), "size": mean.shape[::-1]},
        "maps": maps,
        "matrices": matrices,
        "ranks": rows,
    }


def _row(layer: layers.Layer, seen: layers.Seen | None, told) -> dict:
    most = max(*layer.totals, 1)
    counts = np.bincount(layer.labels.flatten(), minlength=len(layer.ranks))
    return {
        "name": layer.name,
        "reads": f"{layer.squeeze} channel{'s' * (layer.squeeze > 1)}" if layer.squeeze else "all",
        "kept": quality.percent([seen.all_kept]) if seen else quality.NONE,
        "error": f"{100 * (1 - told.error):.2f}" if told else quality.NONE,
        "regions": [
            {
                "colour": pictures.PALETTE[region % len(pictures.PALETTE)],
                "share": f"{100 * counts[region] / counts.sum():.1f}",
                "ranks": ", ".join("dense" if rank is None else str(rank) for rank in ranks),
                "height": round(layer.totals[region] / most, 3),
                "kept": quality.percent([seen.kept[region]]) if seen else quality.NONE,
            }
            for region, ranks in enumerate(layer.ranks)
        ],
    }


def _times(material: Material, batches: Sequence[Tensor]) -> dict | None:
    if material.report is None or not batches:
        return None
    found = times.measure(material.dense, material.model, material.report, batches[0][:1], times.SECONDS)
    if not found:
        return None
    before, after = sum(own.dense_ms for own in found), sum(own.ms for own in found)
    longest = max(max(own.dense_ms, own.ms) for own in found)
    rows = [
        {
            "name": own.name,
            "bars": [round(100 * ms / longest, 1) for ms in (own.dense_ms, own.ms)],
            "cells": [*_ms(own.dense_ms, own.ms), f"{own.reduction:.2f}×", f"{own.eta:.2f}"],
        }
        for own in found
    ]
    return {"rows": rows, "all": _ms(before, after)}


def _ms(before: float, after: float) -> list[str]:
    return [f"{before:.3f}", f"{after:.3f}", f"{before / after:.2f}×"]


def _environment() -> dict[str, str]:
    return {
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "hscc": __version__,
        "PyTorch": torch.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
