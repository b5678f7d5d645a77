"""ONNX files in 8 bits, by ONNX Runtime's quantiser."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..observe.data import Calibration
from . import onnx as file
from .model import Exported, compared, outputs, placed, ready, within, write
from .portable import own_layers, regions
from .sample import Sample

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1.0  # what is off by as much as its outputs are says nothing
KEPT = 64  # calibration images that the file is run on


def export_int8(
    model: nn.Module,
    path: str | Path,
    calibration: Iterable,
    *,
    bits: int = 8,
    dynamic: Sequence[str] = ("batch",),
    metadata: Mapping[str, str] | None = None,
) -> Exported:
    """Writes a model, dense or compressed with ``Config(portable=True)``, as an ONNX file that computes in 8 bits.

    ONNX Runtime, OpenVINO and others run it: everything that they can, in uint8 and int8 with sums of 32 bits. It is
    first written and checked in float32 (:func:`hscc.export`), then rounded by ``onnxruntime.quantization``. Factors of
    a layer are turned by a rotation before, which changes nothing but what rounding costs.

    Args:
        model: float32, in evaluation mode; takes one tensor (N, C, H, W). It is left as it was.
        calibration: unlabelled images as for :func:`hscc.compress_`, some hundred; the largest values on the way set
            the scales.
        bits: of weights; 7 for processors without VNNI, where sums of products of 8 would not fit.
        dynamic, metadata: as for :func:`hscc.export`.

    Returns:
        Its ``error`` is the root mean square of errors relative to that of the outputs, on up to 64 of the images; of
        several outputs the worst.

    Raises:
        TypeError, ValueError: the model cannot be exported so, has layers with regions, or is nothing like itself in 8
            bits: an error of over 1. An existing file then stays.
        ImportError: without ``hscc[onnx]``.
    """
    if bits not in (7, 8):
        raise ValueError(f"bits: got {bits!r}, expected 8, or 7 for processors without VNNI")
    model, path = ready(model, path)
    file.require()
    if odd := [name for name, layer in own_layers(model).items() if regions(layer) > 1]:
        raise ValueError(
            f"model: got layer {odd[0]!r} with regions, expected one compressed with Config(portable=True)"
        )
    images = [one for batch in Calibration.of(model, calibration).batches() for one in _images(batch).split(1)]
    sample = Sample.of(model, images[0], dynamic)
    if len(several := {tuple(one.shape[1:]) for one in images}) > 1 and not {"height", "width"} <= {*sample.dynamic}:
        raise ValueError(
            f"calibration: got images of {sorted(several)}, expected one size, or height and width dynamic"
        )
    if sample.x.dtype != torch.float32:
        raise ValueError(f"model: got {sample.x.dtype}, expected torch.float32")
    shown = [*sample.checks, *images[:KEPT]]
    wanted = outputs(model, shown)
    with placed(path) as written:
        layers, _ = write(model, sample, "onnx", written, dict(metadata or {}))
        try:
            quantise(written, images, bits)
        except Exception as error:
            told = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(f"model: got one that ONNX Runtime does not quantise ({told}), expected one") from error
        error = within(_error(compared(partial(file.run, written), shown, wanted), len(wanted[0])), TOLERANCE)
    return Exported(path, "onnx", sample.dynamic, error, path.stat().st_size, layers, bits)


def quantise(path: Path, images: Sequence[Tensor], bits: int) -> None:
    """The float32 file becomes one of QuantizeLinear and DequantizeLinear, between which runtimes compute in 8 bits.

    Weights are int8 with a scale an output channel (of 7 bits for processors without VNNI, on which sums of two
    products of 8 would not fit), all other tensors uint8 with a scale each, for the range that they have on
    ``images``, (1, C, H, W) each.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    told = onnx.load(path).metadata_props
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet():
        ready, done = (str(Path(folder, name)) for name in ("ready.onnx", "done.onnx"))
        quant_pre_process(str(path), ready, skip_symbolic_shape=True)  # ours has shapes, and some of its own fail
        floats = onnx.load(ready)
        left = _norms_as_convolutions(floats)
        onnx.save(floats, ready)
        quantize_static(
            ready,
            done,
            _Reader(images),
            per_channel=True,
            reduce_range=bits == 7,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=left,
        )
        made = onnx.load(done)
        del made.metadata_props[:]
        made.metadata_props.extend(told)
        onnx.save(made, path)


def _norms_as_convolutions(model: onnx.ModelProto) -> list[str]:
    """Batch norms of maps that no convolution took up become depthwise 1 x 1 ones, in place; names of the others.

    Nothing quantises a batch norm, so the maps around it would be float; and OpenVINO 2026.4 crashes on such files.
    """
    from onnx import helper, numpy_helper

    graph, left = model.graph, []
    numbers = {one.name: one for one in graph.initializer}
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in (*graph.value_info, *graph.output)}
    for index, node in enumerate(graph.node):
        if node.op_type != "BatchNormalization":
            continue
        if ranks.get(node.output[0]) != 4 or not all(name in numbers for name in node.input[1:]):
            left.append(node.name)
            continue
        scale, shift, mean, variance = (numpy_helper.to_array(numbers[name]).astype(float) for name in node.input[1:])
        epsilon = next((one.f for one in node.attribute if one.name == "epsilon"), 1e-5)
        weight = scale / np.sqrt(variance + epsilon)
        tensors = {"weight": weight[:, None, None, None], "bias": shift - weight * mean}
        names = [f"{node.output[0]}.{name}" for name in tensors]
        for name, values in zip(names, tensors.values(), strict=True):
            graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
        size = {"group": len(weight), "kernel_shape": [1, 1]}
        graph.node[index].CopyFrom(
            helper.make_node("Conv", [node.input[0], *names], node.output[:1], node.name, **size)
        )
    return left


def _error(pairs: Sequence[tuple[Tensor, Tensor]], outputs: int) -> float:
    """Of (got, expected), one output after the other of each input: of the worst output."""
    sums = torch.zeros(2, outputs, dtype=torch.float64)
    for index, (got, expected) in enumerate(pairs):
        sums[:, index % outputs] += torch.tensor([part.double().square().sum() for part in (got - expected, expected)])
    return (sums[0] / sums[1].clamp_min(1e-30)).sqrt().max().item()


def _images(batch: object) -> Tensor:
    if not isinstance(batch, Tensor) or batch.ndim != 4 or not batch.is_floating_point():
        got = f"{batch.dtype} {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
        raise ValueError(f"calibration: got a batch of {got}, expected floating point (N, C, H, W)")
    return batch


class _Reader:
    """Calibration data as the quantiser takes them."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self._left = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._left, None)
        return None if image is None else {"x": image.numpy(force=True)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the quantiser's advice to pre-process, which was done, is not logged."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
