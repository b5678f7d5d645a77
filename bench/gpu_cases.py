"""A layer on a GPU: the gate on the very call that is timed, then times of it and its peers in CUDA graphs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from hscc_kernels import lowrank_conv2d, testing

from . import peers
from .cases import Case, Layer, make_input, make_plan
from .gpu_results import Row
from .roofline import Conv, Machine, Work, dense_work

DEVICE = "cuda"
_CALLS = 64  # a graph runs at least so many, or its launch would show in their time


def measured_machine() -> Machine:
    """Copy bandwidth on 2 GiB and the bf16 matrix rate at 8192^3, both by medians."""
    source = torch.randn(2**29, device=DEVICE)
    target = torch.empty_like(source)
    copy_ms = median_ms(lambda: target.copy_(source))
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product_ms = median_ms(lambda: a @ b)
    return Machine(2 * source.numel() * 4 / copy_ms * 1e3, 2 * 8192**3 / product_ms * 1e3)


def median_ms(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(call, warmup=25, rep=200, return_mode="median")


@torch.inference_mode()
def graph_ms(call: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> float:
    """Median milliseconds of one call, from a graph that runs it on each input in turn."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph, rounds = torch.cuda.CUDAGraph(), math.ceil(_CALLS / len(inputs))
    with torch.cuda.stream(stream):  # around the capture too: one that fails would leave its stream the current one
        for x in inputs[:2]:
            call(x)
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(rounds):
                outputs = [call(x) for x in inputs]  # kept for a round: each call writes memory of its own
    ms = median_ms(graph.replay) / (rounds * len(inputs))
    del outputs
    return ms


def rotations(bytes_per_call: int, l2_bytes: int) -> int:
    """Inputs that together outgrow the L2 three times; between 4 and 64."""
    return min(64, max(4, math.ceil(3 * l2_bytes / bytes_per_call)))


def rotated(x: Tensor, bytes_per_call: int) -> list[Tensor]:
    """Copies of x, channels last, its images in other orders, as many as outgrow the L2."""
    count = rotations(bytes_per_call, torch.cuda.get_device_properties(x.device).L2_cache_size)
    return [x.roll(i, 0).clone(memory_format=torch.channels_last) for i in range(count)]


def time_each(calls: dict, inputs: list[Tensor], time: Callable = graph_ms) -> tuple[dict[str, float], dict[str, str]]:
    """Milliseconds of each call, and of those that fail the reason."""
    ms, failed = {}, {}
    for name, call in calls.items():
        try:
            ms[name] = time(call, inputs)
        except Exception as error:  # a peer's compiler may give up on a layer; the others' times stand
            failed[name] = summary(error)
    return ms, failed


def summary(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]


@functools.cache  # every plan of a layer has the same peers, and compiling them takes most of the time
def peer_ms(layer: Layer, rank: int | None, batch: int) -> tuple[dict[str, float], dict[str, str]]:
    """Times of the dense layer, or of the unfused chain of a rank: eager, with cuDNN's fused ReLU, and compiled."""
    weights, kind = [torch.randn(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)], "dense"
    if rank is not None:
        first = torch.randn(rank, layer.in_channels, layer.kernel, layer.kernel)
        weights, kind = [first, torch.randn(layer.out_channels, rank, 1, 1)], "chain"
    chain = peers.Chain(weights, torch.randn(layer.out_channels), layer)
    chain = chain.to(DEVICE, torch.bfloat16, memory_format=torch.channels_last)

    def fused(x: Tensor) -> Tensor:
        *before, last = chain.convs
        for conv in before:
            x = conv(x)
        return torch.cudnn_convolution_relu(x, last.weight, last.bias, last.stride, last.padding, last.dilation, 1)

    calls = {
        f"eager {kind}": chain,
        f"fused {kind}": fused,
        f"compiled {kind}": torch.compile(chain, mode="max-autotune-no-cudagraphs", fullgraph=True),
    }
    x = make_input(layer, batch).to(DEVICE, torch.bfloat16)
    times = time_each(calls, rotated(x, bytes_of(layer, batch)))
    torch.compiler.reset()
    return times


def bytes_of(layer: Layer, batch: int) -> int:
    """Activations that a call reads and writes, bf16."""
    return 2 * batch * (layer.in_channels * layer.size**2 + layer.out_channels * layer.out_side**2)


def work_of(layer: Layer, batch: int, factors: int, flops: int) -> Work:
    """Floors of a plan: the dense layer's activations, the plan's own factors and FLOPs. bf16."""
    conv = Conv(layer.name, 1, layer.in_channels, layer.out_channels, layer.kernel, layer.size, layer.out_side)
    weights = conv.patch * conv.out_channels + conv.out_channels
    return Work(dense_work(conv, batch).bytes + 2 * (factors - weights) + 4 * conv.out_side**2, flops)


def run_case(case: Case, batch: int) -> Row | str:
    """The case's row, or a sentence that says why it has none."""
    layer, dtype = case.layer, torch.bfloat16
    plan = make_plan(case).to(DEVICE, dtype)
    bias = torch.randn(layer.out_channels, generator=torch.Generator().manual_seed(2)).to(DEVICE, dtype)
    inputs = rotated(make_input(layer, batch).to(DEVICE, dtype), bytes_of(layer, batch))

    def ours(x: Tensor) -> Tensor:
        return lowrank_conv2d(x, plan, bias, activation="relu", backend="triton")

    ends = [0, batch - 1]
    few, got = inputs[0][ends], ours(inputs[0])[ends]
    error = testing.error_ratio(got, testing.plain(few, plan, bias, "relu"), testing.exact(few, plan, bias, "relu"))
    reduction = layer.flops(1) / plan.flops()
    ms, failed = time_each({"ours": ours}, inputs) if error <= 1 else ({}, {})
    if ms:
        rank = max(1, round(plan.flops() / (2 * layer.out_side**2) / (layer.patch + layer.out_channels)))
        for times, reasons in (peer_ms(layer, None, batch), peer_ms(layer, rank, batch)):
            ms, failed = ms | times, failed | reasons
    return Row.of(
        case.name, reduction, error, ms, failed, work_of(layer, batch, plan.parameters(), plan.flops() * batch)
    )
