"""Compares two result files of the benches: ``python -m bench.compare A.json B.json``."""

from __future__ import annotations

import argparse
import json
import math
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("before")
    parser.add_argument("after")
    args = parser.parse_args(argv)
    files = []
    for path in (args.before, args.after):
        with open(path, encoding="utf-8") as file:
            files.append(json.load(file))
    for path, data in zip((args.before, args.after), files, strict=True):
        head = data["header"]
        print(f"{path}: {head['machine']}, {head['threads']} threads, commit {head['commit']}, {head['date']}")
    keyed = [{(r["name"], r["batch"], r["threads"]): r for r in data["cases"] if "ms" in r} for data in files]
    common = [key for key in keyed[0] if key in keyed[1]]
    logs = []
    for key in common:
        before, after = keyed[0][key], keyed[1][key]
        ratio = before["ms"] / after["ms"]
        logs.append(math.log(ratio))
        print(
            f"{key[0]:34s} batch {key[1]} threads {key[2]}: {before['ms']:9.3f} -> {after['ms']:9.3f} ms "
            f"({ratio:5.2f}x)  eta {before['eta']:.3f} -> {after['eta']:.3f}"
        )
    if not common:
        print("the files have no case in common", file=sys.stderr)
        return 1
    print(f"{len(common)} cases, geometric mean {math.exp(sum(logs) / len(logs)):.3f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
