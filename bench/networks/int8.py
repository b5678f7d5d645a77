"""Dense networks for the runtimes: as ONNX graphs, and quantised to 8 bits after training as their makers advise."""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels.peers import HAS_OPENVINO, HAS_ORT, Bound, onnxruntime_bound, openvino_bound

HAS_EXPORT = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))
HAS_NNCF = importlib.util.find_spec("nncf") is not None


def exported(model: nn.Module, x: Tensor) -> bytes:
    """The model's ONNX graph at the shape of x, from "x" to "y"; convolutions take up the batch norms behind them."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # else it tells of each torchvision op that is not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(model, (x,), dynamo=True, input_names=["x"], output_names=["y"], verbose=False)
    return program.model_proto.SerializeToString()


def onnxruntime_int8(model: bytes, batches: list[np.ndarray]) -> bytes:
    """By ONNX Runtime: QDQ, weights in s8 by channel, activations in u8; batch norms that fold into nothing stay float.

    Without VNNI weights get 7 bits, as sums of two products would not fit 16. Activations in s8 would be slower.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        left = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.left, None)
            return None if batch is None else {"x": batch}

    with tempfile.TemporaryDirectory() as folder:
        ready, done = (str(Path(folder, name)) for name in ("ready.onnx", "done.onnx"))
        quant_pre_process(onnx.load_from_string(model), ready)
        norms = [node.name for node in onnx.load(ready).graph.node if node.op_type == "BatchNormalization"]
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        seven = not torch.cpu._is_vnni_supported()
        quantize_static(ready, done, Reader(), per_channel=True, reduce_range=seven, nodes_to_exclude=norms, **types)
        return Path(done).read_bytes()


def openvino_int8(model: bytes, batches: list[np.ndarray]) -> object:
    """By NNCF, with its defaults: an ``openvino.Model``."""
    import openvino

    with mock.patch.dict(os.environ, NNCF_CI="1"):  # else it reports its use over the network
        import nncf
    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(openvino.Core().read_model(model), nncf.Dataset(batches), subset_size=len(batches))


def int8_peers(model: bytes, x: Tensor, images: Tensor, threads: int) -> dict[str, Bound]:
    """Both, those that are installed, calibrated on ``images`` in batches of x's size (a rest is left out).

    Without NNCF OpenVINO runs ONNX Runtime's graph.
    """
    batches = [batch.numpy() for batch in images.split(len(x)) if len(batch) == len(x)]
    if not batches:
        raise ValueError(f"images: got {len(images)}, expected at least a batch of {len(x)}")
    peers, graph = {}, None
    if HAS_ORT:
        graph = onnxruntime_int8(model, batches)
        peers["onnxruntime_int8"] = onnxruntime_bound(graph, x, threads)
    if HAS_OPENVINO and HAS_NNCF:
        peers["openvino_int8"] = openvino_bound(openvino_int8(model, batches), x, threads)
    elif HAS_OPENVINO and graph:
        peers["openvino_int8_qdq"] = openvino_bound(graph, x, threads)
    return peers
