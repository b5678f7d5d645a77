"""The way from a dense model to a compressed one: plan (what each layer becomes), then apply (fit and swap)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from . import progress
from .baselines import plan as baselines
from .baselines.chain import Chain
from .config import Config
from .fit import network
from .fit.heads import Head
from .nn import surgery
from .observe import calibrate, probe
from .observe.data import Calibration
from .report import LayerReport, Report
from .search import allocate, options, stats
from .search.cost import Cost, remaining, row, total
from .search.latency import Machine
from .search.plan import LayerPlan

FEW_IMAGES = 64
# shares of the time, roughly
PLAN = {"profile": 2, "sensitivity": 4, "cells": 2, "second moments": 2, "directions": 1, "moments": 2}
PLAN |= {"projections": 1, "squeezes": 6, "structures": 12}
FIT = {"fit": 12, "last layer": 2}


@dataclass(frozen=True)
class CompressionPlan:
    """What :func:`apply_` will do to a model: nothing has been changed yet."""

    config: Config
    layers: dict[str, LayerPlan] | dict[str, Chain]
    targets: surgery.Targets
    others: dict[str, Cost]
    warnings: tuple[str, ...] = ()
    machine: Machine | None = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def reads(self) -> bool:
        """Whether :func:`apply_` needs the data."""
        return self.config.method in baselines.METHODS or network.reads(self.layers, self.config)

    def report(self) -> Report:
        """What the compressed model will hold, and the errors predicted on calibration data kept apart."""
        if self.config.method in baselines.METHODS:
            rows = [baselines.row_of(layer) for layer in self.layers.values()]
        else:
            rows = [layer.row(layer.choice.cost) for layer in self.layers.values()]
        return self._report(rows)

    def _report(self, rows: list[LayerReport], refitted: Iterable[str] = (), warnings: Iterable[str] = ()) -> Report:
        """Of these rows and those of convolutions that cannot be compressed."""
        untouched = [
            row(name, cost, cost, self.machine is not None, reason=self.targets.skipped[name])
            for name, cost in self.others.items()
        ]
        named = tuple(replace(r, shared_with=self.targets.names[r.name][1:]) for r in rows + untouched)
        report = Report(
            named,
            (*self.warnings, *warnings),
            self.machine and self.machine.error,
            tuple(refitted),
            seconds=dict(self.seconds),
        )
        if report.bytes <= report.dense_bytes:
            return report
        size = f"convolutions take {report.bytes / 1e6:.2f} MB, dense ones {report.dense_bytes / 1e6:.2f} MB"
        return report.warned(f"{size}: index tensors count, and no budget limits bytes")


def compress_(
    model: nn.Module,
    calibration: Iterable,
    config: Config,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    show_progress: bool = False,
) -> Report:
    """Compresses a trained model in place.

    Args:
        model: any module, a compiled one too; its ``nn.Conv2d`` are replaced by :class:`HSCConv2d`,
            :class:`SqueezedConv2d` or, for the methods of other authors, chains of plain ones. Sequential
            reconstruction also refits its last ``nn.Linear``; all else stays, hooks on convolutions too.
        calibration: a few hundred unlabelled samples of one size, that can be read several times: batches that are a
            tensor, a tuple or list whose first item is the input, or a dict (the model gets the keywords that its
            ``forward`` takes); or one tensor (N, C, H, W).
        config: what to do and how far.
        forward: called as ``forward(model, batch)`` for batches of any other kind.
        show_progress: a bar for all of it, with the time left, on standard error.

    Returns:
        The report; the model is changed only when all has gone well.

    Raises:
        TypeError, ValueError: for what cannot be used, with got and expected.
    """
    with progress.job(PLAN | FIT, show_progress):
        planned = plan(model, calibration, config, forward=forward, show_progress=show_progress)
        return apply_(model, planned, calibration, show_progress)


@torch.inference_mode(False)  # what is made here may be needed for gradients
def plan(
    model: nn.Module,
    calibration: Iterable,
    config: Config,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    show_progress: bool = False,
) -> CompressionPlan:
    """Chooses regions, clusters and ranks of every layer; arguments as for :func:`compress_`."""
    with progress.job(PLAN, show_progress) as job:
        return replace(_plan(model, calibration, config, forward, show_progress), seconds=dict(job.seconds))


def _plan(
    model: nn.Module, calibration: Iterable, config: Config, forward: Callable | None, show_progress: bool
) -> CompressionPlan:
    if not isinstance(config, Config):
        raise TypeError(f"config: got {type(config).__name__}, expected hscc.Config")
    model, config = surgery.unwrapped(model), config.resolved
    data = Calibration.of(model, calibration, config.seed, show_progress, forward)
    targets = surgery.find(model, config.skip)
    targets.leave(probe.objections(model, data, targets.layers, targets.names))
    profiles = calibrate.profile(model, data, targets.layers)
    targets.leave({name: "did not run on the calibration data" for name in targets.layers if name not in profiles})
    if not targets.layers:
        raise ValueError(f"model: got nothing to compress, expected an nn.Conv2d that can be ({_told(targets)})")
    machine, seconds, others = _costs(model, data, targets, config)
    shape = {"config": config, "targets": targets, "others": others, "forward": forward}
    dense = total(
        Cost.dense(targets.layers[name], p.calls * math.prod(p.size), seconds.get(name, 0))
        for name, p in profiles.items()
    )
    limit = remaining(dense, total(others.values()), config.budget, targets.skipped)
    if config.method in baselines.METHODS:
        seen = baselines.look(model, data, profiles, config)
        return CompressionPlan(layers=baselines.with_ranks(seen, limit, config.budget.energy), **shape)
    looked, warnings = stats.look(model, data, targets.layers, profiles, config)
    if machine:
        looked = {name: replace(layer, machine=machine, dense_seconds=seconds[name]) for name, layer in looked.items()}
    found = options.find(model, data, looked, config)
    chosen = allocate.within_budget(
        {name: [option for _, option in several] for name, several in found.items()}, dense, limit, config.budget
    )
    layers = {name: LayerPlan(looked[name], found[name][index][0], choice) for name, (index, choice) in chosen.items()}
    if config.sequential:
        layers = {name: replace(layer, stats=layer.stats.lean()) for name, layer in layers.items()}
    images = max(layer.profile.images // layer.profile.calls for layer in looked.values())
    if images < FEW_IMAGES:
        warnings.append(
            f"{images} calibration images: got fewer than {FEW_IMAGES}, so regions and ranks rest on little"
        )
    if machine and machine.busy:
        warnings.append("latency: this machine was busy when it was measured, so that predictions may be false")
    warnings += [f"{name}: rank 0 in all regions, so that nothing passes it" for name in layers if layers[name].cut]
    return CompressionPlan(layers=layers, warnings=tuple(warnings), machine=machine, **shape)


@torch.inference_mode(False)
def apply_(
    model: nn.Module, plan: CompressionPlan, calibration: Iterable | None = None, show_progress: bool = False
) -> Report:
    """Fits the planned factors and swaps them into ``model``.

    The data are needed once more by sequential reconstruction, squeezed layers and baselines. Where they are given, a
    pass of the first batch checks that every new layer is called before the model is changed.
    """
    with progress.job(FIT, show_progress) as job:
        report = _applied(model, plan, calibration, show_progress)
        return replace(report, seconds={**plan.seconds, **job.seconds})


def _applied(model: nn.Module, plan: CompressionPlan, calibration: Iterable | None, show_progress: bool) -> Report:
    if plan.reads and calibration is None:
        wanted = "the data for sequential reconstruction, squeezed layers and baselines"
        raise ValueError(f"calibration: got None, expected {wanted}")
    model = surgery.unwrapped(model)
    data, head = Calibration.of(model, calibration, plan.config.seed, show_progress, plan.forward), Head()
    if plan.config.method in baselines.METHODS:
        student, rows = baselines.fit(model, plan.layers, plan.targets.names, data)
    else:
        student, head = network.fit(model, plan.layers, plan.targets.names, data, plan.config)
        costs = {name: plan.layers[name].cost(module.plan) for name, module in student.modules.items()}
        rows = [layer.row(costs.get(name, layer.stats.dense)) for name, layer in plan.layers.items()]
    report = plan._report(rows, head.values, [head.warning] if head.warning else [])
    if calibration is not None:
        if not probe.confirm(student, data):
            report = report.warned("the outputs no longer depend on the images: expected a budget that leaves more")
        if plan.machine:
            report = _timed(report, plan, student, data)
    student.swap_()
    model.load_state_dict(head.values, strict=False)
    surgery.channels_last_(model)
    return report


def _timed(report: Report, plan: CompressionPlan, student: surgery.Student, data: Calibration) -> Report:
    """With the speed-up of all convolutions, the replaced ones timed as they were and as they are."""
    convs = {name: student.model.get_submodule(name) for name in student.modules}
    calls = calibrate.calls(student.model, data, convs)
    pairs = [(conv, student.modules[name], [call.x for call in calls[name]]) for name, conv in convs.items()]
    dense, new = plan.machine.compare(pairs, data.show)
    others = sum(layer.dense_ms for layer in report.layers if layer.name not in convs) / 1e3
    report = replace(report, measured_speedup=(others + dense) / (others + new))
    wanted = plan.config.budget.latency or 0
    if report.measured_speedup >= wanted * (1 - report.latency_error):
        return report
    return report.warned(
        f"latency: {report.measured_speedup:.2f}x measured on the finished layers, expected {wanted:g}x"
    )


def _costs(
    model: nn.Module, data: Calibration, targets: surgery.Targets, config: Config
) -> tuple[Machine | None, Mapping[str, float], dict[str, Cost]]:
    """(the machine's speed and the seconds of all calls of each convolution, where they count; what the convolutions
    that cannot be compressed cost)."""
    timed = config.timed
    convs = {name: model.get_submodule(name) for name in (*(targets.layers if timed else ()), *targets.skipped)}
    calls = calibrate.calls(model, data, convs)
    machine, seconds = None, dict.fromkeys(convs, 0.0)
    if timed:
        machine = Machine.measured(next(iter(convs.values())).weight.detach(), config.latency_batch, data.show)
        sizes = {name: (conv, [call.x for call in calls[name]]) for name, conv in convs.items()}
        seconds = machine.dense_seconds(sizes, data.show)
    others = {
        name: Cost.dense(convs[name], sum(call.positions(convs[name]) for call in calls[name]), seconds[name])
        for name in targets.skipped
    }
    return machine, seconds, others


def _told(targets: surgery.Targets) -> str:
    """Why convolutions cannot be compressed."""
    return "; ".join(f"{name}: {why}" for name, why in targets.skipped.items()) or "it has no convolution"
