"""All settings of a grid compressed and measured, one after the other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .. import calibrated, fitted, progress
from ..calibrated import Calibrated, calibrate
from ..config import Config
from ..evaluation.paired import bounds
from ..evaluation.scores import STAGE, Evaluate, Scores
from ..evaluation.speed import in_turn
from ..nn import surgery
from ..observe import distributed
from ..observe.data import Calibration
from ..observe.values import tensors
from .grid import Grid, Setting
from .journal import Journal, digest
from .points import Point, with_front

CONFIDENCE = 0.95


@torch.inference_mode(False)
def sweep(
    model: nn.Module,
    calibration: Iterable,
    grid: Grid,
    folder: Journal | str | Path,
    *,
    evaluate: Evaluate,
    show_progress: bool = False,
) -> tuple[Point, ...]:
    """Compresses ``model`` by every setting and measures what comes of it; the model stays as it is.

    Each result is kept in ``folder`` as soon as it is known, with its weights: killed and called again with the same
    arguments, the sweep goes on from there. Accuracy, FLOPs and parameters end the same; times are measured, each model
    in turn with the dense one.

    Args:
        calibration, evaluate, show_progress: as for :func:`hscc.compress_`.
        grid: what to vary.
        folder: where the results are; a new or an empty one, or one of the same sweep.

    Returns:
        The points in the order of the grid; those of the front are marked.

    Raises:
        ValueError: the folder is of another sweep, or the model has nothing to compress. A setting that is refused
            ends nothing, but is a point that says why.
    """
    if not isinstance(grid, Grid):
        raise TypeError(f"grid: got {type(grid).__name__}, expected hscc.Grid")
    if len(distributed.gather(0)) > 1:
        raise ValueError("sweep: got several ranks, expected one process")
    model = surgery.unwrapped(model)
    journal = folder if isinstance(folder, Journal) else Journal(Path(folder))
    data = Calibration.of(model, calibration, grid.base.seed, show_progress)
    work = _Work(model, data, grid.base, journal, Scores(evaluate, data))
    settings = grid.settings()
    journal.open(work.subject())
    missing = [setting for setting in settings if journal.done(setting) is None]
    shares, whole = _shares(missing, grid.base)
    with progress.job(shares, show_progress, whole):
        if missing:
            work.dense = work.scores.of(model)
        for setting in missing:
            work.do(setting)
    points = with_front([journal.done(setting) for setting in settings])
    journal.conclude(points)
    return points


def _shares(missing: list[Setting], base: Config) -> tuple[dict[str, float], float]:
    """Of the stages, and what all of them come to, for the time left."""
    trial = {**fitted.STAGES, STAGE: 4}
    looks = Counter(setting.config(base) for setting in missing)
    whole = len(looks) * sum(calibrated.STAGES.values()) + len(missing) * sum(trial.values())
    return {**calibrated.STAGES, **trial}, whole


@dataclass
class _Work:
    model: nn.Module
    data: Calibration
    base: Config
    journal: Journal
    scores: Scores
    dense: np.ndarray | None = None
    looked: tuple[Config, Calibrated] | None = None  # the last look

    def subject(self) -> dict[str, str]:
        """What tells this sweep from others."""
        state = [value for value in self.model.state_dict().values() if value.numel()]
        seen = [t for batch in self.data.batches() for t in tensors(batch)]
        return {"model": digest(state), "data": digest(seen), "options": self.base.to_json()}

    def do(self, setting: Setting) -> None:
        """Compresses, measures and writes down."""
        start = time.perf_counter()
        found = self._look(setting)
        try:
            made = fitted.fit(self.model, found.plan(setting.limit), self.data.data, self.data.show)
        except ValueError as error:
            self.journal.write(Point(setting, refused=str(error), seconds=time.perf_counter() - start))
            return
        places = {"dense": lambda: nullcontext(self.model), "compressed": made.in_place}
        times = in_turn(self.data, places, self.base.latency_batch)
        with made.in_place() as student:
            after = self.scores.of(student)
            change, report = after - self.dense, made.report
            point = Point(
                setting,
                score=float(after.mean()),
                dense_score=float(self.dense.mean()),
                difference=float(change.mean()),
                difference_standard_error=float(change.std(ddof=1) / len(change) ** 0.5),
                worst=bounds(self.dense, after, CONFIDENCE)[1],
                samples=len(after),
                flop_reduction=report.flop_reduction,
                parameter_reduction=report.parameter_reduction,
                byte_reduction=report.byte_reduction,
                latency_ms=times["compressed"],
                dense_ms=times["dense"],
                seconds=time.perf_counter() - start,
            )
            self.journal.write(point, student, report)

    def _look(self, setting: Setting) -> Calibrated:
        """At the layers; settings that differ in the budget alone share one."""
        config = setting.config(self.base)
        if self.looked is None or self.looked[0] != config:
            self.looked = None  # room for the next
            found = calibrate(self.model, self.data.data, config, show_progress=self.data.show)
            self.looked = config, found
        return self.looked[1]
