"""``hscc export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..images import spread
from ..options import Json, Model, Threads, Weights, app, check_folder, set_threads, write_json

BATCH = 8  # calibration images that are in memory with all that is between layers


@app.command()
def export(
    model: Model,
    weights: Weights,
    out: Annotated[Path, typer.Option(help="The file; ends in .pt2 but for ONNX.")],
    format: Annotated[str, typer.Option(help="onnx, pt2 (AOTInductor package) or export (torch.export).")] = "onnx",
    dynamic: Annotated[
        list[str] | None, typer.Option(help="Size that stays open: batch, height or width; repeat for several.")
    ] = None,
    fixed: Annotated[bool, typer.Option("--fixed", help="No size stays open: one image a call.")] = False,
    fuse: Annotated[bool, typer.Option(help="Fold batch norms and ReLUs into the layers first.")] = True,
    int8: Annotated[bool, typer.Option("--int8", help="ONNX in 8 bits, of what is dense or --portable.")] = False,
    data: Annotated[Path | None, typer.Option(help="For --int8: calibration images, as for hscc compress.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Of these, at most.")] = 256,
    bits: Annotated[int, typer.Option(help="Of weights with --int8; 7 for processors without VNNI.")] = 8,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Writes a dense or compressed network for another runtime; the file is run and compared before it is kept.

    Without --dynamic and --fixed the number of images stays open.

    Example: hscc export --model examples/brain_mri/model.py:build --weights small.safetensors --out small.onnx --int8
    --data data/brain_mri/calibration
    """
    from dataclasses import asdict

    from torch.utils.data import DataLoader

    from ...data.spec import METADATA_KEY
    from ...exports.int8 import export_int8
    from ...exports.model import export as write
    from ...io.loading import load_model
    from ...nn.fuse import fuse_

    set_threads(threads)
    check_folder(out)
    if fixed and dynamic:
        raise ValueError(f"dynamic: got {dynamic} with --fixed, expected one of them")
    if int8 != (data is not None):
        got = "images without --int8" if data else "none with --int8"
        raise ValueError(f"data: got {got}, expected both or neither")
    if int8 and format != "onnx":
        raise ValueError(f"format: got {format!r} with --int8, expected 'onnx' (our kernels: hscc compress --int8)")
    network, spec = load_model(model, weights)
    if fuse:
        fuse_(network)
    sizes = [] if fixed else dynamic or ["batch"]
    told = {METADATA_KEY: spec.to_json()}
    if data is not None:
        images = DataLoader(spread(data, spec, limit), BATCH)
        done = export_int8(network, out, images, bits=bits, dynamic=sizes, metadata=told)
    else:
        done = write(network, out, format, dynamic=sizes, metadata=told)
    typer.echo(str(done))
    write_json(json_file, {**asdict(done), "path": str(done.path)})
