"""What a call of the whole network takes: dense, in every runtime that is found here, and compressed."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hscc_kernels import ClusterFactors, RegionFactors

from . import progress
from .evaluation.speed import cut, latency
from .exports import onnx
from .exports.sample import Sample
from .io.session import OnnxSession
from .nn.conv2d import HSCConv2d
from .nn.fuse import fuse_
from .nn.padding import around
from .nn.surgery import Student, Targets, channels_last_
from .observe import distributed
from .observe.data import Calibration, evaluation_mode
from .report import TORCH, Whole

_REST = "all but the layers"
SECONDS = 1.0  # that a network is timed for
CLOSE = 1e-3  # largest error of a runtime's outputs, relative to the largest output
SPINNING = 0.06  # seconds; seen: ONNX Runtime's threads wait 45 to 50 ms for more work
PAGE = 1024  # numbers in a page of memory
Run = Callable[[Any], Any]
_log = logging.getLogger(__name__)


class _Hollow(HSCConv2d):
    """Takes memory for its outputs, as new pages cost time, and computes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        left, right, top, bottom = around(self.pad, self.padding_mode, self.geometry, *x.shape[2:])
        rows, columns = self.geometry.out_size(x.shape[2] + top + bottom, x.shape[3] + left + right)
        y = x.new_empty(len(x), rows, columns, self.out_channels)
        y.flatten()[::PAGE].zero_()
        return y.permute(0, 3, 1, 2)


def timed(
    model: nn.Module, targets: Targets, sizes: Mapping[str, tuple[int, int]], data: Calibration, images: int
) -> Whole | None:
    """The dense network in each runtime, and all but the layers that are compressed.

    Batch norms and ReLUs are folded as by ``fuse_``, in the dense network, too. All but the layers is what is left when
    they compute nothing. None on several ranks, on a GPU, and for a model that cannot be copied.
    """
    with _told(model, data), tempfile.TemporaryDirectory() as folder:
        batch = cut(data.first(), images)
        with targets.formed(model):
            empty = Student(copy.deepcopy(model), targets.names)
            empty.modules = {name: _rank_0(targets.layers[name], size) for name, size in sizes.items()}
            targets.unite(empty)
        empty.swap_()
        calls = {TORCH: _call(_ready(copy.deepcopy(model)), data), _REST: _call(_ready(empty.model), data)}
        for layer in empty.modules.values():
            layer.__class__ = _Hollow
        calls |= _runtimes(model, data, batch, Path(folder))
        settle = SPINNING if torch.get_num_threads() > 1 else 0.0
        ms = {name: 1e3 * seconds for name, seconds in latency(calls, batch, SECONDS, settle).items()}
        return Whole(images, ms, ms.pop(_REST))
    return None


def checked(whole: Whole, dense: nn.Module, model: nn.Module, data: Calibration) -> Whole:
    """With the compressed network's own time, at the pace that the machine had when the dense one was timed.

    Both are copies, whose batch norms are folded.
    """
    with _told(dense, data):
        batch = cut(data.first(), whole.images)
        seconds = latency({"dense": _call(_ready(dense), data), "ours": _call(_ready(model), data)}, batch, SECONDS)
        return replace(whole, measured_ms=whole.dense_ms[TORCH] * seconds["ours"] / seconds["dense"])
    return whole


@contextmanager
def _told(model: nn.Module, data: Calibration) -> Iterator[None]:
    """Errors end the block and are told, as foreign models need not be such that they can be copied; so are they not
    timed on several ranks and on GPUs."""
    try:
        if len(distributed.gather(0)) > 1 or data.device.type != "cpu":
            raise ValueError(f"got device {data.device} or several ranks, expected one on a CPU")
        with warnings.catch_warnings(), evaluation_mode(model), progress.stage("whole network", data.show):
            warnings.simplefilter("ignore")  # what fuse_ and the exporter leave
            yield
    except Exception as error:
        _log.warning("the whole network was not timed: %s", str(error).partition("\n")[0])


def _ready(model: nn.Module) -> nn.Module:
    """As its users run it, in place."""
    fuse_(model)
    channels_last_(model)
    return model.eval()


def _call(model: nn.Module, data: Calibration) -> Run:
    return lambda batch: data.forward(model, batch)


def _runtimes(model: nn.Module, data: Calibration, batch: Any, folder: Path) -> dict[str, Run]:
    """Those that are installed and give the model's outputs; none but for models of one float32 tensor."""
    if not isinstance(batch, Tensor) or batch.dtype != torch.float32 or data.adapter is not None:
        return {}
    path, found = folder / "model.onnx", {}
    try:
        onnx.write(model, Sample.of(model, batch, ()), path, {})
    except (ImportError, ValueError):
        return {}
    with torch.no_grad():
        wanted = tree_leaves(data.forward(model, batch))
    for name, make in {"ONNX Runtime": OnnxSession, "OpenVINO": _openvino}.items():
        try:
            run = make(path)
            outputs = [torch.as_tensor(y) for y in tree_leaves(run(batch))]
        except Exception:  # not installed, or an operator that it does not know
            continue
        pairs = zip(outputs, wanted, strict=True)
        if all((got - y).abs().max() <= CLOSE * y.abs().max() for got, y in pairs):
            found[name] = run
    return found


def _openvino(path: Path) -> Run:
    import openvino

    hints = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(path), "CPU", hints).create_infer_request()
    return lambda x: [request.infer([x.numpy(force=True)])[i] for i in range(len(request.model_outputs))]


def _rank_0(conv: nn.Conv2d, size: tuple[int, int]) -> HSCConv2d:
    channels = torch.arange(conv.out_channels)
    nothing = ClusterFactors(channels, 0, torch.zeros(len(channels), 0))
    v, bias = torch.zeros(0, conv.weight[0].numel()), torch.zeros(1, len(channels))
    return HSCConv2d.from_conv(conv, [RegionFactors(channels[:0], (nothing,))], v, bias, torch.zeros(size).long())
