"""Times of calls that take turns, the machine's peak, and the header that every result carries."""

from __future__ import annotations

import ctypes
import datetime
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

_PEAK_SOURCE = r"""
#if defined(__AVX512F__)
typedef float v __attribute__((vector_size(64)));
#define REGISTER "v"
#elif defined(__AVX__)
typedef float v __attribute__((vector_size(32)));
#define REGISTER "x"
#else
typedef float v __attribute__((vector_size(16)));
#if defined(__x86_64__)
#define REGISTER "x"
#else
#define REGISTER "w"
#endif
#endif
#define EACH(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
#define START(i) v a##i = c + i;
#if defined(BFLOAT16) && defined(__AVX512BF16__)
#include <immintrin.h>
#define MULTIPLY_ADD(a) (v)_mm512_dpbf16_ps((__m512)a, (__m512bh)b, (__m512bh)c)
#define NUMBERS 2
#else
#define MULTIPLY_ADD(a) a * b + c
#define NUMBERS 1
#endif
#define STEP(i) a##i = MULTIPLY_ADD(a##i); __asm__ volatile("" : "+" REGISTER (a##i));
#define SUM(i) sink += a##i[0];
double run(long n) {
  v zero = {0}, b = zero + 0.999f, c = zero + 1e-4f;
  volatile float sink = 0;
  EACH(START)
  for (long k = 0; k < n; ++k) { EACH(STEP) }
  EACH(SUM)
  return 24.0 * NUMBERS * (sizeof(v) / sizeof(float)) * (double)n;
}
"""


SPINNING = 0.06  # seconds; seen: ONNX Runtime's threads wait 45 to 50 ms for more work, OpenMP's 5 to 9


def keep_freed_memory() -> None:
    """Stops glibc from handing large outputs back after each call: page faults cost 0.15 ms a call at 800 KB.

    Runtimes with bound outputs never pay them, and with another allocator nobody does. Elsewhere nothing happens.
    """
    trim_threshold, most_mappings = -1, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(most_mappings, 0)  # a mapping of its own is handed back when it is freed; outputs of over 32 MiB get one
    mallopt(trim_threshold, (1 << 31) - 1)


@torch.inference_mode()
def interleaved(
    calls: dict[str, Callable[[], object]], rounds: int = 15, slice_ms: float = 8.0
) -> dict[str, list[float]]:
    """Milliseconds of each call, a median for every round; a round gives each one a slice of time in turn.

    All run in one inference mode: entering it a call would cost more than some calls' own Python.

    What interrupts one call leaves its slice's median as it is, and what slows the machine for longer slows the whole
    round: compare calls by :func:`ratio`, round by round. On several threads a call runs untimed until the waiting
    threads of the call before no longer spin on a core that it needs (sleeping would let a shared host take the cores).
    """
    spinning = SPINNING if torch.get_num_threads() > 1 else 0.0
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            warm = time.perf_counter() + spinning
            call()  # its own data back into the caches
            while time.perf_counter() < warm:
                call()
            end, single = time.perf_counter() + slice_ms / 1e3, []
            while True:
                start = time.perf_counter()
                call()
                now = time.perf_counter()
                single.append(now - start)
                if now > end:
                    break
            times[name].append(1e3 * statistics.median(single))
    return times


def ratio(times: dict[str, list[float]], over: list[str], ours: str) -> float:
    """How many times faster ``ours`` is than the best of ``over``: the least of their median ratios over the rounds."""
    return min(statistics.median(a / b for a, b in zip(times[name], times[ours], strict=True)) for name in over)


def peak_gflops(threads: int, dtype: torch.dtype = torch.float32) -> float | None:
    """Multiply-adds in registers on that many threads, of bfloat16 where the processor multiplies those itself; None
    without a C compiler."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "peak.c"), Path(folder, "peak.so")
        source.write_text(_PEAK_SOURCE)
        flags = ["-O3", "-march=native", "-ffast-math", *(["-DBFLOAT16"] if dtype == torch.bfloat16 else [])]
        command = ["cc", *flags, "-shared", "-fPIC", str(source), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        run = ctypes.CDLL(str(library)).run
    run.argtypes, run.restype = [ctypes.c_long], ctypes.c_double
    best = 0.0
    for _ in range(7):
        work = [threading.Thread(target=run, args=(4_000_000,)) for _ in range(threads)]
        start = time.perf_counter()
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        seconds = time.perf_counter() - start
        best = max(best, threads * run(1) * 4_000_000 / seconds / 1e9)
    return best


def header(
    threads: int, batch: int | list[int], backend: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, object]:
    """Machine, versions and commit, for a JSON file that has to speak for itself later."""
    packages = {}
    for name in ("torch", "triton", "onnxruntime", "openvino", "nncf", "numpy"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    peak = peak_gflops(threads, dtype)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": _cpu_name(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": packages,
        "commit": commit(),
        "backend": backend,
        "build": torch.ops.hscc._build_info() if hasattr(torch.ops.hscc, "_build_info") else None,
        "threads": threads,
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "peak_gflops": None if peak is None else round(peak, 1),
    }


def commit() -> str:
    """The checkout's, with a plus where files differ from it; empty outside a repository."""
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")


def _cpu_name() -> str:
    """As the kernel gives it, with family and model where the name alone says nothing of the generation."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
        return "{}, family {} model {}".format(*(facts[key] for key in ("model name", "cpu family", "model")))
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def _git(*args: str) -> str:
    if not shutil.which("git"):
        return ""
    done = subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()
