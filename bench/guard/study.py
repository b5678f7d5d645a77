"""The guard and its baselines on networks of the examples: AUROC, false alarms and time, as JSON and as tables."""

from __future__ import annotations

import copy
import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import hscc
import numpy as np
import torch
import typer
from hscc.guard.guard import Guard
from torch import Tensor, nn

from ..accuracy.examples import EXAMPLES, ROOT, images, network
from ..timing import header, interleaved
from . import kinds
from .table import page

RESULTS, PAGE = ROOT / "bench" / "results" / "guard.json", ROOT / "docs" / "guard.md"
CACHE = ROOT / "out" / "guard"
SUBJECTS = {  # network: how many times fewer FLOPs; 1 is the dense one
    "brain_mri": (5.3,),
    "fashion_mnist": (5.3, 1.0),
    "resnet20": (3.0,),
    "mobilenet": (3.0,),
}
CALIBRATION, BATCH, DRAWS = 512, 32, 6
Pool = tuple[np.ndarray, np.ndarray]  # pixels and labels


def pools(name: str) -> tuple[Pool, np.ndarray, np.ndarray]:
    """(new images with labels, other images of this kind, as calibrations are drawn from, those of the other kind).

    The guard's design was chosen on brain_mri and fashion_mnist with the second; only the first are reported on.
    """
    clothes = images("fashion_mnist", "test", 10_000, 0)
    heads = images("brain_mri", "test", 10_000, 0)
    if EXAMPLES[name].folder == "brain_mri":
        return tuple(part[:4000] for part in heads), images("brain_mri", "train", 4000, 7)[0], clothes[0][:500]
    return tuple(part[:5000] for part in clothes), clothes[0][5000:], heads[0][:500]


def batches(pixels: np.ndarray, spec) -> list[Tensor]:
    return [spec.preprocess(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]


def subject(name: str, reduction: float) -> nn.Module:
    """The dense network, or compressed with 512 calibration images: kept on disk."""
    dense, spec, digest = network(name)
    model = copy.deepcopy(dense)
    if reduction == 1:
        return model
    file = CACHE / f"{name}-{reduction:g}x-{digest}.safetensors"
    if file.exists():
        hscc.load_(model, file)
        return model
    hscc.compress_(
        model, batches(images(name, "calibration", CALIBRATION, 0)[0], spec), hscc.Config(hscc.flops(reduction))
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    hscc.save(model, file)
    return model


class Baselines:
    """Scores of the last linear layer's inputs and outputs, all higher for what is foreign: maximum softmax probability
    (Hendrycks and Gimpel, 2017), energy (Liu et al., 2020), energy of activations cut at their 90th percentile (ReAct,
    Sun et al., 2021)."""

    def __init__(self, model: nn.Module, calibration: list[Tensor]) -> None:
        self.last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        self._seen: list[Tensor] = []
        handle = self.last.register_forward_pre_hook(lambda module, args: self._seen.append(args[0]))
        try:
            for x in calibration:
                model(x)
        finally:
            handle.remove()
        self.cut = torch.from_numpy(np.quantile(torch.cat(self._seen).numpy(), 0.9, keepdims=True).ravel()).float()

    def scores(self, inputs: Tensor, logits: Tensor) -> dict[str, Tensor]:
        cut = self.last(inputs.minimum(self.cut))
        return {
            "maximum softmax": -logits.softmax(1).amax(1),
            "energy": -logits.logsumexp(1),
            "ReAct energy": -cut.logsumexp(1),
        }


@torch.inference_mode()
def scores(model: nn.Module, guard: Guard, baselines: Baselines, data: list[Tensor]) -> tuple[dict, np.ndarray]:
    """(scores (n,) by method, predicted classes (n,))."""
    found: dict[str, list[Tensor]] = {}
    predicted, seen = [], []
    handle = baselines.last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        for x in data:
            logits, own = guard(model, x)
            for method, values in {"guard": own, **baselines.scores(seen[-1], logits)}.items():
                found.setdefault(method, []).append(values)
            predicted.append(logits.argmax(1))
    finally:
        handle.remove()
    return {method: torch.cat(values).numpy() for method, values in found.items()}, torch.cat(predicted).numpy()


def auroc(usual: np.ndarray, foreign: np.ndarray) -> float:
    """How likely a foreign image scores higher than a usual one; ties count half."""
    from sklearn.metrics import roc_auc_score

    labels = np.repeat([0, 1], [len(usual), len(foreign)])
    return float(roc_auc_score(labels, np.minimum(np.concatenate([usual, foreign]), 1e30)))


def foreign(name: str, new: np.ndarray, other: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    """(group, kind, pictures)."""
    title = "clothes" if EXAMPLES[name].folder == "brain_mri" else "heads"
    yield "foreign", title, kinds.resized(other, new.shape[1:])
    for group, several in (("foreign", kinds.FOREIGN), ("unseen", kinds.UNSEEN), ("near", kinds.NEAR)):
        for seed, (kind, make) in enumerate(several.items()):
            yield group, kind, kinds.made(make, new, seed)


def case(name: str, reduction: float, changed: int) -> dict:
    """All numbers of one network; ``changed`` images a kind."""
    model, spec = subject(name, reduction), network(name)[1]
    (new, labels), more, other = pools(name)
    calibration = batches(images(name, "calibration", CALIBRATION, 0)[0], spec)
    guard = Guard.fit(model, calibration)
    with torch.inference_mode():
        baselines = Baselines(model, calibration)
    usual, predicted = scores(model, guard, baselines, batches(new, spec))
    right = predicted == labels
    flagged = usual["guard"] > guard.threshold
    result = {
        "network": name,
        "reduction": reduction,
        "calibration": len(guard.held_out),
        "new": len(new),
        "layers": guard.layers,
        "false_alarms": float(flagged.mean()),
        "accuracy": float(right.mean()),
        "accuracy_unflagged": float(right[~flagged].mean()),
        "kinds": {},
    }
    for group, kind, pixels in foreign(name, new[-changed:], other):
        found, answers = scores(model, guard, baselines, batches(pixels, spec))
        row = {"group": group, "images": len(pixels), "flagged": float((found["guard"] > guard.threshold).mean())}
        row["auroc"] = {method: auroc(usual[method], values) for method, values in found.items()}
        row["accuracy"] = float((answers == labels[-changed:]).mean()) if kind in kinds.KEEP_CLASSES else None
        result["kinds"][kind] = row
    result["draws"] = {count: draws(model, more, new[:1000], spec, count) for count in (128, CALIBRATION)}
    result["latency"] = {count: latency(model, guard, batches(new[:count], spec)[0]) for count in (1, BATCH)}
    return result


@torch.inference_mode()
def draws(model: nn.Module, pool: np.ndarray, new: np.ndarray, spec, count: int) -> list[float]:
    """Shares of false alarms of guards that are fitted to several sets of ``count`` images."""
    data, found = batches(new, spec), []
    for i in range(DRAWS):
        guard = Guard.fit(model, batches(pool[i * count : (i + 1) * count], spec))
        found.append(float(np.mean([float(s) > guard.threshold for x in data for s in guard(model, x)[1]])))
    return found


def latency(model: nn.Module, guard: Guard, x: Tensor) -> dict[str, float]:
    """Milliseconds a call by turns, and the median over the rounds of what the guard adds, as a share."""
    times = interleaved({"model": lambda: model(x), "guarded": lambda: guard(model, x)}, rounds=60, slice_ms=10)
    share = statistics.median(b / a - 1 for a, b in zip(times["model"], times["guarded"], strict=True))
    return {name: statistics.median(values) for name, values in times.items()} | {"share": share}


def main(
    networks: Annotated[list[str] | None, typer.Option("--network", help="Of the examples; all when none.")] = None,
    changed: Annotated[int, typer.Option(min=10, help="Images of each kind that is not new.")] = 500,
    results: Annotated[Path, typer.Option(help="JSON file, whose other networks stay.")] = RESULTS,
    page_file: Annotated[Path, typer.Option("--page", help="Markdown file whose tables are replaced.")] = PAGE,
) -> None:
    """Measures the guard on the examples: writes a JSON file and the tables of docs/guard.md."""
    torch.set_num_threads(1)
    cases = {}
    if results.exists():
        cases = {(old["network"], old["reduction"]): old for old in json.loads(results.read_text())["cases"]}
    for name in networks or SUBJECTS:
        for reduction in SUBJECTS[name]:
            cases[name, reduction] = own = case(name, reduction, changed)
            typer.echo(f"{name} {reduction:g}x: false alarms {own['false_alarms']:.3f}, {own['latency'][1]}")
            ordered = [cases[n, r] for n, several in SUBJECTS.items() for r in several if (n, r) in cases]
            text = json.dumps({"header": header(1, [1, BATCH]), "cases": ordered}, indent=1) + "\n"
            partial = results.with_suffix(".partial")
            partial.write_text(text)
            os.replace(partial, results)
            if page_file.exists():
                page_file.write_text(page(page_file.read_text(), json.loads(text)["cases"]))
