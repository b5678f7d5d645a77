"""Seconds until ``hscc serve`` is ready with the brain-MRI example, and memory: ``python -m bench.serving.start``."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence

import psutil
from hscc.serving.web.sockets import listen

from ..accuracy.examples import EXAMPLES, ROOT

LONGEST = 120.0  # seconds


def measured(options: Sequence[str]) -> tuple[float, float]:
    """Seconds from the command to the first 200 of its health/ready, and MiB (PSS) of its processes then.

    Raises TimeoutError where none comes.
    """
    example = EXAMPLES["brain_mri"]
    folder = ROOT / "examples" / example.folder
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hscc", "serve", str(folder / example.weights), "--port", str(port)]
    command += ["--model", f"{folder / example.network}:build", "--threads", "1", *options]
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while time.monotonic() < begun + LONGEST:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1):
                    seconds = time.monotonic() - begun
                own = psutil.Process(process.pid)
                return seconds, sum(one.memory_full_info().pss for one in (own, *own.children(True))) / 2**20
            except OSError:
                time.sleep(0.02)
        raise TimeoutError(f"hscc serve {' '.join(options)}: got no answer in {LONGEST:g} s")
    finally:
        process.terminate()
        process.wait(60)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serving.start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray", action="store_true", help="Also with Ray, where it is installed.")
    args = parser.parse_args(argv)
    for options in ([], ["--litserve"], *([["--ray"]] if args.ray else [])):
        found, memory = zip(*(measured(options) for _ in range(args.rounds)), strict=True)
        spread = f"{statistics.median(found):.1f} s ({min(found):.1f} to {max(found):.1f})"
        print(f"{' '.join(['hscc serve', *options])}: {spread}, {statistics.median(memory):.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
