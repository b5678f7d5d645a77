"""Times the whole example AlexNet, dense and compressed: ``python -m bench.models --help``."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import hscc
import torch
from torch import Tensor, nn
from torch._inductor import aoti_compile_and_package, aoti_load_package

from . import accuracy
from .correctness import error_ratio
from .peers import HAS_ONNX, Calls, runtime_calls, torch_calls
from .timing import header, interleaved, keep_freed_memory, ratio

DATA = "brain_mri"


def compressed(reduction: float, calibration: int) -> tuple[nn.Module, hscc.Report]:
    """The network that the accuracy study tests at this FLOP reduction, its ReLUs fused."""
    dense, spec, _ = accuracy.example(DATA)
    cell = accuracy.Cell(DATA, "hscc", reduction, calibration=calibration)
    model, pixels = copy.deepcopy(dense), accuracy.images(DATA, "calibration", calibration, cell.seed)[0]
    report = hscc.compress_(model, accuracy.batches(pixels, spec), cell.config(), show_progress=True)
    hscc.fuse_relu_(model)
    return model.to(memory_format=torch.channels_last), report


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


def call(module: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    @torch.inference_mode()
    def run():
        return module(x)

    return run


def aot(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The model as an AOTInductor package, which calls no Python between its layers."""
    with tempfile.TemporaryDirectory() as folder:
        package = str(Path(folder, "model.pt2"))
        return aoti_load_package(aoti_compile_and_package(torch.export.export(model, (x,)), package_path=package))


def own_calls(model: nn.Module, x: Tensor, compiled: bool) -> Calls:
    """The compressed model eager and, as its peers have it too, compiled: with frozen weights, and ahead of time."""
    calls = {"eager": call(model, x)}
    if compiled:
        calls |= {"compiled": call(torch.compile(model), x), "aot": call(aot(model, x), x)}
    return calls


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--reductions", type=float, nargs="+", default=[3.0, 5.3, 10.0, 20.0])
    parser.add_argument("--calibration", type=int, default=512, help="images")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="write the results to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    torch.set_grad_enabled(False)
    head = header(args.threads, args.batch)
    print(json.dumps(head))
    dense, spec, _ = accuracy.example(DATA)
    x = spec.preprocess(accuracy.images(DATA, "calibration", args.calibration, 0)[0][: args.batch])
    peers: Calls = torch_calls(dense, x, compiled=not args.no_compile)
    x_last = x.contiguous(memory_format=torch.channels_last)
    if not args.no_compile:
        peers["torch_aot"] = call(aot(dense.to(memory_format=torch.channels_last), x_last), x_last)
    if HAS_ONNX:
        peers |= runtime_calls(onnx_model(dense, x), x, args.threads)
    rows, calls, wrong = [], dict(peers), False
    for reduction in args.reductions:
        model, report = compressed(reduction, args.calibration)
        name = f"alexnet/{reduction:g}x"
        error = error_ratio(model, x_last)
        row = {"name": name, "batch": args.batch, "threads": args.threads, "error_ratio": round(error, 4)}
        row["flop_reduction"] = round(report.flop_reduction, 3)
        rows.append(row)
        if error <= 1:
            calls |= {f"{name} {way}": call for way, call in own_calls(model, x_last, not args.no_compile).items()}
        wrong |= not error <= 1
    times = interleaved(calls, args.rounds)
    ms = {name: statistics.median(rounds) for name, rounds in times.items()}
    for name in peers:
        print(f"dense {name:22s} {ms[name]:9.3f} ms")
    for row in rows:
        own = {way: ms[f"{row['name']} {way}"] for way in ("eager", "compiled", "aot") if f"{row['name']} {way}" in ms}
        if not own:
            print(f"{row['name']}: WRONG, error ratio {row['error_ratio']:.3g}; not timed")
            continue
        way = min(own, key=own.get)
        ours = f"{row['name']} {way}"
        row |= {"ms": round(own[way], 5), "way": way, **{f"{way}_ms": round(t, 5) for way, t in own.items()}}
        row["peers"] = {name: round(ms[name], 5) for name in peers}
        best = ratio(times, [name for name in peers if name.startswith("torch")], ours)
        row["speedup_over_best_dense"] = round(best, 3)
        row["eta"] = round(best / row["flop_reduction"], 4)
        row["speedup_over_all"] = round(ratio(times, list(peers), ours), 3)
        print(
            f"{ours:28s} {row['ms']:9.3f} ms  {row['flop_reduction']:5.2f}x fewer {best:5.2f}x faster  "
            f"eta {row['eta']:.3f}  over all runtimes {row['speedup_over_all']:.2f}x  "
            + ", ".join(f"{way} {t:.3f} ms" for way, t in own.items())
        )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"header": head, "cases": rows}, file, indent=1)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
