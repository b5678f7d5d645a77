"""Times the whole example AlexNet, dense and compressed: ``python -m bench.networks --help``."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hscc
import torch
from torch import Tensor, nn
from torch._inductor import aoti_compile_and_package, aoti_load_package, config

from hscc_kernels import testing

from ..accuracy import examples, study
from ..kernels.layers import DTYPES
from ..kernels.peers import HAS_ONNX, Calls, runtime_calls, torch_calls
from ..timing import header, interleaved, keep_freed_memory, ratio
from .correctness import references

DATA = "brain_mri"
WAYS = ("eager", "compiled", "aot")  # of running a compressed model


def compressed(flops: float, params: float | None, calibration: int, dtype: torch.dtype) -> tuple[nn.Module, dict]:
    """The network that the accuracy study tests at these reductions, its ReLUs fused, and what it is."""
    dense, spec, _ = examples.network(DATA)
    cell = study.Cell(DATA, "hscc", flops, params, calibration)
    model, pixels = copy.deepcopy(dense), examples.images(DATA, "calibration", calibration, cell.seed)[0]
    report = hscc.compress_(model, study.batches(pixels, spec), cell.config(), show_progress=True)
    hscc.fuse_(model)
    model = model.to(dtype, memory_format=torch.channels_last)
    before, after = study.dense_scores(DATA, cell.seed), study.scores(model, DATA, cell.seed, True)
    return model, {
        "flop_reduction": round(report.flop_reduction, 3),
        "param_reduction": round(report.parameter_reduction, 3),
        "difference": round(after.mean() - before.mean(), 5),
    }


def onnx_model(model: nn.Sequential, x: Tensor) -> bytes:
    """An ONNX graph of the layers that the example has."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, values, name = [], [], "x"
    shape = x.shape
    for i, layer in enumerate(model):
        weights = [f"{i}.{key}" for key, _ in layer.named_parameters()]
        values += [numpy_helper.from_array(p.numpy(), f"{i}.{key}") for key, p in layer.named_parameters()]
        if isinstance(layer, nn.Conv2d):
            kind, attributes = "Conv", {"strides": list(layer.stride), "pads": list(layer.padding) * 2}
        elif isinstance(layer, nn.ReLU):
            kind, attributes = "Relu", {}
        elif isinstance(layer, nn.MaxPool2d):
            kind, attributes = "MaxPool", {"kernel_shape": [layer.kernel_size] * 2, "strides": [layer.stride] * 2}
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            size = [shape[2] // layer.output_size, shape[3] // layer.output_size]
            kind, attributes = "AveragePool", {"kernel_shape": size, "strides": size}
        elif isinstance(layer, nn.Flatten):
            kind, attributes = "Flatten", {}
        elif isinstance(layer, nn.Linear):
            kind, attributes = "Gemm", {"transB": 1}
        elif isinstance(layer, nn.Dropout):
            continue
        else:
            raise TypeError(f"layer {i}: got {type(layer).__name__}, which this bench cannot translate")
        nodes.append(helper.make_node(kind, [name, *weights], [f"y{i}"], **attributes))
        name = f"y{i}"
        shape = model[: i + 1](x).shape
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))
    result = helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
    graph = helper.make_graph(nodes, "example", [source], [result], values)
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(built)
    return built.SerializeToString()


def aot(model: nn.Module, x: Tensor, frozen: bool = False) -> Callable[[], Tensor]:
    """A call of the model's AOTInductor package on x by its loader, as a server makes it: the package's ``__call__``
    reads its signature from JSON each time, which takes as long as a layer."""
    with tempfile.TemporaryDirectory() as folder, config.patch(freezing=frozen):
        package = str(Path(folder, "model.pt2"))
        aoti_compile_and_package(torch.export.export(model, (x,)), package_path=package)
        loader = aoti_load_package(package).loader
    return lambda: loader.run([x])[0]


def own_calls(model: nn.Module, x: Tensor, compiled: bool) -> Calls:
    """The compressed model eager and, as its peers have it too, compiled and ahead of time; none with frozen weights,
    which help dense networks and slow a compressed one's package by a quarter."""
    calls = {"eager": partial(model, x)}
    if compiled:
        calls |= {"compiled": partial(torch.compile(model), x), "aot": aot(model, x)}
    return calls


def measure(models: dict[str, tuple[nn.Module, dict]], x: Tensor, threads: int, compiled: bool, rounds: int):
    """A row for each compressed model (by name, with what it is), timed in turn with the dense peers."""
    dense = copy.deepcopy(examples.network(DATA)[0]).to(x.dtype)
    torch._dynamo.reset()
    peers: Calls = torch_calls(dense, x, compiled)
    if compiled:
        x_last = x.contiguous(memory_format=torch.channels_last)
        peers["torch_aot"] = aot(dense, x_last, frozen=True)
    if HAS_ONNX and x.dtype == torch.float32:  # what the graph holds
        peers |= runtime_calls(onnx_model(dense, x), x, threads)
    rows, calls = [], dict(peers)
    for name, (model, facts) in models.items():
        own, wanted = own_calls(model, x, compiled), references(model, x)  # NCHW, as loaders give it
        with torch.inference_mode():  # what is timed is what is checked
            error = max(testing.error_ratio(run(), *wanted) for run in own.values())
        rows.append({"name": name, "batch": len(x), "threads": threads, **facts, "error_ratio": round(error, 4)})
        if error <= 1:
            calls |= {f"{name} {way}": run for way, run in own.items()}
    times = interleaved(calls, rounds, slice_ms=100.0)  # several calls even of the dense network at batch 8
    ms = {name: statistics.median(rounds) for name, rounds in times.items()}
    for row in rows:
        own = {way: ms[f"{row['name']} {way}"] for way in WAYS if f"{row['name']} {way}" in ms}
        if not own:
            continue
        way = min(own, key=own.get)
        ours = f"{row['name']} {way}"
        row |= {"ms": round(own[way], 5), "way": way, **{f"{way}_ms": round(t, 5) for way, t in own.items()}}
        row["peers"] = {name: round(ms[name], 5) for name in peers}
        best = ratio(times, [name for name in peers if name.startswith("torch")], ours)
        row["speedup_over_best_dense"] = round(best, 3)
        row["eta"] = round(best / row["flop_reduction"], 4)
        row["speedup_over_all"] = round(ratio(times, list(peers), ours), 3)
    return rows


def print_row(row: dict) -> None:
    name = f"{row['name']} batch {row['batch']}"
    if "ms" not in row:
        print(f"{name}: WRONG, error ratio {row['error_ratio']:.3g}; not timed", flush=True)
        return
    own = ", ".join(f"{way} {row[f'{way}_ms']:.3f}" for way in WAYS if f"{way}_ms" in row)
    print(
        f"{name:22s} {row['ms']:9.3f} ms ({own})  {row['flop_reduction']:5.2f}x fewer, "
        f"{row['param_reduction']:.2f}x parameters, {100 * row['difference']:+.2f} points  "
        f"{row['speedup_over_best_dense']:5.2f}x faster  eta {row['eta']:.3f}  over all runtimes "
        f"{row['speedup_over_all']:.2f}x  dense: " + ", ".join(f"{n} {t:.3f}" for n, t in row["peers"].items()),
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--reductions", type=float, nargs="+", default=[3.0, 5.3, 10.0, 20.0])
    parser.add_argument("--params", type=float, help="times fewer parameters, as well")
    parser.add_argument("--calibration", type=int, default=512, help="images")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="bfloat16: PyTorch's are the only peers")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled calls out")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="write the results to this file")
    args = parser.parse_args(argv)
    stored = f"/p{args.params:g}" if args.params else ""
    dtype = DTYPES[args.dtype]
    models = {f"alexnet/{f:g}x{stored}": compressed(f, args.params, args.calibration, dtype) for f in args.reductions}
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    keep_freed_memory()
    head, rows = header(args.threads, args.batch, dtype=dtype), []
    print(json.dumps(head))
    pixels, spec = examples.images(DATA, "calibration", args.calibration, 0)[0], examples.network(DATA)[1]
    for batch in args.batch:
        x = spec.preprocess(pixels[:batch]).to(dtype)
        rows += measure(models, x, args.threads, not args.no_compile, args.rounds)
        for row in rows[-len(models) :]:
            print_row(row)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"header": head, "cases": rows}, file, indent=1)
    return int(any("ms" not in row for row in rows))
