"""Does ``Budget(max_drop=0.5)`` keep its word? ``python -m bench.accuracy.tolerance``: one search a seed, resumable.

Each seed draws other calibration and other validation pictures of the brain-MRI example. The chosen model is then
tested on 10,000 pictures that no search has seen, the same for all seeds: their drop stands for the true one.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import hscc
import numpy as np
import torch
import typer
from hscc.evaluation.paired import standard_error

from .examples import images, network
from .study import BATCH, batches, scores, write

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DATA, TEST = "brain_mri", 10_000
RESULTS = Path("bench/results/tolerance")


def run(seed: int, calibration: int, validation: int, budget: hscc.Budget, show: bool) -> dict:
    """A search with the pictures of this seed, above 0, and the drop on the common ones; drops in points."""
    dense, spec, weights = network(DATA)
    judged, labels = images(DATA, "test", validation, seed)  # 0 is the common test
    lessons = zip(batches(judged, spec), torch.from_numpy(labels).split(BATCH), strict=True)
    model = copy.deepcopy(dense)
    start = time.perf_counter()
    report = hscc.compress_(
        model,
        batches(images(DATA, "calibration", calibration, seed)[0], spec),
        hscc.Config(budget, seed=seed),
        evaluate=[*lessons],
        show_progress=show,
    )
    seconds = time.perf_counter() - start
    lost = _dense() - scores(model, DATA, 0, show)
    return {
        "seed": seed,
        "calibration": calibration,
        "validation": validation,
        "weights": weights,
        "threads": torch.get_num_threads(),
        "flop_reduction": report.flop_reduction,
        "param_reduction": report.parameter_reduction,
        "seen_drop": report.chosen.drop,
        "bound": report.chosen.bound,
        "drop": 100 * float(lost.mean()),
        "drop_standard_error": 100 * standard_error(lost),
        "trials": len(report.trials),
        "dense_ms": report.dense_call_ms,
        "ms": report.chosen.ms,
        "seconds": round(seconds, 1),
        "stages": {stage: round(own, 1) for stage, own in report.seconds.items()},
    }


def _dense() -> np.ndarray:
    """Scores of the common pictures, kept on disk."""
    dense, _, weights = network(DATA)
    file = Path("out/accuracy") / f"{DATA}-{weights}-dense-scores.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, scores(dense, DATA, 0, True))
    return np.load(file)


@app.command()
def main(
    seeds: Annotated[int, typer.Option(min=1, help="Searches: of seeds 1 to this.")] = 20,
    first: Annotated[int, typer.Option(min=1, help="Begin with this one.")] = 1,
    calibration: Annotated[int, typer.Option(min=1, help="Calibration pictures.")] = 256,
    validation: Annotated[int, typer.Option(min=2, help="Pictures with labels, to judge by.")] = 2000,
    max_drop: Annotated[float, typer.Option(help="Points.")] = 0.5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of one file a seed; those that are there are kept.")] = RESULTS,
) -> None:
    """Prints a line a seed, and how many true drops are within what was asked for."""
    if threads is not None:
        torch.set_num_threads(threads)
    found = []
    for seed in range(first, seeds + 1):
        file = results / f"{max_drop:g}-c{calibration}-v{validation}-s{seed}.json"
        if not file.exists():
            try:
                result = run(seed, calibration, validation, hscc.Budget(max_drop=max_drop), True)
            except ValueError as error:  # nothing holds: no promise was made
                result = {"seed": seed, "refused": str(error)}
            write(file, result)
        found.append(json.loads(file.read_text()))
        typer.echo(_line(found[-1]))
    made = [one for one in found if "drop" in one]
    if not made:
        return
    kept, worst = sum(one["drop"] <= max_drop for one in made), max(one["drop"] for one in made)
    fewer = statistics.median(one["flop_reduction"] for one in made)
    typer.echo(
        f"{kept} of {len(made)} models lose at most {max_drop:g} points of {TEST:,} other pictures (largest "
        f"{worst:.2f}); {fewer:.1f}x fewer FLOPs by the median; {len(found) - len(made)} searches refused"
    )


def _line(one: dict) -> str:
    if "drop" not in one:
        return f"seed {one['seed']}: {one['refused']}"
    return (
        f"seed {one['seed']}: {one['flop_reduction']:.2f}x fewer FLOPs, seen {one['seen_drop']:.2f}, at most "
        f"{one['bound']:.2f}, true {one['drop']:.2f} (standard error {one['drop_standard_error']:.2f}), "
        f"{one['dense_ms'] / one['ms']:.2f}x faster, {one['trials']} trials, {one['seconds']:.0f} s"
    )


if __name__ == "__main__":
    app()
