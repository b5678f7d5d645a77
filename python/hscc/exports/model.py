"""A model as a file for another runtime: written, checked against the model, then put in place."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..data.spec import METADATA_KEY, ImageSpec
from ..nn.chain import ConvChain
from ..nn.conv2d import HSCConv2d
from ..nn.surgery import unwrapped
from . import onnx, package, program
from .mixing import mix_
from .portable import as_portable, own_layers, regions
from .sample import Sample

SIGNATURE_KEY = "hscc.signature"
FORMATS = {"onnx": onnx, "pt2": package, "export": program}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of errors relative to the largest output
Run = Callable[[list[Tensor]], list[list[Tensor]]]
LOW_TOLERANCE = 2e-2  # of shorter floats


@dataclass(frozen=True)
class Exported:
    """What was written. ``error`` is the largest of all outputs on the example, relative to the largest output;
    ``layers`` says what each compressed layer is there: "kernel", "convolutions", "masks" or "gathers". ``bits`` are
    those of the weights of an :func:`hscc.export_int8`, whose ``error`` is another."""

    path: Path
    format: str
    dynamic: tuple[str, ...]
    error: float
    bytes: int
    layers: Mapping[str, str]
    bits: int | None = None

    def __str__(self) -> str:
        kinds = [*self.layers.values()]
        told = ", ".join(f"{kinds.count(kind)} as {kind}" for kind in sorted(set(kinds))) or "none"
        sizes = ", ".join(self.dynamic) or "nothing"
        format = self.format if self.bits is None else f"{self.format} in {self.bits} bits"
        return (
            f"Wrote {self.path} ({format}, {self.bytes / 1e6:.1f} MB); compressed layers: {told}; any {sizes}; "
            f"error {self.error:.1g} of the {'largest output' if self.bits is None else 'outputs'}."
        )


def export(
    model: nn.Module,
    path: str | Path,
    format: str = "onnx",
    *,
    example: Tensor | Sequence[int] | None = None,
    dynamic: Sequence[str] = ("batch",),
    metadata: Mapping[str, str] | None = None,
) -> Exported:
    """Writes a model, compressed or dense, for another runtime; an existing file is replaced only by a right one.

    The file is run before it is kept: on the example, and on one of other sizes where ``dynamic`` leaves some open.

    Args:
        model: in evaluation mode; takes one tensor (N, C, H, W). It is left as it was.
        path: ends in ".pt2" but for ONNX.
        format: "onnx" (any runtime; needs ``hscc[onnx]``), "pt2" (AOTInductor package, for this kind of processor) or
            "export" (``torch.export.save``). The last two keep our kernels: load them after ``import
            hscc_kernels``.
        example: an input, or its shape; default: one image as ``metadata`` says that the model wants it.
        dynamic: sizes that stay open: "batch", "height", "width".
        metadata: texts that go along, e.g. ``{"hscc.images": spec.to_json()}``. Names, dtypes and shapes of input and
            outputs go as ``hscc.signature``.

    Raises:
        ValueError: the model cannot be exported so, or the file gave other outputs than the model.
        ImportError: a package that the format needs is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"format: got {format!r}, expected one of {list(FORMATS)}")
    model, path = ready(model, path)
    if format != "onnx" and path.suffix != ".pt2":
        raise ValueError(f"path: got {str(path)!r}, expected one that ends in .pt2 for format {format!r}")
    if format == "onnx":
        onnx.require()
    metadata = dict(metadata or {})
    sample = Sample.of(model, _example(metadata) if example is None else example, dynamic)
    with placed(path) as written:
        layers, error = write(model, sample, format, written, metadata)
    return Exported(path, format, sample.dynamic, error, path.stat().st_size, layers)


def ready(model: nn.Module, path: str | Path) -> tuple[nn.Module, Path]:
    """Both, if a file of the model can be written there; ValueError or FileNotFoundError otherwise."""
    model, path = unwrapped(model), Path(path)
    if model.training:
        raise ValueError("model: got one in training mode, expected model.eval()")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: got {str(path)!r}, expected a file in an existing folder")
    return model, path


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` at the end of the block, unless there was an error."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder, path.name)
        yield written
        os.replace(written, path)


def write(
    model: nn.Module, sample: Sample, format: str, path: Path, metadata: Mapping[str, str]
) -> tuple[dict[str, str], float]:
    """Writes the file and runs it: what the layers are there, and its error, or ValueError where it is not right."""
    wanted = outputs(model, sample.checks)
    metadata = {SIGNATURE_KEY: sample.signature(wanted), **metadata}
    with _form(model, sample, format) as layers:
        FORMATS[format].write(model, sample, path, metadata)
    tolerance = TOLERANCE.get(sample.x.dtype, LOW_TOLERANCE)
    return layers, checked(partial(FORMATS[format].run, path), sample.checks, wanted, tolerance)


@contextmanager
def _form(model: nn.Module, sample: Sample, format: str) -> Iterator[dict[str, str]]:
    """Inside, the model's layers are as the file will have them; gives what they are.

    ValueError where height or width stay open and a layer has regions, whose maps the format cannot resize.
    """
    own, sides = own_layers(model), {"height", "width"} & set(sample.dynamic)
    chains = {name: "convolutions" for name, module in model.named_modules() if isinstance(module, ConvChain)}
    own_maps = (name for name, layer in own.items() if isinstance(layer, HSCConv2d) and layer.plan.regions > 1)
    several = [name for name, layer in own.items() if regions(layer) > 1] if format == "onnx" else [*own_maps]
    if sides and several and format != "export":  # where the graph runs there is no Python to resize maps of regions
        raise ValueError(
            f"dynamic: got {sample.dynamic} and layers with regions ({', '.join(several)}), expected ('batch',), the "
            "format 'export', or a model compressed with Config(portable=True)"
        )
    if format == "onnx":
        with as_portable(model, sample.x) as forms:
            mix_(model)  # so that whoever rounds the file to 8 bits loses little
            yield chains | forms
    else:
        yield chains | dict.fromkeys(own, "kernel")


def _example(metadata: Mapping[str, str]) -> tuple[int, ...]:
    if METADATA_KEY not in metadata:
        raise ValueError(f"example: got None, expected an input or its shape, or metadata with {METADATA_KEY!r}")
    spec = ImageSpec.from_json(metadata[METADATA_KEY])
    return (1, spec.channels, *spec.size)


def outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """The model's on each; the first is the example, others have other sizes."""
    found = []
    for x in inputs:
        try:
            with torch.no_grad():
                found.append(tree_leaves(model(x)))
        except Exception as error:
            told = str(error).strip().partition("\n")[0] or type(error).__name__
            name = "dynamic" if found else "example"
            raise ValueError(
                f"{name}: got {tuple(x.shape)}, which the model does not take ({told}), expected what it takes"
            ) from error
    return found


def checked(run: Run, inputs: list[Tensor], wanted: list[list[Tensor]], tolerance: float) -> float:
    """The error of a file's outputs; ValueError where it is more than that."""
    worst = 0.0
    for got, expected in compared(run, inputs, wanted):
        off = (got - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
        worst = max(worst, math.inf if off.isnan() else off.item())
    return within(worst, tolerance)


def within(error: float, tolerance: float) -> float:
    """The error; ValueError where it is more than that, or NaN."""
    if not error <= tolerance:
        raise ValueError(f"model: got a file whose outputs are off by {error:.2g}, expected at most {tolerance:g}")
    return error


def compared(run: Run, inputs: list[Tensor], wanted: list[list[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """(got, expected) of each input and output of the file; ValueError where it does not run, or gives other shapes."""
    try:
        found = run(inputs)
    except Exception as error:
        told = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"model: got a file that does not run ({told}), expected one that does") from error
    pairs = [*zip((t for many in found for t in many), (t for many in wanted for t in many), strict=True)]
    for got, expected in pairs:
        if got.shape != expected.shape:
            raise ValueError(
                f"model: got outputs {tuple(got.shape)} from the file, expected {tuple(expected.shape)} as from it"
            )
    return [(got.to(expected), expected) for got, expected in pairs]
