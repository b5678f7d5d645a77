"""``hscc export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import Json, Model, Threads, Weights, app, check_folder, set_threads, write_json


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
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Writes a dense or compressed network for another runtime; the file is run and compared before it is kept.

    Without --dynamic and --fixed the number of images stays open.

    Example: hscc export --model examples/brain_mri/model.py:build --weights small.safetensors --out small.onnx
    """
    from dataclasses import asdict

    from ...data.spec import METADATA_KEY
    from ...exports.model import export as write
    from ...io.loading import load_model
    from ...nn.fuse import fuse_

    set_threads(threads)
    check_folder(out)
    if fixed and dynamic:
        raise ValueError(f"dynamic: got {dynamic} with --fixed, expected one of them")
    network, spec = load_model(model, weights)
    if fuse:
        fuse_(network)
    sizes = [] if fixed else dynamic or ["batch"]
    done = write(network, out, format, dynamic=sizes, metadata={METADATA_KEY: spec.to_json()})
    typer.echo(str(done))
    write_json(json_file, {**asdict(done), "path": str(done.path)})
