"""Times the fused kernel against dense and unfused low-rank convolutions: ``python -m bench.kernels --help``."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from hscc_kernels import explain, lowrank_conv2d, testing

from ..timing import header, interleaved, keep_freed_memory, ratio
from . import int8, peers
from .cases import LAYERS, REDUCTIONS, Case, Layer, make_input, make_plan, select

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_bias(layer: Layer, dtype: torch.dtype) -> Tensor:
    return torch.randn(layer.out_channels, generator=torch.Generator().manual_seed(2)).to(dtype)


def gate(case: Case, batch: int, dtype: torch.dtype, backend: str) -> float:
    """The error ratio (``testing.error_ratio``) on the bench's own plan and a batch of at most two images."""
    plan, x = make_plan(case).to(dtype), make_input(case.layer, min(batch, 2)).to(dtype)
    bias = make_bias(case.layer, dtype)
    got = lowrank_conv2d(x, plan, bias, activation="relu", backend=backend)
    return testing.error_ratio(got, testing.plain(x, plan, bias, "relu"), testing.exact(x, plan, bias, "relu"))


def copy_call(layer: Layer, batch: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A plain copy of as many bytes as the layer's maps have: about what memory alone takes, whatever the kernel."""
    numbers = batch * (layer.in_channels * layer.size**2 + layer.out_channels * layer.out_side**2)
    source = torch.ones(numbers // 2, dtype=dtype)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def run_layer(
    cases: list[Case], batch: int, threads: int, dtype: torch.dtype, backend: str, compiled: bool, rounds: int
) -> list[dict]:
    """All cases of one layer, timed in turn with the dense peers and, for one region and cluster, the chains."""
    layer = cases[0].layer
    x = make_input(layer, batch).to(dtype)
    bias = make_bias(layer, dtype)
    weight = torch.randn(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel) / math.sqrt(layer.patch)
    torch._dynamo.reset()  # once a layer: later it would compile the dense peer again, its weights not frozen
    dense = peers.all_peers(x, [weight.to(dtype)], bias, layer, threads, compiled)
    copy = copy_call(layer, batch, dtype)
    rows = []
    for case in cases:
        error = gate(case, batch, dtype, backend)
        if not error <= 1:
            rows.append({"name": case.name, "error_ratio": error})
            continue
        plan = make_plan(case).to(dtype)
        biases = bias.expand(plan.regions, -1).contiguous()  # a row a region, as HSCConv2d keeps it

        def ours(plan=plan, biases=biases):
            return lowrank_conv2d(x, plan, biases, activation="relu", backend=backend)

        calls = {"hscc": ours, "copy": copy, **dense}
        if plan.regions == 1 and case.clusters == 1:
            rank = plan.v.shape[0]
            shape = (rank, layer.kernel, layer.kernel, layer.in_channels)
            first = plan.v.view(shape).permute(0, 3, 1, 2).contiguous()
            second = plan.u.view(rank, -1).T.contiguous()[..., None, None]
            chain = peers.all_peers(x, [first, second], bias, layer, threads, compiled)
            calls |= {f"{name}_chain": call for name, call in chain.items()}
        rows.append(make_row(case, batch, threads, error, plan.flops() * batch, interleaved(calls, rounds)))
    return rows


def make_row(case: Case, batch: int, threads: int, error: float, flops: int, times: dict[str, list[float]]) -> dict:
    reduction = case.layer.flops(batch) / flops
    ms = {name: statistics.median(rounds) for name, rounds in times.items()}
    ours, copy = ms.pop("hscc"), ms.pop("copy")
    chains = [name for name in ms if name.endswith("_chain")]
    own = [name for name in ms if name.startswith("torch") and name not in chains]
    runtimes = [name for name in ms if name not in own + chains]
    best = ratio(times, own, "hscc")
    row = {
        "name": case.name,
        "batch": batch,
        "threads": threads,
        "regions": case.regions,
        "clusters": case.clusters,
        "flop_reduction": round(reduction, 3),
        "error_ratio": round(error, 4),
        "ms": round(ours, 5),
        "gflops": round(flops / ours / 1e6, 2),
        "peers": {name: round(t, 5) for name, t in ms.items()},
        "speedup_over_best_dense": round(best, 3),
        "eta": round(best / reduction, 4),
        "copy_ms": round(copy, 5),
        "eta_copy": round(ratio(times, own, "copy") / reduction, 4),  # as if ours took as long as the copy
    }
    if runtimes:
        row["eta_runtimes"] = round(ratio(times, runtimes, "hscc") / reduction, 4)
    if chains:
        row["speedup_over_best_chain"] = round(ratio(times, chains, "hscc"), 3)
    return row


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def print_row(row: dict, peak: float | None) -> None:
    if "ms" not in row:
        print(f"{row['name']:34s} WRONG: error ratio {row['error_ratio']:.3g}; not timed", flush=True)
        return
    share = f"{100 * row['gflops'] / peak:4.0f} %" if peak else "     ?"
    best = min((t, name) for name, t in row["peers"].items() if not name.endswith("_chain"))
    line = f"{row['name']:34s} {row['ms']:9.3f} ms {row['gflops']:7.1f} GFLOP/s {share}"
    line += f"  {row['flop_reduction']:5.2f}x fewer {row['speedup_over_best_dense']:6.2f}x faster  eta {row['eta']:.3f}"
    line += f"  runtimes {row['eta_runtimes']:.3f}" if "eta_runtimes" in row else ""
    line += f"  chain {row['speedup_over_best_chain']:.2f}x" if "speedup_over_best_chain" in row else ""
    line += f"  a copy's eta {row['eta_copy']:.3f}" if row["eta_copy"] < 1 else ""
    print(f"{line}  (dense: {best[1]} {best[0]:.3f} ms)", flush=True)


def print_summary(rows: list[dict]) -> None:
    timed = [row for row in rows if "ms" in row]
    wide = [row for row in timed if LAYERS[row["name"].split("/")[0]].kernel > 1]
    for title, group in (("k x k", wide), ("1 x 1", [row for row in timed if row not in wide])):
        if not group:
            continue
        etas = [row["eta"] for row in group]
        line = f"{title}: {len(group)} cases, eta geometric mean {geomean(etas):.3f}, least {min(etas):.3f}"
        for key, name in (
            ("eta_runtimes", "over other runtimes"),
            ("speedup_over_best_chain", "times faster than the chain"),
        ):
            values = [row[key] for row in group if key in row]
            if values:
                line += f"; {name} {geomean(values):.3f}, least {min(values):.3f}"
        print(line)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    types = "bfloat16: PyTorch's are the only peers; int8: beside our own float32, one thread's processor time"
    parser.add_argument("--dtype", choices=[*DTYPES, "int8"], default="float32", help=types)
    parser.add_argument("--bits", type=int, choices=(7, 8), default=8, help="of V in int8; 7 is quicker without VNNI")
    parser.add_argument("--all", action="store_true", help="the whole table; hours")
    parser.add_argument("--case", action="append", help="cases whose name starts so, as resnet18_2/R4/K1; repeatable")
    parser.add_argument("--reduction", type=float, action="append", help="instead of 3, 5.3, 10 and 20; repeatable")
    parser.add_argument("--kernel", type=int, help="only layers of this kernel size")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="write the results to this file")
    args = parser.parse_args(argv)
    cases = select(args.all, args.case, args.kernel, args.reduction or REDUCTIONS)
    if not cases:
        parser.error(f"no case starts with {args.case}; layers: {', '.join(LAYERS)}")
    reason = explain(make_input(cases[0].layer, 1)).get(args.backend, "there is no such backend")
    if reason is not None:
        parser.error(f"backend {args.backend}: {reason}")
    if args.dtype == "int8" and (args.threads != 1 or args.backend != "cpu"):
        parser.error("--dtype int8: expected --threads 1 and --backend cpu")
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    dtype = DTYPES.get(args.dtype, torch.int8)
    head = header(args.threads, args.batch, args.backend, dtype)
    print(json.dumps(head))
    rows = []
    if dtype == torch.int8:
        for case in cases:
            rows.append(int8.measure(case, args.batch, args.bits, args.rounds))
            int8.print_row(rows[-1])
        int8.print_summary(rows)
    else:
        for name in dict.fromkeys(case.layer.name for case in cases):
            group = [case for case in cases if case.layer.name == name]
            for row in run_layer(
                group, args.batch, args.threads, dtype, args.backend, not args.no_compile, args.rounds
            ):
                print_row(row, head["peak_gflops"])
                rows.append(row)
        print_summary(rows)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"header": head, "cases": rows}, file, indent=1)
    return int(any("ms" not in row for row in rows))
