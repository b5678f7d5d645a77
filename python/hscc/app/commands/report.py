"""``hscc report``."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..images import spread
from ..options import Batch, Labels, Model, SlicesOf, Threads, app, check_folder, set_threads

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ...data.spec import ImageSpec


@app.command()
def report(
    model: Model,
    dense: Annotated[Path, typer.Option(help="The dense network's weights (safetensors with an image spec).")],
    weights: Annotated[Path, typer.Option(help="The compressed model, from hscc compress.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    calibration: Annotated[Path | None, typer.Option(help="Folder of images for maps, energy and times.")] = None,
    test: Annotated[Path | None, typer.Option(help="Folder of class folders: are both models as good?")] = None,
    points: Annotated[Path | None, typer.Option(help="Other compressions for the figure: a JSON list.")] = None,
    margin: Annotated[float, typer.Option(help="Points of accuracy that may be lost.")] = 0.5,
    confidence: Annotated[float, typer.Option(help="Of verdicts and intervals.")] = 0.95,
    labels: Labels = None,
    slices: SlicesOf = None,
    batch: Batch = 32,
    threads: Threads = None,
) -> None:
    """Writes one HTML page that shows what compression did to a network; what has no data is left out.

    Example: hscc report --model examples/brain_mri/model.py:build --dense examples/brain_mri/weights.safetensors
    --weights small.safetensors --calibration data/brain_mri/calibration --test data/brain_mri/test
    """
    import torch
    from torch.utils.data import DataLoader

    from ... import load_
    from ...data.slices import Slices
    from ...data.sources import open_labelled
    from ...data.spec import METADATA_KEY, ImageSpec
    from ...evaluation.comparison import Comparison
    from ...evaluation.outputs import collect
    from ...evaluation.speed import latency
    from ...evaluation.verdict import check
    from ...io.checkpoint import read_metadata
    from ...io.loading import build_model, load_model
    from ..report import layers, page, quality

    set_threads(threads)
    check_folder(out)
    check(margin, confidence)
    chosen = Slices.parse(slices)
    others = [] if points is None else _points(points)
    network, spec = load_model(model, dense)
    network = network.to(memory_format=torch.channels_last)  # as load_ leaves the other one
    student = build_model(model)
    own = read_metadata(weights).get(METADATA_KEY)
    if own is not None and ImageSpec.from_json(own) != spec:
        raise ValueError(f"dense: got {str(dense)!r}, expected one for the images and classes of {str(weights)!r}")
    told = load_(student, weights)
    batches = []
    if calibration is not None:
        batches = [*DataLoader(spread(calibration, spec, layers.IMAGES, slices=chosen), batch)]
    example = batches[0][:1] if batches else torch.zeros(1, spec.channels, *spec.size)
    seconds = latency({"dense": network, "compressed": student}, example, 1.5)
    comparison, images = None, None
    if test is not None:
        folders = open_labelled(test, spec, labels=labels, slices=chosen)
        loader = DataLoader(folders, batch)
        outputs = collect([network, student], loader, spec.classes, show_progress=True)
        comparison = Comparison.of(*outputs, spec.classes, margin, confidence).to_dict()
        shown = [one["index"] for one in comparison["disagreements"][: quality.SHOWN]]
        images = {index: _pixels(folders[index][0], spec) for index in shown}
        if others and told is not None and not any(point.get("chosen") for point in others):
            others.append(_own(comparison, told.flop_reduction, 1e3 * seconds["compressed"]))
    material = page.Material(
        dense=network,
        model=student,
        report=told,
        calibration=batches,
        images=images,
        comparison=comparison,
        points=others,
        latency=(1e3 * seconds["dense"], 1e3 * seconds["compressed"], 1),
        title=weights.name,
        command=shlex.join(["hscc", *sys.argv[1:]]),
    )
    page.write(material, out)
    typer.echo(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB).")


def _pixels(x: Tensor, spec: ImageSpec) -> np.ndarray:
    """A network's input (C, H, W) as the picture that it was, uint8 (H, W) or (H, W, 3)."""
    import numpy as np

    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (spec.mean, spec.std))
    pixels = (255 * (x.numpy() * std + mean)).round().clip(0, 255).astype(np.uint8)
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def _own(comparison: dict, reduction: float, milliseconds: float) -> dict:
    """This model among the points."""
    accuracy = next(metric for metric in comparison["metrics"] if metric["name"] == "accuracy")["change"]
    lost, won, images = comparison["mcnemar"]["lost"], comparison["mcnemar"]["won"], comparison["images"]
    spread = ((lost + won) / images - accuracy[0] ** 2) / images  # of the mean of -1, 0 and 1
    return {
        "method": "hscc",
        "flop_reduction": reduction,
        "difference": accuracy[0],
        "difference_standard_error": spread**0.5,
        "latency_ms": milliseconds,
        "chosen": True,
    }


def _points(path: Path) -> list[dict]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"points: got {str(path)!r}, which is no JSON ({error}), expected a list of dicts") from error
    if not isinstance(found, list) or not all(isinstance(point, dict) for point in found):
        raise ValueError(f"points: got other JSON in {str(path)!r}, expected a list of dicts")
    return found
