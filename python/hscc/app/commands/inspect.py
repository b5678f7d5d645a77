"""``hscc inspect``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import Json, app, write_json

if TYPE_CHECKING:
    from ...report import Report

KINDS = {
    True: "a model that hscc has compressed",
    False: "dense weights, with what images they want",
    None: "a safetensors file that hscc did not write: it says neither what images it wants nor how it was compressed",
}


@app.command()
def inspect(
    weights: Annotated[Path, typer.Argument(help="A safetensors file.")],
    model: Annotated[str | None, typer.Option(help="Does it fit this network? file.py:function.")] = None,
    json_file: Json = None,
) -> None:
    """Says what a weights file holds, by its header alone: needs no code of the model.

    Example: hscc inspect small.safetensors --model examples/brain_mri/model.py:build
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ...data.spec import METADATA_KEY
    from ...io.checkpoint import read_metadata

    metadata = read_metadata(weights)
    header, images = _header(weights, metadata), _images(weights, metadata)
    report = _report(weights, header)
    facts = {
        "file": str(weights),
        "what": KINDS[True if header else False if images else None],
        **_sizes(weights),
        **({"format": header.get("_version"), "layers": len(header.get("layers", {}))} if header else {}),
        **({"guard": header["guard"]} if (header or {}).get("guard") else {}),
        "images": images,
        "other": {key: value for key, value in metadata.items() if key not in ("hscc", METADATA_KEY)},
    }
    if model is not None:
        facts["fits"] = _fits(model, weights, header is not None)
    table = Table.grid(padding=(0, 2))
    for name, value in _lines(facts):
        table.add_row(Text(name, "dim"), Text(value))
    Console(width=120).print(table)
    if report is not None:
        typer.echo(f"\n{report}")
    write_json(json_file, {**facts, "report": None if report is None else report.to_dict()})


def _header(path: Path, metadata: Mapping[str, str]) -> dict | None:
    """What hscc wrote about the layers; None where it did not."""
    try:
        found = json.loads(metadata.get("hscc", "null"))
    except ValueError as error:
        raise ValueError(f"{path}: got damaged hscc metadata ({error}), expected a checkpoint header") from error
    if not isinstance(found, dict | None):
        raise ValueError(f"{path}: got damaged hscc metadata ({found!r}), expected a checkpoint header")
    return found


def _images(path: Path, metadata: Mapping[str, str]) -> dict | None:
    from ...data.spec import METADATA_KEY, ImageSpec

    try:
        return asdict(ImageSpec.from_json(metadata[METADATA_KEY])) if METADATA_KEY in metadata else None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: got a damaged {METADATA_KEY!r} ({error}), expected ImageSpec as JSON") from error


def _report(path: Path, header: dict | None) -> Report | None:
    from ...report import Report

    data = (header or {}).get("report")
    try:
        return None if data is None else Report.from_dict(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: got a damaged report ({error!r}), expected one written by hscc.save") from error


def _sizes(path: Path) -> dict[str, Any]:
    """Of the tensors, none of which is read."""
    from safetensors import safe_open

    counts: dict[str, int] = {}
    with safe_open(str(path), "pt") as file:
        for key in file.keys():  # noqa: SIM118 (it is no dict)
            part = file.get_slice(key)
            counts[part.get_dtype()] = counts.get(part.get_dtype(), 0) + math.prod(part.get_shape())
        tensors = len(file.keys())
    return {"bytes": path.stat().st_size, "tensors": tensors, "numbers": counts}


def _fits(model: str, path: Path, compressed: bool) -> str:
    """The network's name, if the file fits it; raises what loading does."""
    from safetensors.torch import load_file

    from ... import load_
    from ...io.loading import build_model

    network = build_model(model)
    try:
        load_(network, path) if compressed else network.load_state_dict(load_file(str(path)))
    except RuntimeError as error:
        raise ValueError(f"{path}: got weights that do not fit {model!r}: {error}") from error
    return model


def _lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    numbers = ", ".join(f"{count:,} {kind}" for kind, count in facts["numbers"].items())
    lines = [
        ("file", facts["file"]),
        ("what", facts["what"] + (f", format {facts['format']}" if "format" in facts else "")),
        ("size", f"{facts['bytes'] / 1e6:.2f} MB: {facts['tensors']} tensors, {numbers}"),
    ]
    if "layers" in facts:
        lines.append(("layers", f"{facts['layers']} compressed"))
    if guard := facts.get("guard"):
        looks = _listed(["grey levels", *guard.get("layers", ())])
        lines.append(("guard", f"{100 * guard.get('false_alarms', 0):g} % false alarms; looks at {looks}"))
    if images := facts["images"]:
        lines += [
            ("images", f"{' x '.join(map(str, images['size']))}, {images['channels']} channel(s)"),
            ("mean, std", f"{_listed(images['mean'])}; {_listed(images['std'])}"),
            ("classes", _listed(images["classes"])),
            *([("window", _listed(images["window"]))] if images["window"] else []),
        ]
    lines += [(key, value) for key, value in facts["other"].items()]
    return lines + ([("fits", facts["fits"])] if "fits" in facts else [])


def _listed(values: Iterable) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
