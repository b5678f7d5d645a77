"""docs/coverage.md from the results: every figure and word of a row is one that came out of a run."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

from ..tables import line
from .check import CALIBRATION, DECAY, REDUCTIONS, TOLERANCE, UNSEEN
from .networks import KINDS, NETWORKS

INTRODUCTION = """# Coverage

{summary}

Written by `python -m bench.coverage --backend {backend}`, for which `make coverage` installs the networks; the
results are in `bench/results/coverage.json`. Networks that the tests check in every run have a star.

- *Weights are random*, with singular values that fall as 1 / i{decay}, and images are made up. *error* is
  |y - y'| / |y| over all outputs of {unseen} images that nothing was fitted to; in brackets relative to how far y moves
  from image to image. All was fitted to {calibration} small images, of which deep layers see few positions. So it is no
  measure of what a trained network loses, for which see [results](results.md): an error of 1 and more, as deep random
  networks have it, only says that so few images do not carry the fit. A defect would show in the other columns.
- *Asked* is the reduction of FLOPs in the budget: {first:g}x, or the first of {others} that a network can have.
- FLOPs are of one image, of all layers that a report knows: those taken and those left.
- *compile* is `torch.compile(fullgraph=True)` with the backend "{backend}", *export* `torch.export.export`, *ONNX*
  `hscc.export`, read back by ONNX Runtime. "yes" is an error of at most {tolerance:g} of the largest output, against
  the compressed network in eager mode. "as dense": the dense network fails there, too.
"""
TITLES = ("network", "images", "layers taken", "of FLOPs", "left, because", "GFLOPs", "asked, got", "error")
FORMS = {"compile": "compile", "export": "export", "onnx": "ONNX"}


def text(found: dict) -> str:
    results = [*found["networks"].values()]
    head = INTRODUCTION.format(
        summary="\n".join(summary(results)), decay="" if DECAY == 1 else f" ** {DECAY:g}", unseen=UNSEEN,
        calibration=CALIBRATION, first=REDUCTIONS[0], others=", ".join(f"{r:g}" for r in REDUCTIONS[1:]),
        backend=found["backend"], tolerance=TOLERANCE,
    )  # fmt: skip
    parts = [head]
    for kind in KINDS:
        names = [name for name, network in NETWORKS.items() if network.kind == kind]
        if rows := [row(name, found["networks"].get(name)) for name in names]:
            titles = ("network", "images", "layers taken", "of FLOPs", "left, because", "GFLOPs", "asked, got", "error")
            parts.append(
                f"## {kind}\n\n" + "\n".join([line(*titles, *FORMS.values()), "|---" * 11 + "|", *rows]) + "\n"
            )
    parts.append("## What is left, and why\n\n" + "\n".join(left(results)) + "\n")
    if told := [*reasons(results)]:
        parts.append("## What does not work\n\n" + "\n".join([line("network", "what", "why"), "|---" * 3 + "|", *told]))
    sources = sorted({result["source"] for result in results if result["source"]})
    return "\n".join(parts).rstrip() + f"\n\nBuilt by {', '.join(sources) or 'this repository'}.\n"


def summary(results: list[dict]) -> list[str]:
    """What to know first: how many networks compress, and in which forms they run."""
    clear = ("compressed", "refused")
    outcomes = {result["name"]: result["outcome"] for result in results}
    families = {
        family: outcomes.get(name) in clear
        for name, network in NETWORKS.items()
        if network.family
        for family in network.family.split(", ")
    }
    compressed = [result for result in results if result["outcome"] == "compressed"]
    rows = [
        line("", "networks"),
        "|---|---|",
        line("compressed", f"{len(compressed)} of {len(NETWORKS)}"),
        line("refused, with the reason", sum(result["outcome"] == "refused" for result in results)),
        line("failed", sum(result["outcome"] == "failed" for result in results)),
        line("not run", len(NETWORKS) - len(results)),
        line("CNN families of torchvision, compressed or refused", f"{sum(families.values())} of {len(families)}"),
    ]
    for form, title in FORMS.items():
        checks = [result[form] for result in compressed]
        fair = [check for check in checks if not check["dense"]]
        worst = max((check["error"] for check in fair if check["works"]), default=0)
        told = f"{sum(check['works'] for check in fair)} of {len(fair)}, largest error {worst:.0e}"
        rows.append(line(f"{title} works, of those whose dense network does", told))
    return rows


def row(name: str, result: dict | None) -> str:
    network = NETWORKS[name]
    title = f"{name}{' *' if network.quick else ''}"
    images = f"{network.channels} x {network.size} x {network.size}"
    if result is None or result["outcome"] != "compressed":
        return line(title, images, result["outcome"] if result else "not run", *[""] * 8)
    share = result["taken_flops"] / result["dense_flops"]
    flops = [result["dense_flops"], result["flops"]]
    return line(
        title,
        images,
        f"{result['taken']} of {result['layers']}",
        f"{100 * share:.0f} %",
        "; ".join(f"{layers} {why}" for why, (layers, _) in grouped(result["reasons"]).items()),
        " to ".join(f"{value / 1e9:.3g}" for value in flops),
        f"{result['reduction']:g}x, {flops[0] / flops[1]:.2f}x",
        f"{result['error']:.2g} ({result['error_images']:.2g})",
        *(_cell(result[form]) for form in FORMS),
    )


def grouped(found: dict[str, list[int]]) -> dict[str, tuple[int, int]]:
    """Reasons without what is of one layer alone, with the layers and their FLOPs; the most FLOPs first."""
    groups: dict[str, tuple[int, int]] = {}
    for reason, (layers, flops) in found.items():
        short = re.sub(r"\d+", "n", re.sub(r" \([^)]*\)", "", reason))
        before = groups.get(short, (0, 0))
        groups[short] = before[0] + layers, before[1] + flops
    return dict(sorted(groups.items(), key=lambda item: -item[1][1]))


def left(results: Iterable[dict]) -> list[str]:
    """A row a reason, over all networks; those first that count most in some network."""
    found: dict[str, list[tuple[float, int, str]]] = {}
    for result in results:
        for reason, (layers, flops) in grouped(result["reasons"]).items():
            share = flops / result["dense_flops"]
            found.setdefault(reason, []).append((share, layers, result["name"]))
    rows = [line("reason", "networks", "layers", "of a network's FLOPs at most"), "|---" * 4 + "|"]
    for reason, of in sorted(found.items(), key=lambda item: -max(item[1])[0]):
        share, _, name = max(of)
        rows.append(line(reason, len(of), sum(layers for _, layers, _ in of), f"{100 * share:.0f} % ({name})"))
    return rows


def reasons(results: Iterable[dict]) -> Iterable[str]:
    for result in results:
        if result["told"]:
            yield line(result["name"], result["outcome"], _short(result["told"]))
        for form, title in FORMS.items():
            check = result[form]
            if check and not check["works"]:
                yield line(result["name"], f"{title}{', dense too' if check['dense'] else ''}", _short(check["told"]))


def _cell(check: dict) -> str:
    if check["works"]:
        return f"yes, {check['note']}" if check["note"] else "yes"
    return "as dense" if check["dense"] else "no"


def _short(told: str) -> str:
    """The first line, for a table."""
    return textwrap.shorten(told.partition("\n")[0].replace("|", "/"), 240, placeholder=" ...")
