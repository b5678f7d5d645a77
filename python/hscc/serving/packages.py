"""Files that are whole models: AOTInductor packages, exported programs and ONNX, and what their headers say."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hscc_kernels  # noqa: F401 (registers the ops that a package calls)

from ..data.spec import METADATA_KEY, ImageSpec
from ..io.session import OnnxSession
from .signature import DATATYPES, TensorSpec

SIGNATURE_KEY = (
    "hscc.signature"  # {"inputs": [{"name", "dtype", "shape"}], "outputs": [...]}: "float32", -1 is any size
)
Signature = Sequence[tuple[TensorSpec, ...]]  # inputs, outputs


@dataclass(frozen=True)
class Package:
    """An opened file; the fields are those of :class:`hscc.serving.models.Served`."""

    run: Callable[[Tensor], Any]
    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    images: ImageSpec | None
    example: tuple[int, int, int]
    batches: tuple[int, int | None]
    device: str


def open_package(path: Path) -> Package:
    """Reads a .pt2 file.

    A package checks no shape when it runs: one of another size reads past its buffers. So its signature must be stated,
    under ``hscc.signature`` in its metadata or in ``FILE.pt2.json`` beside it. A program has its own.

    Raises:
        ValueError: no such archive, several inputs, or a package without a signature.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            facts = {n.partition("/extra/")[2]: archive.read(n).decode() for n in names if "/extra/hscc." in n}
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: got a damaged file ({error}), expected a .pt2 archive") from error
    most = None
    if any("/data/aotinductor/" in name for name in names):
        kind, (run, own) = "package", _package(path)
        facts, device = own | facts | _beside(path), own.get("AOTI_DEVICE_KEY", "cpu")
        signature = _stated(path, facts)
        run = partial(_by_name, run, [one.name for one in signature[1]])
    elif any("/models/" in name for name in names):
        kind, (run, *signature, most, device) = "program", _program(path)
        facts |= _beside(path)
    else:
        raise ValueError(f"{path}: got an archive of something else, expected an AOTInductor package or a program")
    return _opened(path, (kind, device), run, signature, facts, most)


def open_onnx(path: Path) -> Package:
    """Reads an ONNX file, which ONNX Runtime runs on the CPU; raises as :class:`~hscc.io.session.OnnxSession`."""
    model = OnnxSession(path)
    sides = (model.inputs, model.outputs)
    signature = [tuple(TensorSpec(one.name, DATATYPES[one.dtype], one.shape) for one in side) for side in sides]
    return _opened(path, ("onnx", "cpu"), model.by_name, signature, model.metadata, None)


def _opened(
    path: Path, where: tuple[str, str], run: Callable, signature: Signature, facts: Mapping[str, str], most: int | None
) -> Package:
    """``where``: kind and device. The number of images is open in specs, whatever the file takes."""
    inputs, outputs = signature
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] < 1:
        got = ", ".join(f"{one.name} {one.shape}" for one in inputs)
        raise ValueError(f"{path}: got inputs {got}, expected one (n, C, H, W)")
    images = ImageSpec.from_json(facts[METADATA_KEY]) if METADATA_KEY in facts else None
    n, *shape = inputs[0].shape
    size = images.size if images else (224, 224)
    example = (shape[0], *(own if own != -1 else usual for own, usual in zip(shape[1:], size, strict=True)))
    free = (TensorSpec(inputs[0].name, inputs[0].dtype, (-1, *shape)),)
    rows = tuple(TensorSpec(one.name, one.dtype, (-1, *one.shape[1:])) for one in outputs)
    kind, device = where
    return Package(run, kind, free, rows, images, example, (1, most) if n == -1 else (n, n), device)


def _beside(path: Path) -> dict[str, str]:
    """Texts of ``FILE.pt2.json``; values that are no texts are kept as JSON."""
    file = path.with_name(f"{path.name}.json")
    if not file.is_file():
        return {}
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: got damaged JSON ({error}), expected an object") from error


def _package(path: Path) -> tuple[Callable[[Tensor], Any], dict[str, str]]:
    package = torch._inductor.aoti_load_package(str(path))
    loader = package.loader  # the package's own __call__ reads its signature from JSON each time

    def run(x: Tensor) -> list[Tensor]:
        return loader.run([x])

    return run, dict(package.get_metadata())


def _by_name(run: Callable[[Tensor], list[Tensor]], names: list[str], x: Tensor) -> dict[str, Tensor]:
    return dict(zip(names, run(x), strict=True))


def _stated(path: Path, facts: Mapping[str, str]) -> Signature:
    if SIGNATURE_KEY not in facts:
        raise ValueError(f"{path}: got a package without {SIGNATURE_KEY!r}, expected it in its metadata or in a .json")
    try:
        signature = json.loads(facts[SIGNATURE_KEY])
        return tuple(
            tuple(
                TensorSpec(one["name"], DATATYPES[getattr(torch, one["dtype"])], tuple(map(int, one["shape"])))
                for one in signature[side]
            )
            for side in ("inputs", "outputs")
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: got a damaged {SIGNATURE_KEY!r} ({error!r}), expected names and shapes") from error


def _program(path: Path) -> tuple:
    """(callable, inputs, outputs, most images, device) of what ``torch.export.save`` wrote."""
    try:
        program = torch.export.load(str(path))
    except Exception as error:  # nearly anything, where the file is damaged
        raise ValueError(f"{path}: got a program that does not load ({error}), expected torch.export.save's") from error
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    inputs = [values[name] for name in program.graph_signature.user_inputs]
    outputs = [values[name] for name in program.graph_signature.user_outputs]
    if not inputs or not inputs[0].ndim:
        raise ValueError(f"{path}: got a program without an input, expected one (n, C, H, W)")
    size = inputs[0].shape[0]
    upper = None if isinstance(size, int) else program.range_constraints[size.node.expr].upper
    most = int(upper) if upper is not None and upper < 2**31 else None  # infinity compares, but is no int
    specs = _specs("input", inputs), _specs("output", outputs)
    return program.module(), *specs, most, inputs[0].device.type


def _specs(name: str, values: list[Tensor]) -> tuple[TensorSpec, ...]:
    names = [name] if len(values) == 1 else [f"{name}_{i}" for i in range(len(values))]
    return tuple(
        TensorSpec(name, DATATYPES[value.dtype], tuple(n if isinstance(n, int) else -1 for n in value.shape))
        for name, value in zip(names, values, strict=True)
    )
