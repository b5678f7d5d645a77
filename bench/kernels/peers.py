"""What the kernel has to beat: the dense convolution and the unfused low-rank chain in other runtimes.

Each function gives ``{name: call}``; every call runs convolution, bias and ReLU on the same numbers. Runtimes that are
not installed are left out.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Layer

Calls = dict[str, Callable[[], object]]
EAGER = ("torch", "torch_channels_last")
HAS_ONNX = importlib.util.find_spec("onnx") is not None
HAS_ORT = HAS_ONNX and importlib.util.find_spec("onnxruntime") is not None
HAS_OPENVINO = HAS_ONNX and importlib.util.find_spec("openvino") is not None


class Chain(nn.Module):
    """Convolutions one after the other, a ReLU after the last."""

    def __init__(self, weights: list[Tensor], bias: Tensor, layer: Layer):
        super().__init__()
        geometry = layer.geometry
        self.convs = nn.ModuleList()
        for i, weight in enumerate(weights):
            first, last = i == 0, i == len(weights) - 1
            conv = nn.Conv2d(
                weight.shape[1],
                weight.shape[0],
                weight.shape[2:],
                stride=geometry.stride if first else 1,
                padding=geometry.padding if first else 0,
                bias=last,
            )
            conv.weight.data = weight
            if last:
                conv.bias.data = bias
            self.convs.append(conv)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x)
        return F.relu(x, inplace=True)


def torch_calls(module: nn.Module, x: Tensor, compiled: bool) -> Calls:
    """Eager NCHW, eager channels last and, with frozen weights, torch.compile."""

    last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    x_last = x.contiguous(memory_format=torch.channels_last)
    calls = {"torch": partial(module, x.contiguous()), "torch_channels_last": partial(last, x_last)}
    if compiled:
        from torch._inductor import config

        calls["torch_compile"] = partial(torch.compile(last), x_last)
        with config.patch(freezing=True), torch.inference_mode():  # for this call alone: it slows compressed networks
            calls["torch_compile"]()
    return calls


def onnx_model(x: Tensor, weights: list[Tensor], bias: Tensor, layer: Layer) -> bytes:
    """The chain as an ONNX graph."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    geometry = layer.geometry
    nodes, values, name = [], [numpy_helper.from_array(bias.numpy(), "bias")], "x"
    for i, weight in enumerate(weights):
        first, last = i == 0, i == len(weights) - 1
        values.append(numpy_helper.from_array(weight.contiguous().numpy(), f"w{i}"))
        stride = geometry.stride if first else (1, 1)
        pads = (*geometry.padding, *geometry.padding) if first else (0, 0, 0, 0)
        inputs = [name, f"w{i}", *(["bias"] if last else [])]
        nodes.append(helper.make_node("Conv", inputs, [f"c{i}"], strides=list(stride), pads=list(pads)))
        name = f"c{i}"
    nodes.append(helper.make_node("Relu", [name], ["y"]))
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))
    shape = [x.shape[0], weights[-1].shape[0], layer.out_side, layer.out_side]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "chain", [source], [result], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class Bound(NamedTuple):
    """A call of a runtime whose input and output are bound once, and the output of the last call, (N, ...)."""

    run: Callable[[], object]
    read: Callable[[], Tensor]


def onnxruntime_bound(model: bytes, x: Tensor, threads: int) -> Bound:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x.contiguous().numpy()))
    binding.bind_output(session.get_outputs()[0].name)
    return Bound(lambda: session.run_with_iobinding(binding), lambda: torch.tensor(binding.copy_outputs_to_cpu()[0]))


def openvino_bound(model: object, x: Tensor, threads: int) -> Bound:
    """Of an ``openvino.Model``, or of an ONNX graph's bytes."""
    import openvino

    hints = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    model = core.read_model(model) if isinstance(model, bytes) else model
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.contiguous().numpy(), shared_memory=True))
    return Bound(request.infer, lambda: torch.tensor(request.get_output_tensor().data))


def runtimes(model: bytes, x: Tensor, threads: int) -> dict[str, Bound]:
    """ONNX Runtime and OpenVINO on ``threads`` threads, those that are installed."""
    bound = {"onnxruntime": (HAS_ORT, onnxruntime_bound), "openvino": (HAS_OPENVINO, openvino_bound)}
    return {name: bind(model, x, threads) for name, (here, bind) in bound.items() if here}


def runtime_calls(model: bytes, x: Tensor, threads: int) -> Calls:
    return {name: bound.run for name, bound in runtimes(model, x, threads).items()}


def all_peers(x: Tensor, weights: list[Tensor], bias: Tensor, layer: Layer, threads: int, compiled: bool) -> Calls:
    calls = torch_calls(Chain([w.contiguous() for w in weights], bias, layer), x, compiled)
    if x.dtype != torch.float32 or not HAS_ONNX:  # the graph, and the memory that is bound to it, hold float32
        return calls
    return calls | runtime_calls(onnx_model(x, weights, bias, layer), x, threads)
