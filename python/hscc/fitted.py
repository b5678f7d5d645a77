"""A plan's factors, made and checked, while the model is still as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from . import progress, whole
from .baselines import plan as baselines
from .calibrated import CompressionPlan
from .fit import network
from .fit.heads import Head
from .nn import surgery
from .nn.projection import SqueezedConv2d
from .observe import calibrate as passes
from .observe import probe
from .observe.data import Calibration
from .report import Report

STAGES = {"fit": 12, "last layer": 2}  # shares of the time, roughly


@dataclass(frozen=True)
class Fitted:
    """Modules for the layers, new values of the last linear layer, and what that comes to."""

    student: surgery.Student
    head: Head
    report: Report
    targets: surgery.Targets

    @contextmanager
    def in_place(self) -> Iterator[nn.Module]:
        """The compressed model; after the block it is as it was."""
        model, values = self.student.model, self.head.values
        parameters = dict(model.named_parameters()) if values else {}
        before = {name: parameters[name].detach().clone() for name in values}
        with self.targets.formed(model), self.student.swapped():
            try:
                _set_(model, values)
                yield model
            finally:
                _set_(model, before)

    def swap_(self) -> Report:
        """For good; the report."""
        self.targets.form_(self.student.model, self.student.modules)
        self.student.swap_()
        _set_(self.student.model, self.head.values)
        surgery.channels_last_(self.student.model)
        return self.report


@torch.no_grad()
def _set_(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Not by ``load_state_dict``, which some models make more of than that."""
    parameters = dict(model.named_parameters()) if values else {}
    for name, value in values.items():
        parameters[name].copy_(value)


@torch.inference_mode(False)
def fit(model: nn.Module, plan: CompressionPlan, calibration: Iterable | None, show_progress: bool) -> Fitted:
    """Makes the factors; where data are given, a pass of the first batch checks that every new layer is called.

    Raises ValueError where the plan needs data and there are none, or where what was fitted cannot be used.
    """
    with progress.job(STAGES, show_progress) as job:
        before = dict(job.seconds)
        made = _fitted(model, plan, calibration, show_progress)
        own = {stage: seconds - before.get(stage, 0.0) for stage, seconds in job.seconds.items()}
        report = replace(made.report, seconds={**plan.seconds, **{stage: own[stage] for stage in own if own[stage]}})
    return replace(made, report=report)


def _fitted(model: nn.Module, plan: CompressionPlan, calibration: Iterable | None, show_progress: bool) -> Fitted:
    if plan.reads and calibration is None:
        wanted = "the data for sequential reconstruction, squeezed layers and baselines"
        raise ValueError(f"calibration: got None, expected {wanted}")
    model = surgery.unwrapped(model)
    with plan.targets.formed(model):
        made = _made(model, plan, calibration, show_progress)
    if made.report.whole is None or calibration is None:
        return made
    data = Calibration.of(model, calibration, plan.config.seed, show_progress, plan.forward)
    dense = copy.deepcopy(model)
    with made.in_place() as small:
        checked = whole.checked(made.report.whole, dense, copy.deepcopy(small), data)
    return replace(made, report=replace(made.report, whole=checked))


def _made(model: nn.Module, plan: CompressionPlan, calibration: Iterable | None, show_progress: bool) -> Fitted:
    data, head = Calibration.of(model, calibration, plan.config.seed, show_progress, plan.forward), Head()
    if plan.config.method in baselines.METHODS:
        student, rows = baselines.fit(model, plan.layers, plan.targets.names, data)
    else:
        student, head = network.fit(model, plan.layers, plan.targets.names, data, plan.config)
        costs = {name: plan.layers[name].cost(module.plan) for name, module in student.modules.items()}
        rows = [layer.row(costs.get(name, layer.stats.dense)) for name, layer in plan.layers.items()]
        plan.targets.unite(student)
        for layer in student.modules.values():
            (layer.conv if isinstance(layer, SqueezedConv2d) else layer).strict = plan.config.strict
    report = plan.report_of(rows, head.values, [head.warning] if head.warning else [])
    if calibration is not None:
        if not probe.confirm(student, data):
            report = report.warned("the outputs no longer depend on the images: expected a budget that leaves more")
        if plan.machine:
            report = _timed(report, plan, student, data)
    return Fitted(student, head, report, plan.targets)


def _timed(report: Report, plan: CompressionPlan, student: surgery.Student, data: Calibration) -> Report:
    """With the speed-up of all convolutions, the replaced ones timed as they were and as they are."""
    convs = {name: student.model.get_submodule(name) for name in student.modules}
    calls = passes.calls(student.model, data, convs)
    pairs = [
        (plan.targets.wholes.get(name, conv), student.modules[name], [call.x for call in calls[name]])
        for name, conv in convs.items()
    ]
    dense, new = plan.machine.compare(pairs, data.show)
    others = sum(layer.dense_ms for layer in report.layers if layer.name not in convs) / 1e3
    report = replace(report, measured_speedup=(others + dense) / (others + new))
    wanted = plan.config.budget.latency or 0
    if report.measured_speedup >= wanted * (1 - report.latency_error):
        return report
    return report.warned(
        f"latency: {report.measured_speedup:.2f}x measured on the finished layers, expected {wanted:g}x"
    )
