"""The kernel in int8 beside our own in float32, in turns, in processor time: ``python -m bench.kernels --dtype int8``.

Processor time of the one thread, because other work on the machine then slows neither much; a ratio is the median over
rounds. Once more from inputs that are in 8 bits already, as where the layer before gives them so. ONNX Runtime's dense
int8 convolution, from float32 to float32 as ours, takes its turns where it is installed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hscc_kernels import Int8Plan, lowrank_conv2d, lowrank_conv2d_int8, reference_int8, testing

from . import peers
from .cases import LAYERS, Case, Layer, make_input, make_plan

PAIRS = (("int8", "float32"), ("int8 from uint8", "float32"), ("int8", "onnxruntime int8"))
SLICE = 4e-3  # seconds of processor time of a call in a round


@torch.inference_mode()
def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time of each call, a median for every round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # its own data back into the caches
            single, end = [], time.thread_time() + SLICE
            while (start := time.thread_time()) < end or not single:
                call()
                single.append(time.thread_time() - start)
            times[name].append(1e3 * statistics.median(single))
    return times


def onnxruntime_call(layer: Layer, x: Tensor, bias: Tensor) -> dict[str, Callable[[], object]]:
    """The dense convolution quantised after training, calibrated on x."""
    if not peers.HAS_ORT:
        return {}
    from ..networks.int8 import onnxruntime_int8

    weight = torch.randn(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel) / layer.patch**0.5
    graph = onnxruntime_int8(peers.onnx_model(x, [weight], bias, layer), [x.contiguous().numpy()])
    return {"onnxruntime int8": peers.onnxruntime_bound(graph, x, 1).run}


def measure(case: Case, batch: int, bits: int, rounds: int) -> dict:
    """A row of the results; of a wrong kernel only its error ratio."""
    layer = case.layer
    plan, x = make_plan(case), make_input(layer, batch)
    bias = torch.randn(layer.out_channels, generator=torch.Generator().manual_seed(2))
    int8 = Int8Plan.quantised(plan, x.max().item() / 255, 0, bits)
    few = x[:2]
    got = lowrank_conv2d_int8(few, int8, bias, activation="relu", backend="cpu")
    exact = testing.exact_int8(few, int8, bias, "relu")
    error = testing.error_ratio(got, testing.plain_int8(few, int8, bias, "relu"), exact)
    row = {"name": case.name, "batch": batch, "bits": bits, "error_ratio": round(error, 4)}
    if not error <= 1:
        return row
    dense = testing.exact(few, plan, bias, "relu")
    biases = bias.expand(plan.regions, -1).contiguous()
    in_bytes = reference_int8.quantise(x, int8.scale, int8.zero_point)
    calls = {
        "float32": lambda: lowrank_conv2d(x, plan, biases, activation="relu", backend="cpu"),
        "int8": lambda: lowrank_conv2d_int8(x, int8, biases, activation="relu", backend="cpu"),
        "int8 from uint8": lambda: lowrank_conv2d_int8(in_bytes, int8, biases, activation="relu", backend="cpu"),
        **onnxruntime_call(layer, x, bias),
    }
    times = interleaved(calls, rounds)
    row["speedups"] = {}
    for ours, other in PAIRS:
        if other in times:
            ratios = [a / b for a, b in zip(times[other], times[ours], strict=True)]
            low, middle, high = (round(q, 3) for q in statistics.quantiles(ratios, n=4))
            row["speedups"][f"{ours} over {other}"] = {"median": middle, "quartiles": [low, high]}
    row["ms"] = {name: round(statistics.median(rounds), 5) for name, rounds in times.items()}
    row["error_of_8_bits"] = round(((got - dense).square().mean() / dense.square().mean()).sqrt().item(), 5)
    return row


def print_row(row: dict) -> None:
    if "ms" not in row:
        print(f"{row['name']:30s} WRONG: error ratio {row['error_ratio']:.3g}; not timed", flush=True)
        return
    line = f"{row['name']:30s} {row['ms']['int8']:8.3f} ms"
    for pair, ratio in row["speedups"].items():
        low, high = ratio["quartiles"]
        line += f"  {pair} {ratio['median']:.2f}x ({low:.2f} to {high:.2f})"
    print(f"{line}  8 bits cost {100 * row['error_of_8_bits']:.2f} %", flush=True)


def print_summary(rows: list[dict]) -> None:
    timed = [row for row in rows if "ms" in row]
    for title, group in (
        ("k x k", [row for row in timed if LAYERS[row["name"].split("/")[0]].kernel > 1]),
        ("1 x 1", [row for row in timed if LAYERS[row["name"].split("/")[0]].kernel == 1]),
    ):
        for pair in dict.fromkeys(pair for row in group for pair in row["speedups"]):
            ratios = [row["speedups"][pair]["median"] for row in group]
            mean = statistics.geometric_mean(ratios)
            print(f"{title}, {len(ratios)} cases, {pair}: geometric mean {mean:.3f}x, least {min(ratios):.3f}x")
