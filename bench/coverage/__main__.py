"""Checks every network, each in a process of its own, and writes docs/coverage.md from what came out.

``python -m bench.coverage``, or ``--network resnet18 vgg16`` to renew the rows of some. The results file and the page
are written after each network; the exit status is 1 where one failed or gave no result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from . import page
from .networks import NETWORKS, OWN
from .packages import installed

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "bench" / "results" / "coverage.json", ROOT / "docs" / "coverage.md"
LIMIT = 1800  # seconds for one network
FOLDERS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # nothing is downloaded; processes share the cores


def one(name: str, backend: str) -> dict:
    """The result of a network, checked in another process; what that says last where it dies."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "result.json")
        command = [sys.executable, "-W", "ignore", "-m", "bench.coverage", "--one", name, str(path)]
        command += ["--backend", backend]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, env={**os.environ, **FOLDERS}
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{name}: took more than {LIMIT} seconds") from None
        if done.returncode:
            raise RuntimeError(f"{name}: exit status {done.returncode}\n{done.stderr[-3000:]}")
        return json.loads(path.read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.coverage", description=__doc__)
    parser.add_argument("--network", nargs="+", choices=[*NETWORKS], metavar="NAME", help="some, not all")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="networks at a time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the JSON file that the page is made from")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        from .check import check

        name, path = args.one
        Path(path).write_text(json.dumps(asdict(check(name, args.backend))), encoding="utf-8")
        return 0
    if missing := {n.package for n in NETWORKS.values() if n.package != OWN and not installed(n.package)}:
        parser.error(f"got no {', '.join(sorted(missing))}, expected them installed: make coverage does it")
    names = args.network or [*NETWORKS]
    known = json.loads(args.results.read_text(encoding="utf-8")) if args.network and args.results.is_file() else {}
    if known and known["backend"] != args.backend:
        parser.error(f"got --backend {args.backend}, expected {known['backend']} as the other rows have it")
    results, broken = known.get("networks", {}), 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for future in as_completed(pool.submit(one, name, args.backend) for name in names):
            try:
                result = future.result()
            except RuntimeError as error:
                broken += 1
                print(error, file=sys.stderr, flush=True)
                continue
            print(f"{result['name']}: {result['outcome']} {result['told'][:200]}", flush=True)
            results[result["name"]] = result
            found = {"backend": args.backend, "networks": {name: results[name] for name in NETWORKS if name in results}}
            _write(args.results, json.dumps(found, indent=1) + "\n")
            _write(args.page, page.text(found))
    return 1 if broken or any(result["outcome"] == "failed" for result in results.values()) else 0


def _write(path: Path, text: str) -> None:
    """In one step."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    raise SystemExit(main())
