"""One call on a GPU machine: build, gpu tests, bench against dense and unfused peers, roofline table, JSON, picture.

    python -m bench.gpu_report --out out/gpu

Needs a plain source tree, torch with CUDA and triton; no network. Every timed call runs inside a CUDA graph over
rotating inputs that outgrow the L2, and a case whose error ratio is above 1 gets no time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hscc_kernels import lowrank_conv2d, testing

from . import peers
from .cases import LAYERS, Case, Layer, make_input, make_plan
from .roofline import Conv, Machine, Work, dense_work

ROOT = Path(__file__).parents[1]
DENSE = ("cudnn dense", "compiled dense")
COLUMNS = ("case", "fewer FLOPs", "best dense ms", "chain ms", "ours ms", "speed-up", "eta", "floor ms", "of floor")


class Row(NamedTuple):
    """A case that passed its gate. ms: median milliseconds of each call."""

    name: str
    reduction: float
    error_ratio: float
    ms: dict[str, float]
    work: Work

    @property
    def best_dense(self) -> float:
        return min(self.ms[name] for name in DENSE)

    @property
    def speedup(self) -> float:
        return self.best_dense / self.ms["ours"]

    @property
    def eta(self) -> float:
        """The share of the FLOPs saved that became time saved."""
        return self.speedup / self.reduction


def measured_machine() -> Machine:
    """Copy bandwidth on 2 GiB and the bf16 matrix rate at 8192^3, both by medians."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    copy_ms = median_ms(lambda: target.copy_(source))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product_ms = median_ms(lambda: a @ b)
    return Machine(2 * source.numel() * 4 / copy_ms * 1e3, 2 * 8192**3 / product_ms * 1e3)


def median_ms(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(call, warmup=25, rep=200, return_mode="median")


def graph_ms(call: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> float:
    """Median milliseconds of one call, from a graph that runs it once on each input."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for x in inputs[:2]:
            call(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [call(x) for x in inputs]  # kept: each call writes memory of its own
    ms = median_ms(graph.replay) / len(inputs)
    del outputs
    return ms


def rotations(bytes_per_call: int, l2_bytes: int) -> int:
    """Inputs that together outgrow the L2 three times; between 4 and 64."""
    return min(64, max(4, math.ceil(3 * l2_bytes / bytes_per_call)))


def work_of(layer: Layer, batch: int, factors: int, flops: int) -> Work:
    """Floors of a plan: the dense layer's activations, the plan's own factors and FLOPs. bf16."""
    conv = Conv(layer.name, 1, layer.in_channels, layer.out_channels, layer.kernel, layer.size, layer.out_side)
    weights = conv.patch * conv.out_channels + conv.out_channels
    return Work(dense_work(conv, batch).bytes + 2 * (factors - weights) + 4 * conv.out_side**2, flops)


def run_case(case: Case, batch: int) -> Row | str:
    """The case's row, or a sentence that says why it has none."""
    layer, dtype = case.layer, torch.bfloat16
    plan = make_plan(case).to("cuda", dtype)
    bias = torch.randn(layer.out_channels, generator=torch.Generator().manual_seed(2)).to("cuda", dtype)
    few = make_input(layer, 2).to("cuda", dtype)

    def ours(x: Tensor) -> Tensor:
        return lowrank_conv2d(x, plan, bias, activation="relu", backend="triton")

    exact, plain = testing.exact(few, plan, bias, "relu"), testing.plain(few, plan, bias, "relu")
    error = testing.error_ratio(ours(few), plain, exact)
    if not error <= 1:
        return f"wrong result, error ratio {error:.3g}"
    weight = torch.randn(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel) / math.sqrt(layer.patch)
    rank = max(1, round(plan.flops() / (2 * layer.out_side**2) / (layer.patch + layer.out_channels)))
    first = torch.randn(rank, layer.in_channels, layer.kernel, layer.kernel) / math.sqrt(layer.patch)
    second = torch.randn(layer.out_channels, rank, 1, 1) / math.sqrt(rank)
    dense, chain = (
        peers.Chain(weights, bias.float().cpu(), layer).to("cuda", dtype, memory_format=torch.channels_last)
        for weights in ([weight], [first, second])
    )
    work = work_of(layer, batch, plan.parameters(), plan.flops() * batch)
    count = rotations(work.bytes, torch.cuda.get_device_properties(0).L2_cache_size)
    x = make_input(layer, batch).to("cuda", dtype)
    inputs = [x, *(x.roll(i, 0).clone(memory_format=torch.channels_last) for i in range(1, count))]
    tuned = {"mode": "max-autotune-no-cudagraphs", "fullgraph": True}
    calls = {
        "ours": ours,
        "cudnn dense": dense,
        "compiled dense": torch.compile(dense, **tuned),
        "cudnn chain": chain,
        "compiled chain": torch.compile(chain, **tuned),
    }
    with torch.inference_mode():
        ms = {name: graph_ms(call, inputs) for name, call in calls.items()}
    return Row(case.name, layer.flops(1) / plan.flops(), error, ms, work)


def table(rows: list[Row], machine: Machine) -> list[str]:
    """Markdown lines; "of floor" is the share of the roofline that our time reaches."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        floor, ours = row.work.floor(machine) * 1e3, row.ms["ours"]
        chain = min(ms for name, ms in row.ms.items() if name.endswith("chain"))
        cells = (
            *(row.name, f"{row.reduction:.2f}", f"{row.best_dense:.4f}", f"{chain:.4f}", f"{ours:.4f}"),
            *(f"{row.speedup:.2f}", f"{row.eta:.2f}", f"{floor:.4f}", f"{floor / ours:.0%}"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def picture(rows: list[Row], path: Path) -> None:
    """Speed-up over the best dense peer against FLOP reduction; the diagonal is eta = 1."""
    from matplotlib.figure import Figure

    axes = (figure := Figure((7, 5))).subplots()
    for row in rows:
        axes.plot(row.reduction, row.speedup, "o", color="tab:blue")
        axes.annotate(row.name.split("/")[0], (row.reduction, row.speedup), fontsize=6)
    end = max(row.reduction for row in rows)
    axes.plot((1, end), (1, end), "--", color="gray", label="all FLOPs saved become time saved")
    axes.set(xlabel="fewer FLOPs", ylabel="speed-up over the best dense convolution", xscale="log", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def step(name: str, command: list[str], out: Path) -> bool:
    """Runs a command of the source tree, its output into a log; True when it succeeds."""
    paths = f"{ROOT}{os.pathsep}{ROOT / 'python'}"
    env = os.environ | {"PYTHONPATH": paths, "HSCC_CACHE_DIR": str(out.resolve() / "cache")}
    with (out / f"{name}.log").open("w") as log:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
    print(f"{name}: {'ok' if done.returncode == 0 else f'failed, see {name}.log'}", flush=True)
    return done.returncode == 0


def select(names: list[str] | None, regions: list[str], reductions: list[float]) -> list[Case]:
    unknown = set(names or ()) - set(LAYERS)
    if unknown:
        raise SystemExit(f"--layers: got {sorted(unknown)}, expected some of {list(LAYERS)}")
    layers = [LAYERS[name] for name in names or LAYERS]
    return [Case(layer, r, 1, f) for layer in layers for r in regions for f in reductions]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder for logs, report.json, report.md")
    result.add_argument("--batch", type=int, default=32)
    result.add_argument("--layers", nargs="+", help="names from bench/cases.py; default all")
    result.add_argument("--regions", nargs="+", default=["1", "4"])
    result.add_argument("--reductions", nargs="+", type=float, default=[5.3])
    result.add_argument("--autotune", action="store_true", help="time our configurations too (HSCC_AUTOTUNE=1)")
    result.add_argument("--skip-tests", action="store_true", help="only where they have passed on this machine")
    return result


def main() -> int:
    arguments = parser().parse_args()
    cases = select(arguments.layers, arguments.regions, arguments.reductions)
    if not torch.cuda.is_available():
        print("bench.gpu_report needs a CUDA device; on the CPU, use python -m bench.kernels", file=sys.stderr)
        return 2
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    os.environ["HSCC_CACHE_DIR"] = str(out.resolve() / "cache")
    if arguments.autotune:
        os.environ["HSCC_AUTOTUNE"] = "1"
    step("build", ["setup.py", "build_ext", "--inplace"], out)  # the C++ backend; the Triton one needs no build
    if not arguments.skip_tests and not step("tests", ["-m", "pytest", "-q", "-m", "gpu", "tests/kernels"], out):
        return 1
    torch.backends.cudnn.benchmark = True
    machine = measured_machine()
    rows, refused = [], {}
    for case in cases:
        result = run_case(case, arguments.batch)
        torch.compiler.reset()
        if isinstance(result, Row):
            rows.append(result)
        else:
            refused[case.name] = result
        print(case.name, result if isinstance(result, str) else f"{result.speedup:.2f}x", flush=True)
    head = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {arguments.batch}, bf16, channels last",
        f"copy {machine.bytes_per_s / 1e12:.2f} TB/s, bf16 products {machine.flops_per_s / 1e12:.0f} TFLOP/s",
        *(f"refused: {name}: {reason}" for name, reason in refused.items()),
    ]
    lines = [*head, "", *table(rows, machine)]
    print(*lines, sep="\n")
    (out / "report.md").write_text("\n".join(lines) + "\n")
    records = [{**row._asdict(), "work": row.work._asdict(), "eta": row.eta} for row in rows]
    report = {"header": head, "machine": machine._asdict(), "rows": records, "refused": refused}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    if rows:
        picture(rows, out / "report.png")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
