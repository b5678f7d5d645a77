"""A model repository for NVIDIA Triton, whose python backend then answers with hscc."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..models import WHOLE, Served
from ..signature import TensorSpec

TYPES = {"BF16": "TYPE_BF16", **{f"FP{bits}": f"TYPE_FP{bits}" for bits in (16, 32, 64)}}
DELAY = 2000  # microseconds that a request waits for others


def write(root: Path, name: str, file: Path, source: str | None, batch: int = 16) -> Path:
    """Writes ``root/name`` with config.pbtxt and version 1, and loads the model once from there; returns the folder.

    Args:
        source: ``file.py:function`` that builds the network of a weights file; the Python file is copied alone.
        batch: images at a time, at most.

    Raises:
        FileExistsError: there is such a folder. What loading raises, also where the file imports others beside it.
    """
    model = Served.load(file, source, name=name)
    folder = Path(root) / model.name
    if folder.exists():
        raise FileExistsError(f"triton-repository: got {str(folder)!r}, which exists, expected no such folder")
    version = folder / model.version
    version.mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("triton_model.py"), version / "model.py")
    shutil.copyfile(file, version / file.name)
    texts = {"file": file.name}
    if source is not None and file.suffix not in WHOLE:
        python, _, function = source.partition(":")
        shutil.copyfile(python, version / "network.py")
        texts["function"] = function or "build"
        Served.load(version / file.name, f"{version / 'network.py'}:{texts['function']}", name=name)
    (folder / "config.pbtxt").write_text(config(model, batch, texts))
    return folder


def config(model: Served, batch: int, parameters: dict[str, str]) -> str:
    """``config.pbtxt``, in Protobuf's text format."""
    most = min(batch, model.batches[1] or batch)
    parts = [
        f"name: {json.dumps(model.name)}",
        'backend: "python"',
        f"max_batch_size: {most}",
        *(_tensor("input", spec) for spec in model.inputs),
        *(_tensor("output", spec) for spec in model.outputs),
        f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY} }}",
        "instance_group [ { kind: KIND_AUTO } ]",
    ]
    for key, value in parameters.items():
        parts.append(f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}")
    return "\n".join(parts) + "\n"


def _tensor(kind: str, spec: TensorSpec) -> str:
    sizes = ", ".join(map(str, spec.shape[1:]))
    dtype = TYPES.get(spec.dtype, f"TYPE_{spec.dtype}")
    return f"{kind} [ {{ name: {json.dumps(spec.name)} data_type: {dtype} dims: [ {sizes} ] }} ]"
