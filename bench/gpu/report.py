"""One call on a GPU machine: build, gpu tests, rates of the machine, times of layers and networks, table, picture.

    python -m bench.gpu --out out/gpu
    python -m bench.gpu --out out/gpu --stages kernels --layers vgg16_3_2 --minutes 8 --every-tile

Needs a plain source tree, torch with CUDA and triton; no network. Every timed call runs inside a CUDA graph over
rotating inputs that outgrow the L2, and a case whose error ratio is above 1 gets no time. report.json, report.md and
report.png are written after every case; a later call with the same --out goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch

from ..kernels.cases import LAYERS, REGIONS, Case
from ..timing import commit
from .cases import Setting, compile_ahead, measured_machine, run_case, summary
from .networks import MODELS, Network, run_network
from .results import Report

ROOT = Path(__file__).parents[2]
STAGES = ("build", "tests", "sanitizer", "machine", "kernels", "models")
DTYPES = ("bfloat16", "float16")
UNFINISHED = 3


def step(name: str, command: list[str], out: Path, seconds: float) -> bool:
    """Runs a command of the source tree, its output into a log; True when it succeeds in time."""
    paths = f"{ROOT}{os.pathsep}{ROOT / 'python'}"
    with (out / f"{name}.log").open("w") as log:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": paths},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=max(seconds, 1),
            )
        except subprocess.TimeoutExpired:
            print(f"{name}: out of time, see {name}.log", flush=True)
            return False
    print(f"{name}: {'ok' if done.returncode == 0 else f'failed, see {name}.log'}", flush=True)
    return done.returncode == 0


def commands() -> dict[str, list[str]]:
    """Of the stages that are processes of their own.

    Tests run in several where pytest-xdist is installed, as most of their time goes into compilation. The sanitizer
    sees every allocation as one of its own, and kernels that the tests have compiled.
    """
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "gpu"]
    parallel = ["-n", str(max(1, (os.cpu_count() or 1) - 2))] if importlib.util.find_spec("xdist") else []
    memcheck = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--error-exitcode=1"]
    small = "(test_cases and bfloat16) or broken"
    return {
        "build": [sys.executable, "setup.py", "build_ext", "--inplace"],
        "tests": [*pytest, *parallel, "tests/kernels"],
        "sanitizer": [*memcheck, *pytest, "-k", small, "tests/kernels/test_triton_gpu.py"],
    }


def measure(
    cases: Iterable,
    run: Callable,
    report: Report,
    out: Path,
    deadline: float,
    wait: Callable[[], object] = torch.cuda.synchronize,
) -> bool:
    """Runs the cases that the report does not know yet and saves after each; False when it stops before the last.

    It stops when time is up, or when the device is lost: after a bad access every call of this process fails.
    """
    for case in cases:
        if report.knows(case.name):
            continue
        if time.monotonic() > deadline:
            print("time is up: the same call goes on from here", flush=True)
            return False
        try:
            result = run(case)
        except Exception as error:  # one case that fails, for want of memory say, must not cost the others
            traceback.print_exc()
            result = summary(error)
        report.add(case.name, result)
        report.save(out)
        print(case.name, result if isinstance(result, str) else f"{result.speedup:.2f}x", flush=True)
        try:
            wait()
        except RuntimeError as error:
            print(f"the device is lost, the same call goes on from here: {summary(error)}", flush=True)
            return False
    return True


def select(names: list[str] | None, regions: list[str], reductions: list[float]) -> list[Case]:
    unknown = set(names or ()) - set(LAYERS)
    if unknown:
        raise SystemExit(f"--layers: got {sorted(unknown)}, expected some of {list(LAYERS)}")
    layers = [LAYERS[name] for name in names or LAYERS]
    return [Case(layer, r, 1, f) for layer in layers for r in regions for f in reductions]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder for logs, report.json, report.md")
    result.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    result.add_argument("--minutes", type=float, default=60.0, help="starts no case after so long")
    result.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    result.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    result.add_argument("--layers", nargs="+", help="names from bench/cases.py; default all")
    result.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    result.add_argument("--regions", nargs="+", choices=REGIONS, default=["1", "4"])
    result.add_argument("--reductions", nargs="+", type=float, default=[5.3])
    result.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    result.add_argument("--every-tile", action="store_true", help="time every tile that fits")
    result.add_argument("--commit", default=commit(), help="of a source tree that is no repository")
    return result


def main() -> int:
    arguments = parser().parse_args()
    cases = select(arguments.layers, arguments.regions, arguments.reductions)
    compiled = not arguments.no_compile
    ways = [(batch, dtype) for dtype in arguments.dtypes for batch in arguments.batches]
    settings = [Setting(case, *way) for way in ways for case in cases]
    networks = [Network(model, f, *way) for way in ways for model in arguments.models for f in arguments.reductions]
    if not torch.cuda.is_available():
        print("bench.gpu needs a CUDA device; on the CPU, use python -m bench.kernels", file=sys.stderr)
        return 2
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["HSCC_CACHE_DIR"] = str(out / "cache")
    sys.path.append(str(ROOT / "python"))
    report = Report.open(out, header(arguments.commit))
    deadline = time.monotonic() + 60 * arguments.minutes
    for name, command in commands().items():
        if name in arguments.stages and not report.steps.get(name):
            report.steps[name] = step(name, command, out, deadline - time.monotonic())
            report.save(out)
    torch.backends.cudnn.benchmark = True
    if "machine" in arguments.stages and report.machine is None:
        report.machine = measured_machine()
        report.save(out)
    done = True
    if "kernels" in arguments.stages:
        compile_ahead([each for each in settings if not report.knows(each.name)], arguments.every_tile)
        run = partial(run_case, compiled=compiled, every_tile=arguments.every_tile)
        done = measure(settings, run, report, out, deadline)
    if "models" in arguments.stages:
        done = done and measure(networks, partial(run_network, compiled=compiled), report, out, deadline)
    print(*report.lines(), sep="\n")
    return 1 if report.refused or not all(report.steps.values()) else 0 if done else UNFINISHED


def header(source: str) -> dict[str, str]:
    """What two reports must share to be one."""
    versions = {"torch": torch.__version__, "triton": importlib.metadata.version("triton")}
    return {"device": torch.cuda.get_device_name(), **versions, "commit": source}
