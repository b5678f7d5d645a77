"""As far as an accuracy allows: budgets tried in an order fixed before, on one calibration, each by a test.

Why the answer holds at the confidence that was asked for: ``docs/math.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from . import calibrated, fitted, progress
from .calibrated import Calibrated, calibrate
from .config import Budget, Config
from .evaluation.paired import bounds
from .evaluation.scores import STAGE, Evaluate, Scores
from .evaluation.speed import in_turn
from .fitted import Fitted
from .nn import surgery
from .observe import distributed
from .observe.data import Calibration, evaluation
from .observe.values import floating
from .report import Report, Trial

COARSE, FINE, STEPS = 2.0, 2**0.25, 3  # times less from one trial to the next; fine ones within a coarse one
MOST = 256.0  # times less: where nothing is lost, FLOPs may be halved for ever
EXPECTED = 8  # trials, for the time left
TIMED = 3  # candidates
ALIKE = 1.03  # times the quickest: no slower than measurements tell
ALONE = 128  # images, for what each layer alone changes


def search(
    model: nn.Module,
    calibration: Iterable,
    config: Config,
    evaluate: Evaluate | None,
    forward: Callable[[nn.Module, Any], Any] | None,
    show_progress: bool,
) -> Fitted:
    """The fastest or smallest model whose score falls by at most ``config.budget.max_drop`` points; arguments as for
    ``compress_``. Raises ValueError where none was found, with what was seen."""
    model = surgery.unwrapped(model)
    if len(distributed.gather(0)) > 1:
        raise ValueError("budget: got max_drop on several ranks, expected one process, or another limit")
    trial = {**fitted.STAGES, STAGE: 4}
    shares = {**calibrated.STAGES, **trial}
    with progress.job(shares, show_progress, sum(calibrated.STAGES.values()) + EXPECTED * sum(trial.values())) as job:
        data = Calibration.of(model, calibration, config.seed, show_progress, forward)
        scores = Scores(calibration if evaluate is None else evaluate, replace(data, show=show_progress))
        dense = scores.of(model)
        found = calibrate(model, calibration, config, forward=forward, show_progress=show_progress)
        tried = _Search(model, data, found, config.budget, scores, dense)
        tried.run()
        chosen = tried.chosen()
        report = replace(tried.told(chosen), seconds=dict(job.seconds))
    if evaluate is None:
        report = report.warned(
            "the drop was counted as answers that differ from the dense model's on the calibration data, which the "
            "factors were fitted to: expected evaluate= with other images"
        )
    return replace(chosen, report=report)


@dataclass
class _Search:
    model: nn.Module
    data: Calibration
    found: Calibrated
    budget: Budget
    scores: Scores
    dense: np.ndarray
    trials: dict[float, Trial] = field(default_factory=dict)
    holding: dict[float, Fitted] = field(default_factory=dict)
    milliseconds: dict[float, float] = field(default_factory=dict)  # 0 is the dense model

    def run(self) -> None:
        """Coarse steps until one does not hold; then fine ones from the last that did."""
        least = getattr(self.budget, self.budget.aim)
        last, limit = least or 1.0, least or COARSE
        while limit <= max(MOST, least or 0) and self._holds(limit):
            last, limit = limit, limit * COARSE
        if limit == least or limit > MOST:
            return
        for _ in range(STEPS):
            if not self._holds(last := last * FINE):
                return

    def _holds(self, limit: float) -> bool:
        """Whether a model with so many times less loses no more than is allowed; False where there is none."""
        try:
            plan = self.found.plan(replace(self.budget, max_drop=None, **{self.budget.aim: limit}))
        except ValueError:
            if not self.trials and (limit == getattr(self.budget, self.budget.aim) or limit < COARSE):
                raise
            return False
        made = fitted.fit(self.model, plan, self.data.data, self.data.show)
        with made.in_place() as student:
            after = self.scores.of(student)
        each = 1 - (1 - self.budget.confidence) / 2  # half of the doubt for coarse steps, half for fine ones
        _, bound = bounds(self.dense, after, each)
        report, drop = made.report, 100 * float((self.dense - after).mean())
        holds = 100 * bound <= self.budget.max_drop
        self.trials[limit] = Trial(
            limit, report.flop_reduction, report.parameter_reduction, drop, 100 * bound, len(after), holds
        )
        if holds:
            self.holding[limit] = made
        return holds

    def chosen(self) -> Fitted:
        """Of those that hold: where speed is the aim the fastest by measurement, of equals and else the smallest."""
        if not self.holding:
            raise ValueError(
                f"budget: got max_drop={self.budget.max_drop:g}, expected more, or more samples to judge by: "
                + "; ".join(
                    f"{trial.flop_reduction:.2f}x fewer FLOPs lose {trial.drop:.2f} points of {trial.samples} samples, "
                    f"perhaps {trial.bound:.2f}"
                    for trial in self.trials.values()
                )
            )
        limits = sorted(self.holding)
        if self.budget.aim in ("flops", "latency"):
            self._time(limits[-TIMED:])
            quickest = min(self.milliseconds[limit] for limit in limits[-TIMED:])
            best = max(limit for limit in limits[-TIMED:] if self.milliseconds[limit] <= ALIKE * quickest)
        else:
            best = limits[-1]
        self.trials[best] = replace(self.trials[best], chosen=True)
        return self.holding[best]

    def _time(self, limits: list[float]) -> None:
        """Whole models in turn, dense among them, on as many images as count."""
        places = {0.0: lambda: nullcontext(self.model), **{limit: self.holding[limit].in_place for limit in limits}}
        self.milliseconds = in_turn(self.data, places, self.found.config.latency_batch)

    def told(self, chosen: Fitted) -> Report:
        """The report of the chosen model, with what was tried and what each layer alone changes."""
        ordered = sorted(self.trials.values(), key=lambda trial: trial.limit)
        trials = tuple(replace(trial, ms=self.milliseconds.get(trial.limit)) for trial in ordered)
        with chosen.targets.formed(self.model):
            alone = _alone(chosen.student, self.data)
        layers = tuple(replace(layer, alone=alone.get(layer.name)) for layer in chosen.report.layers)
        return replace(
            chosen.report,
            layers=layers,
            trials=trials,
            dense_score=float(self.dense.mean()),
            dense_call_ms=self.milliseconds.get(0.0),
        )


def _alone(student: surgery.Student, data: Calibration) -> dict[str, float]:
    """By layer: the share of the outputs' energy about their mean that changes where only it is compressed."""
    model, changed, images = student.model, dict.fromkeys(student.modules, 0.0), 0
    energy = 0.0
    with evaluation(model):
        for batch in data.batches("layers alone"):
            before = [y.double() for y in floating(data.forward(model, batch))]
            energy += sum((y - y.mean(0)).square().sum().item() for y in before)
            for name, module in student.modules.items():
                one = surgery.Student(model, student.names)
                one.modules = {name: module}
                with one.swapped():
                    after = floating(data.forward(model, batch))
                changed[name] += sum((a - b).square().sum().item() for a, b in zip(after, before, strict=True))
            images += max((len(y) for y in before if y.ndim), default=1)
            if images >= ALONE:
                break
    return {name: amount / max(energy, 1e-30) for name, amount in changed.items()}
