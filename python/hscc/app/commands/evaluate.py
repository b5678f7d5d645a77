"""``hscc evaluate``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..images import tell, tell_broken
from ..options import Batch, Json, Labels, Model, SkipBroken, SlicesOf, Threads, Weights, app, set_threads, write_json


@app.command()
def evaluate(
    model: Model,
    weights: Weights,
    data: Annotated[Path, typer.Option(help="Test images: a folder of class folders, a file with labels, or a set.")],
    labels: Labels = None,
    slices: SlicesOf = None,
    skip_broken: SkipBroken = False,
    batch: Batch = 32,
    against: Annotated[Path | None, typer.Option(help="Weights of the dense network: is this one as good?")] = None,
    margin: Annotated[float, typer.Option(help="Points of accuracy that may be lost.")] = 0.5,
    confidence: Annotated[float, typer.Option(help="Of verdicts and intervals.")] = 0.95,
    group: Annotated[list[str] | None, typer.Option(help="Column with a verdict a value; repeat for several.")] = None,
    require_equivalent: Annotated[
        bool, typer.Option("--require-equivalent", help="Exit code 3 unless every verdict is 'equivalent'.")
    ] = False,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Accuracy, F1 and latency of a dense or compressed network, or of an ONNX file, on class folders of images.

    The largest output wins; a single one, for two classes, is a logit: above 0 is the second class.

    Example: hscc evaluate --model examples/brain_mri/model.py:build --weights small.safetensors
    --data data/brain_mri/test --against examples/brain_mri/weights.safetensors
    """
    from torch.utils.data import DataLoader

    from ...data.slices import Slices
    from ...data.sources import open_labelled
    from ...evaluation.classifier import Evaluation
    from ...evaluation.outputs import collect
    from ...evaluation.speed import latency
    from ...evaluation.verdict import check
    from ...guard.guarded import GuardedModel
    from ...io.checkpoint import load_guard
    from ...io.loading import open_model

    set_threads(threads)
    check(margin, confidence)
    if against is None and (group or require_equivalent):
        raise ValueError("against: got no file, expected the dense network's weights for --group, --require-equivalent")
    network, spec = open_model(model, weights)
    dense, dense_spec = (None, spec) if against is None else open_model(model, against)
    if dense_spec != spec:
        raise ValueError(f"against: got {str(against)!r}, expected one for the images and classes of {str(weights)!r}")
    folders = open_labelled(data, spec, labels=labels, slices=Slices.parse(slices), skip_broken=skip_broken)
    tell_broken(folders)
    tell(folders.unlisted, f"have no row in {labels or data}")
    groups = _groups(folders, group or [])
    guard = None if weights.suffix == ".onnx" else load_guard(weights)
    judged = network if guard is None else GuardedModel(network, guard)
    models = [judged] if dense is None else [judged, dense]
    outputs, *dense_outputs = collect(models, DataLoader(folders, batch), spec.classes, show_progress=True)
    result, comparison = Evaluation.of(outputs), {}
    if dense_outputs:
        from ...evaluation.comparison import Comparison
        from ..comparison import show

        found = Comparison.of(*dense_outputs, outputs, spec.classes, margin, confidence, groups)
        show(found)
        comparison = {"comparison": found.to_dict()}
    milliseconds = 1e3 * latency({"model": network}, folders[0][0][None])["model"]
    typer.echo(
        f"accuracy {100 * result.accuracy:.2f} % (standard error {100 * result.standard_error:.2f}), "
        f"macro F1 {result.macro_f1:.4f}, {result.images} images, {milliseconds:.2f} ms an image"
    )
    for name, f1 in zip(spec.classes, result.class_f1, strict=True):
        typer.echo(f"  F1 {name}: {f1:.4f}")
    flagged = {} if guard is None else {"flagged": judged.flagged, "false_alarms": guard.false_alarms}
    if flagged:
        share, usual = (f"{100 * part:.3g} %" for part in (judged.flagged / result.images, guard.false_alarms))
        typer.echo(f"guard: {judged.flagged} of {result.images} images flagged as foreign ({share}; {usual} are usual)")
    told = {"classes": list(spec.classes), "latency_ms": milliseconds, **flagged, **comparison}
    write_json(json_file, {**asdict(result), **told})
    if require_equivalent and found.answer != "equivalent":
        raise typer.Exit(3)


def _groups(images, columns: list[str]) -> dict[str, list[str]]:
    """The columns asked for of those that come with the images."""
    there = getattr(images, "groups", {})
    missing = [column for column in columns if column not in there]
    if missing:
        raise ValueError(f"group: got {missing[0]!r}, expected a column of the labels: {sorted(there)}")
    return {column: there[column] for column in columns}
