"""The way from a dense model to a compressed one: plan (what each layer becomes), then apply (fit and swap)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from . import calibrated, fitted, progress, quantize, tolerance
from .calibrated import CompressionPlan, calibrate
from .config import Config
from .report import Report
from .tolerance import Evaluate


def compress_(
    model: nn.Module,
    calibration: Iterable,
    config: Config,
    *,
    evaluate: Evaluate | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    show_progress: bool = False,
) -> Report:
    """Compresses a trained model in place.

    Args:
        model: any module, a compiled one too; its convolutions (``docs/layers.md``) are replaced by :class:`HSCConv2d`,
            :class:`SqueezedConv2d` or, for the methods of other authors, chains of plain ones. Sequential
            reconstruction also refits its last ``nn.Linear``; all else stays, hooks on convolutions too.
        calibration: a few hundred unlabelled samples that can be read several times: batches that are a tensor, a tuple
            or list whose first item is the input, or a dict (the model gets the keywords that its ``forward`` takes);
            or one tensor (N, C, H, W). A layer that runs at several sizes has one region.
        config: what to do and how far.
        evaluate: for ``Budget(max_drop=...)``: a function that gives a model's score of each of the same samples, (n,)
            in 0..1; or batches of other images, ``(inputs, labels)`` scored by the share named right, or inputs alone,
            scored by agreement with the dense model. Without it agreement is counted on the calibration data.
        forward: called as ``forward(model, batch)`` for batches of any other kind.
        show_progress: a bar for all of it, with the time left, on standard error.

    Returns:
        The report; the model is changed only when all has gone well.

    Raises:
        TypeError, ValueError: for what cannot be used, with got and expected.
    """
    if isinstance(config, Config) and config.budget.max_drop is not None:
        found = tolerance.search(model, calibration, config, evaluate, forward, show_progress)
        return found.swap_()
    if evaluate is not None:
        raise ValueError("evaluate: got one without Budget(max_drop=...), expected None, or a drop to keep")
    with progress.job(calibrated.STAGES | fitted.STAGES, show_progress):
        planned = plan(model, calibration, config, forward=forward, show_progress=show_progress)
        return apply_(model, planned, calibration, show_progress)


def plan(
    model: nn.Module,
    calibration: Iterable,
    config: Config,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    show_progress: bool = False,
) -> CompressionPlan:
    """Chooses regions, clusters and ranks of every layer; arguments as for :func:`compress_`."""
    found = calibrate(model, calibration, config, forward=forward, show_progress=show_progress)
    return found.plan(found.config.budget)


def apply_(
    model: nn.Module, plan: CompressionPlan, calibration: Iterable | None = None, show_progress: bool = False
) -> Report:
    """Fits the planned factors and swaps them into ``model``.

    The data are needed once more by sequential reconstruction, squeezed layers, baselines and int8. Where they are
    given, a pass of the first batch checks that every new layer is called before the model is changed.
    """
    if plan.config.dtype == "float":
        return fitted.fit(model, plan, calibration, show_progress).swap_()
    with progress.job(fitted.STAGES | {"int8": 2}, show_progress) as job:
        made = _float(model, plan, calibration, show_progress)
        if not made.student.modules:
            return made.swap_()
        with made.in_place() as small:
            student, eight = quantize.fit(small, calibration, 8, plan.config.skip, plan.forward, show_progress)
        report = made.swap_()
        quantize.swap_(student)
        errors = {name: error for name, error in eight.errors.items() if name not in eight.stays}
        told = tuple(f"{name} stays in float: {why}" for name, why in eight.stays.items())
        seconds = {**report.seconds, "int8": job.seconds["int8"]}
        return replace(report, int8=errors, warnings=report.warnings + told, seconds=seconds)


def _float(model: nn.Module, plan: CompressionPlan, calibration: Iterable | None, show_progress: bool) -> fitted.Fitted:
    """What int8 is made of, or what is wrong before the work."""
    if calibration is None:
        raise ValueError("calibration: got None, expected the data, as dtype='int8' reads them")
    if other := next((p.dtype for p in model.parameters() if p.dtype != torch.float32), None):
        raise TypeError(f"model: got parameters of {other}, expected torch.float32 for dtype='int8'")
    return fitted.fit(model, plan, calibration, show_progress)
