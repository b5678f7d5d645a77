"""Tables and plots of the accuracy study, from its cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev

from .examples import EXAMPLES

TITLES = {
    "hscc": "hscc",
    "hscc_int8": "hscc, int8",
    "hscc_no_squeeze": "hscc, inputs not squeezed",
    "hscc_one_region": "hscc, one region and cluster",
    "paper": "the paper's reading: weight SVD, 2 x 2 grid, 4 clusters",
    "svd": "SVD, activations",
    "svd_weight": "SVD, weights",
    "tucker2": "Tucker-2, activations",
    "tucker2_weight": "Tucker-2, weights",
    "spatial_svd": "spatial SVD, activations",
    "spatial_svd_weight": "spatial SVD, weights",
    "balf": "BALF, activations",
}
INTRODUCTION = """# Accuracy after compression

Written by `python -m bench.accuracy`; every number is from one of its cells. Accuracies are in % of the test images. ±
is one bootstrap standard error over the test images; for differences to the dense model it is paired, image by image.
Of "unet" it is Dice, not accuracy: the mean over test pictures with a tumour, times 100. Rows of several seeds are
means: each seed draws other calibration images and, of brain MRI, other test images; ± is then the larger of the error
of the mean and the spread of the seeds. Where hscc is compared with a method, errors are added as if they were
independent, which overstates them, as hard images are hard for both. A budget counts the FLOPs of all convolutions,
and so does the reduction reached. hscc fits each layer, and the last linear one, on what the compressed layers before
it give; all others fit layer by layer, "activations" to the dense model's outputs on calibration data, "weights" to
the weight alone. BALF (arXiv:2509.25136) takes no means off: it is an SVD as well, with biases as they were. "hscc,
one region and cluster" shows what that fit, the sensitivity and the squeeze bring without regions, "hscc, inputs not
squeezed" what the regions bring without the squeeze; none of the rows is fine-tuned unless the heading says so. "2
epochs of 4000 images" then means that the whole network learned the dense one's outputs for unlabelled training
images, with `hscc.finetune` and the same settings for all methods.

On 2026-11-28 the search of hscc changed: it compares structures in few directions ([math.md](math.md)). Rows of hscc of
Fashion-MNIST with 512 images, and of brain MRI with 512 images at 10x, 20x and 30x, are by it, the others by the one
before. Where both were measured they differ by 0.03 points at most up to 20x, and by 0.28 at most, at 30x.
On 2026-11-29 fits moved to those directions too. Measured again: brain MRI at 10x, 20x and 30x -0.20, -0.38 and -0.59;
Fashion-MNIST at 3x, 10x, 20x, 30x and 40x -0.43, -1.95, -6.11, -10.50 and -12.89 (rows below: of the day before).
"""


def sentence(cell: Mapping) -> str:
    """One cell in a line."""
    metric = EXAMPLES[cell["data"]].metric
    share = {key: 100 * cell[key] for key in cell if "accuracy" in key or "error" in key or key == "difference"}
    return (
        f"{cell['method']} {cell['flop_reduction']:.2f}x fewer FLOPs, {cell['param_reduction']:.2f}x fewer parameters: "
        f"{metric} {share['accuracy']:.2f} ± {share['standard_error']:.2f} % (dense {share['dense_accuracy']:.2f}; "
        f"difference {share['difference']:+.2f} ± {share['difference_standard_error']:.2f}), {cell['seconds']:.0f} s"
    )


def write(page: Path, cells: Mapping[str, Sequence[dict]]) -> None:
    """The page and a plot a section beside it, a section for each data set and setting."""
    sections = [INTRODUCTION]
    for data, several in cells.items():
        for setting in sorted({_setting(cell) for cell in several}, key=str):
            chosen = [cell for cell in several if _setting(cell) == setting]
            picture = page.with_name(f"{page.stem}-{data}-{setting.replace(' ', '-').replace(',', '')}.png")
            if any("accuracy" in cell for cell in chosen):
                sections.append(_section(data, setting, chosen, picture.name))
                _plot(chosen, picture, f"{data}: {setting}")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(sections))


def _setting(cell: Mapping) -> str:
    params = "" if cell["params"] is None else f", {cell['params']:g}x fewer parameters"
    tuned = f", {cell['finetune_epochs']} epochs of {cell['finetune_images']} images" if cell["finetune_epochs"] else ""
    return f"{cell['calibration']} images{tuned}{params}"


def _section(data: str, setting: str, cells: Sequence[dict], picture: str) -> str:
    good, metric = [cell for cell in cells if "accuracy" in cell], EXAMPLES[data].metric
    metric = metric[0].upper() + metric[1:]
    first = min(cell["seed"] for cell in good)
    dense = _mean([cell for cell in good if cell["seed"] == first][:1], "dense_accuracy", "dense_standard_error")
    refused = "".join(f"- {TITLES[c['method']]} at {c['flops']:g}x: {c['refused']}\n" for c in cells if "refused" in c)
    return (
        f"## {data}, {setting}\n\n"
        f"Dense: {dense} on {good[0]['test_images']} test images; seed {first} where no number of seeds is given.\n\n"
        f"![{metric} by FLOP reduction]({picture})\n\n"
        f"{metric}:\n\n{_table(cells, lambda c: _mean(c, 'accuracy', 'standard_error'))}\n"
        f"Difference to dense, in points:\n\n"
        f"{_table(cells, lambda c: _mean(c, 'difference', 'difference_standard_error', '+'))}\n"
        f"{_lead(cells)}"
        "Reduction reached, FLOPs / parameters:\n\n"
        + _table(cells, lambda c: f"{_average(c, 'flop_reduction'):.2f} / {_average(c, 'param_reduction'):.2f}")
        + (f"\nNot possible:\n\n{refused}" if refused else "")
    )


def _table(cells: Sequence[dict], text) -> str:
    reductions = sorted({cell["flops"] for cell in cells})
    lines = [f"| method | {' | '.join(f'{r:g}x' for r in reductions)} |", "|---" * (len(reductions) + 1) + "|"]
    for method, title in TITLES.items():
        rows = [[c for c in cells if (c["method"], c["flops"]) == (method, r) and "accuracy" in c] for r in reductions]
        if any(rows):
            lines.append(f"| {title} | {' | '.join(text(row) if row else '–' for row in rows)} |")
    return "\n".join(lines) + "\n"


def _lead(cells: Sequence[dict]) -> str:
    """By how many points hscc is ahead of the others, where both were measured."""

    def text(row: Sequence[dict]) -> str:
        ours = [c for c in cells if (c["method"], c["flops"]) == ("hscc", row[0]["flops"]) and "accuracy" in c]
        if not ours:
            return "–"
        keys = "difference", "difference_standard_error"
        lead = 100 * (_average(ours, keys[0]) - _average(row, keys[0]))
        return f"{lead:+.2f} ± {100 * math.hypot(_error(ours, *keys), _error(row, *keys)):.2f}"

    others = [cell for cell in cells if cell["method"] != "hscc"]
    return f"hscc ahead, in points:\n\n{_table(others, text)}\n" if others else ""


def _average(cells: Iterable[dict], key: str) -> float:
    return mean(cell[key] for cell in cells)


def _error(cells: Sequence[dict], key: str, error: str) -> float:
    """Of a mean over seeds: they differ in calibration images, and test errors average out where these differ, too."""
    spread = pstdev([cell[key] for cell in cells]) / math.sqrt(max(len(cells) - 1, 1))
    if EXAMPLES[cells[0]["data"]].drawn:  # each seed has test images of its own
        return max(math.sqrt(mean(cell[error] ** 2 for cell in cells) / len(cells)), spread)
    return math.hypot(_average(cells, error), spread)


def _mean(cells: Sequence[dict], key: str, error: str, sign: str = "") -> str:
    seeds = f" ({len(cells)} seeds)" if len(cells) > 1 else ""
    return f"{100 * _average(cells, key):{sign}.2f} ± {100 * _error(cells, key, error):.2f}{seeds}"


def _plot(cells: Sequence[dict], file: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5))
    good = [cell for cell in cells if "accuracy" in cell]
    axis.axhline(100 * _average(good, "dense_accuracy"), color="black", linewidth=1, label="dense")
    for method, name in TITLES.items():
        groups = [[c for c in good if (c["method"], c["flops"]) == (method, r)] for r in {c["flops"] for c in good}]
        points = sorted(
            (
                _average(g, "flop_reduction"),
                100 * _average(g, "accuracy"),
                100 * _error(g, "accuracy", "standard_error"),
            )
            for g in groups
            if g
        )
        if points:
            style = {"linestyle": "--"} if "weight" in method or method == "paper" else {}
            axis.errorbar(
                *zip(*[p[:2] for p in points], strict=True), yerr=[p[2] for p in points], label=name, capsize=2, **style
            )
    axis.set(xscale="log", xlabel="times fewer FLOPs", ylabel=f"{EXAMPLES[cells[0]['data']].metric}, %", title=title)
    reductions = sorted({cell["flops"] for cell in good})
    axis.set_xticks(reductions, [f"{r:g}" for r in reductions])
    axis.minorticks_off()
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
