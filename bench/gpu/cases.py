"""A layer on a GPU: the gate on the very call that is timed, then times of it and its peers in CUDA graphs."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from hscc_kernels import PackedPlan, lowrank_conv2d, testing

from ..kernels import peers
from ..kernels.cases import Case, Layer, make_plan
from .results import Row
from .roofline import Conv, Machine, Work, dense_work

DEVICE = "cuda"
_CALLS = 64  # at most so many in a graph; fewer where they last long enough that its launch cannot show
_GRAPH_MS = 2.0


class Setting(NamedTuple):
    """A case at a batch and a data type, "bfloat16" or "float16"."""

    case: Case
    batch: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.case.name}/{self.dtype}/{self.batch}"

    @property
    def group(self) -> str:
        """What a geometric mean is taken over: layers that low-rank factors are meant for, or the 1 x 1."""
        case = self.case
        kind = "k x k" if case.layer.kernel > 1 else "1 x 1"
        return f"{kind}, R={case.regions}, {case.reduction:g}x, {self.dtype}, batch {self.batch}"


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

    return do_bench(call, warmup=10, rep=60, return_mode="median")


@torch.inference_mode()
def graph_ms(call: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> float:
    """Median milliseconds of one call, from a graph that runs it on each input in turn."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):  # around the capture too: one that fails would leave its stream the current one
        call(inputs[0])
        begin.record()
        call(inputs[1 % len(inputs)])
        end.record()
        end.synchronize()
        calls = min(_CALLS, math.ceil(_GRAPH_MS / max(begin.elapsed_time(end), 1e-3)))
        rounds = math.ceil(calls / len(inputs))
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(rounds):
                outputs = [call(x) for x in inputs]  # kept for a round: each call writes memory of its own
    ms = median_ms(graph.replay) / (rounds * len(inputs))
    del outputs
    return ms


def make_input(layer: Layer, batch: int, dtype: torch.dtype) -> Tensor:
    """Activations after a ReLU, channels last; made where they are used, as copies of large batches take seconds."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    size = (batch, layer.size, layer.size, layer.in_channels)
    return torch.randn(size, generator=generator, device=DEVICE, dtype=dtype).relu_().permute(0, 3, 1, 2)


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
def peer_ms(
    layer: Layer, rank: int | None, batch: int, dtype: torch.dtype, compiled: bool
) -> tuple[dict[str, float], dict[str, str]]:
    """Times of the dense layer, or of the unfused chain of a rank: eager, with cuDNN's fused ReLU, and compiled."""
    weights, kind = [torch.randn(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)], "dense"
    if rank is not None:
        first = torch.randn(rank, layer.in_channels, layer.kernel, layer.kernel)
        weights, kind = [first, torch.randn(layer.out_channels, rank, 1, 1)], "chain"
    chain = peers.Chain(weights, torch.randn(layer.out_channels), layer)
    chain = chain.to(DEVICE, dtype, memory_format=torch.channels_last)

    def fused(x: Tensor) -> Tensor:
        *before, last = chain.convs
        for conv in before:
            x = conv(x)
        return torch.cudnn_convolution_relu(x, last.weight, last.bias, last.stride, last.padding, last.dilation, 1)

    calls = {f"eager {kind}": chain, f"fused {kind}": fused}
    if compiled:
        calls[f"compiled {kind}"] = torch.compile(chain, mode="max-autotune-no-cudagraphs", fullgraph=True)
    times = time_each(calls, rotated(make_input(layer, batch, dtype), bytes_of(layer, batch)))
    torch.compiler.reset()
    return times


def bytes_of(layer: Layer, batch: int) -> int:
    """Activations that a call reads and writes, 16 bits each."""
    return 2 * batch * (layer.in_channels * layer.size**2 + layer.out_channels * layer.out_side**2)


def work_of(layer: Layer, batch: int, factors: int, flops: int) -> Work:
    """Floors of a plan: the dense layer's activations, the plan's own factors and FLOPs. 16 bits a number."""
    conv = Conv(layer.name, 1, layer.in_channels, layer.out_channels, layer.kernel, layer.size, layer.out_side)
    weights = conv.patch * conv.out_channels + conv.out_channels
    return Work(dense_work(conv, batch).bytes + 2 * (factors - weights) + 4 * conv.out_side**2, flops)


@functools.cache
def plan_of(case: Case) -> PackedPlan:
    return make_plan(case).to(DEVICE)


def tiles(plan: PackedPlan, layer: Layer, batch: int, dtype: torch.dtype) -> tuple:
    """The tiles worth timing for a call, the default first."""
    from hscc_kernels.triton_kernels import configs
    from hscc_kernels.triton_kernels.lowrank_conv2d import describe

    x = torch.empty(1, dtype=dtype).expand(batch, layer.in_channels, layer.size, layer.size)
    return configs.candidates(describe(x, plan), configs.Chip.of(torch.device(DEVICE)))


def run_tile(x: Tensor, bias: Tensor, plan: PackedPlan, tile) -> Tensor:
    """A call with a tile of one's choice."""
    from hscc_kernels.triton_kernels.lowrank_conv2d import lowrank_conv2d as run

    return run(x, bias, *plan, "relu", tile)


def compile_ahead(settings: Iterable[Setting], every_tile: bool) -> None:
    """Compiles, in as many processes as there are processors, what the settings will run; into Triton's disk cache."""
    jobs = {}
    for case, batch, name in settings:
        dtype = getattr(torch, name)
        options = tiles(plan_of(case), case.layer, batch, dtype)
        for tile in options if every_tile else options[:1]:
            layer = case.layer  # sizes and batch are no constants of the kernel
            jobs.setdefault((layer.in_channels % 16, layer.out_channels % 16, layer.geometry, dtype, tile), case)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(len(jobs), (os.cpu_count() or 1) - 2)), spawn) as pool:
        list(pool.map(_compile, jobs.values(), (key[-2] for key in jobs), (key[-1] for key in jobs)))


def _compile(case: Case, dtype: torch.dtype, tile) -> None:
    try:
        layer = case.layer
        bias = torch.zeros(layer.out_channels, device=DEVICE, dtype=dtype)
        run_tile(make_input(layer, 1, dtype), bias, plan_of(case).to(DEVICE, dtype), tile)
    except Exception as error:  # the run of the case itself will say it, with its name
        print(f"{case.name}: {summary(error)}", flush=True)


def run_case(setting: Setting, compiled: bool = True, every_tile: bool = False) -> Row | str:
    """The setting's row, or a sentence that says why it has none."""
    layer, batch, dtype = setting.case.layer, setting.batch, getattr(torch, setting.dtype)
    plan = plan_of(setting.case).to(DEVICE, dtype)
    bias = torch.randn(layer.out_channels, generator=torch.Generator().manual_seed(2)).to(DEVICE, dtype)
    inputs = rotated(make_input(layer, batch, dtype), bytes_of(layer, batch))
    calls = {"ours": lambda x: lowrank_conv2d(x, plan, bias, activation="relu", backend="triton")}
    if every_tile:
        for tile in tiles(plan, layer, batch, dtype):
            calls[f"ours {tile.name}"] = functools.partial(run_tile, bias=bias, plan=plan, tile=tile)
    ends = sorted({0, batch - 1})
    few = inputs[0][ends]
    plain, exact = testing.plain(few, plan, bias, "relu"), testing.exact(few, plan, bias, "relu")
    error = max(testing.error_ratio(call(inputs[0])[ends], plain, exact) for call in calls.values())
    reduction = layer.flops(1) / plan.flops()
    ms, failed = time_each(calls, inputs) if error <= 1 else ({}, {})
    if ms:
        rank = max(1, round(plan.flops() / (2 * layer.out_side**2) / (layer.patch + layer.out_channels)))
        for kind in (None, rank):
            times, reasons = peer_ms(layer, kind, batch, dtype, compiled)
            ms, failed = ms | times, failed | reasons
    work = work_of(layer, batch, plan.parameters(), plan.flops() * batch)
    return Row.of(setting.name, setting.group, reduction, error, ms, failed, work)
