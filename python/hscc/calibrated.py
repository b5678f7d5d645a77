"""What a network has shown on its calibration data: a plan for any budget comes of it, without another pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from . import progress, whole
from .baselines import plan as baselines
from .baselines.chain import Chain
from .config import Budget, Config
from .fit import network
from .nn import surgery
from .observe import calibrate as passes
from .observe import probe
from .observe.data import Calibration, evaluation_mode
from .report import LayerReport, Report, Whole, joined
from .search import allocate, options, stats
from .search.cost import Cost, remaining, row, total
from .search.latency import Machine
from .search.options import Option
from .search.plan import LayerPlan
from .search.stats import LayerStats

FEW_IMAGES = 64
PORTABLE_CHANNELS = 48  # of a group: runtimes compute narrower ones no faster in two stages (docs/layers.md)
# shares of the time, roughly
STAGES = {"profile": 2, "sensitivity": 4, "cells": 2, "second moments": 2, "directions": 1, "moments": 2}
STAGES |= {"projections": 1, "squeezes": 6, "structures": 12}


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
    whole: Whole | None = None

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
        return self.report_of(rows)

    def report_of(self, rows: list[LayerReport], refitted: Iterable[str] = (), warnings: Iterable[str] = ()) -> Report:
        """Of these rows and those of convolutions that cannot be compressed."""
        untouched = [
            row(name, cost, cost, self.machine is not None, reason=self.targets.skipped[name])
            for name, cost in self.others.items()
        ]
        if self.config.method not in baselines.METHODS:
            rows = joined(rows, self.targets.whole_of)
        named = tuple(replace(r, shared_with=self.targets.names[r.name][1:]) for r in rows + untouched)
        report = Report(
            named,
            (*self.warnings, *warnings),
            self.machine and self.machine.error,
            tuple(refitted),
            seconds=dict(self.seconds),
            whole=self.whole and replace(self.whole, predicted_ms=self.whole.rest_ms + sum(r.ms for r in rows)),
        )
        if report.whole and report.whole.speedup <= 1:
            dense = f"{report.whole.dense_ms[report.whole.best]:.2f} ms"
            told = f"the whole network would take {report.whole.predicted_ms:.2f} ms"
            report = report.warned(f"{told}, the dense one takes {dense} in {report.whole.best}")
        if all(row.reason for row in named):
            report = report.warned("nothing is compressed: every layer stays as it is under this budget")
        if report.bytes <= report.dense_bytes:
            return report
        size = f"convolutions take {report.bytes / 1e6:.2f} MB, dense ones {report.dense_bytes / 1e6:.2f} MB"
        return report.warned(f"{size}: index tensors count, and no budget limits bytes")


@dataclass(frozen=True)
class Calibrated:
    """All that plans are made of: for "hscc" and "svd" what each layer showed and may become, else chains."""

    config: Config
    targets: surgery.Targets
    others: dict[str, Cost]
    dense: Cost
    layers: Mapping[str, LayerStats] | Mapping[str, Chain]
    options: Mapping[str, list[Option]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    machine: Machine | None = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    whole: Whole | None = None

    def plan(self, budget: Budget) -> CompressionPlan:
        """What to do to the model to keep this budget.

        Raises ValueError for a budget that no factors keep, one of accuracy (``compress_`` keeps it), and one of
        latency where the machine was not measured.
        """
        if budget.max_drop is not None:
            raise ValueError(f"budget: got max_drop={budget.max_drop:g}, which takes fits, expected compress_ for it")
        if budget.latency is not None and self.machine is None:
            raise ValueError(
                f"budget: got latency={budget.latency:g}, expected a calibration whose config has one, or faster_only"
            )
        limit = remaining(self.dense, total(self.others.values()), budget, self.targets.skipped)
        config, machine, warnings = replace(self.config, budget=budget), self.machine, [*self.warnings]
        if self.config.method in baselines.METHODS:
            layers = baselines.with_ranks(self.layers, limit, budget.energy)
        else:
            several = {name: [option for _, option in found] for name, found in self.options.items()}
            chosen = allocate.within_budget(several, self.dense, limit, budget)
            layers = {
                name: LayerPlan(self.layers[name], self.options[name][index][0], choice)
                for name, (index, choice) in chosen.items()
            }
            cut = [name for name, layer in layers.items() if layer.cut]
            warnings += [f"{name}: rank 0 in all regions, so that nothing passes it" for name in cut]
        return CompressionPlan(
            config, layers, self.targets, self.others, tuple(warnings), machine, self.forward, self.seconds, self.whole
        )


@torch.inference_mode(False)  # what is made here may be needed for gradients
def calibrate(
    model: nn.Module,
    calibration: Iterable,
    config: Config,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    show_progress: bool = False,
) -> Calibrated:
    """Looks at every layer: for plans of several budgets at the cost of one; arguments as for ``compress_``.

    The config's budget says how far the plans will go, roughly: layers that count little there are not looked at
    closely. Its energy, if any, decides how structures are found.
    """
    if not isinstance(config, Config):
        raise TypeError(f"config: got {type(config).__name__}, expected hscc.Config")
    with progress.job(STAGES, show_progress) as job:
        model, config = surgery.unwrapped(model), config.resolved
        data = Calibration.of(model, calibration, config.seed, show_progress, forward)
        return replace(_calibrated(model, data, config), seconds=dict(job.seconds))


def _calibrated(model: nn.Module, data: Calibration, config: Config) -> Calibrated:
    targets = _targets(model, data, config)
    with targets.formed(model):
        found = _looked(model, targets, data, config)
    if found.machine is None:
        return found
    sizes = {name: layer.profile.size for name, layer in found.layers.items()}
    return replace(found, whole=whole.timed(model, targets, sizes, data, config.latency_batch))


def _targets(model: nn.Module, data: Calibration, config: Config) -> surgery.Targets:
    with evaluation_mode(model):
        targets = surgery.find(model, config.skip)
    if config.portable:
        targets.leave(targets.narrow(PORTABLE_CHANNELS))
    found = probe.objections(model, data, targets.layers, targets.names, config.linear)
    for name in [name for name, why in found.items() if why == probe.NO_MAP and not config.linear]:
        targets.forget(name)
        del found[name]
    targets.leave(found)
    targets.reform()
    return targets


def _looked(model: nn.Module, targets: surgery.Targets, data: Calibration, config: Config) -> Calibrated:
    profiles = passes.profile(model, data, targets.layers)
    targets.leave({name: "did not run on the calibration data" for name in targets.layers if name not in profiles})
    several = [name for name, profile in profiles.items() if profile.pooled]
    if config.method in baselines.METHODS:
        targets.leave(dict.fromkeys(several, f"it runs at several sizes, which {config.method!r} does not know"))
        profiles = {name: profile for name, profile in profiles.items() if not profile.pooled}
    if not targets.layers:
        raise ValueError(f"model: got nothing to compress, expected an nn.Conv2d that can be ({_told(targets)})")
    machine, seconds, others = _costs(model, data, targets, profiles, config)
    dense = total(Cost.dense(targets.layers[name], p.positions, seconds.get(name, 0)) for name, p in profiles.items())
    remaining(dense, total(others.values()), config.budget, targets.skipped)  # before the long work
    shape = {"config": config, "targets": targets, "others": others, "dense": dense, "forward": data.adapter}
    if config.method in baselines.METHODS:
        return Calibrated(layers=baselines.look(model, data, profiles, config), **shape)
    looked, warnings = stats.look(model, data, targets.layers, profiles, config)
    if several and config.regions > 1:
        told = ", ".join(several[:3]) + (f" and {len(several) - 3} more" if len(several) > 3 else "")
        warnings.append(f"layers that run at several sizes have one region: {told}")
    looked |= {name: replace(looked[name], groups=whole.groups) for name, whole in targets.grouped(looked).items()}
    if machine:
        looked = {name: replace(layer, machine=machine, dense_seconds=seconds[name]) for name, layer in looked.items()}
    found = options.find(model, data, looked, config)
    images = max(layer.profile.images // layer.profile.calls for layer in looked.values())
    if images < FEW_IMAGES:
        warnings.append(
            f"{images} calibration images: got fewer than {FEW_IMAGES}, so regions and ranks rest on little"
        )
    if machine and machine.busy:
        warnings.append("latency: this machine was busy when it was measured, so that predictions may be false")
    if config.sequential:
        looked = {name: layer.lean() for name, layer in looked.items()}
    return Calibrated(layers=looked, options=found, warnings=tuple(warnings), machine=machine, **shape)


def _costs(
    model: nn.Module,
    data: Calibration,
    targets: surgery.Targets,
    profiles: Mapping[str, passes.Profile],
    config: Config,
) -> tuple[Machine | None, Mapping[str, float], dict[str, Cost]]:
    """(the machine's speed and the seconds of all calls of each convolution, where they count; what the convolutions
    that cannot be compressed cost); where sizes differ, all is for images of the first batch."""
    timed = config.timed
    pooled = {name: profile for name, profile in profiles.items() if profile.pooled}
    convs = {name: model.get_submodule(name) for name in (*(targets.layers if timed else pooled), *targets.skipped)}
    calls = passes.calls(model, data, convs)
    for name, profile in pooled.items():
        profile.count_(sum(call.positions(convs[name]) for call in calls[name]))
    machine, seconds = None, dict.fromkeys(convs, 0.0)
    if timed:
        machine = Machine.measured(next(iter(convs.values())).weight.detach(), config.latency_batch, data.show)
        sizes = {name: (conv, [call.x for call in calls[name]]) for name, conv in convs.items()}
        for name, whole in targets.grouped(convs).items():
            sizes[name] = whole, [(whole.groups * c, *rest) for c, *rest in sizes[name][1]]
        seconds = machine.dense_seconds(sizes, data.show)
        seconds |= {name: seconds[name] / whole.groups for name, whole in targets.grouped(convs).items()}
    others = {
        name: Cost.dense(convs[name], sum(call.positions(convs[name]) for call in calls[name]), seconds[name])
        for name in targets.skipped
    }
    return machine, seconds, others


def _told(targets: surgery.Targets) -> str:
    """Why convolutions cannot be compressed."""
    return "; ".join(f"{name}: {why}" for name, why in targets.skipped.items()) or "it has no convolution"
