"""The way from a dense model to a compressed one: plan (what each layer becomes), then apply (fit and swap)."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from . import (
    baselines,
    calibrate,
    fitting,
    heads,
    reconstruct,
    rectifiers,
    regions,
    search,
    sensitivity,
    squeeze,
    structure,
    surgery,
)
from .chains import Chain
from .config import REDUCTIONS, Config
from .latency import Machine
from .progress import track
from .ranks import Cost
from .regions import RegionMap
from .report import LayerReport, Report
from .stats import Profile, SplitMoments
from .structure import LayerPlan, LayerStats

FEW_IMAGES = 64


@dataclass(frozen=True)
class CompressionPlan:
    """What :func:`apply_` will do to a model: nothing has been changed yet."""

    config: Config
    layers: dict[str, LayerPlan] | dict[str, Chain]
    targets: surgery.Targets
    others: dict[str, Cost]
    warnings: tuple[str, ...] = ()
    machine: Machine | None = None

    def report(self) -> Report:
        """What the compressed model will hold, and the errors predicted on calibration data kept apart."""
        if self.config.method in baselines.METHODS:
            rows = [baselines.row(layer, self.targets.names) for layer in self.layers.values()]
        else:
            rows = [_layer_row(layer, self.targets, layer.choice.cost) for layer in self.layers.values()]
        return self._report(rows)

    def _report(self, rows: list[LayerReport], refitted: Iterable[str] = ()) -> Report:
        """Of these rows and those of convolutions that cannot be compressed."""
        untouched = [
            _row(name, self.targets, cost, cost, self.machine, reason=self.targets.skipped[name])
            for name, cost in self.others.items()
        ]
        return Report(tuple(rows + untouched), self.warnings, self.machine and self.machine.error, tuple(refitted))


def compress_(model: nn.Module, calibration: Iterable, config: Config, *, show_progress: bool = False) -> Report:
    """Compresses a trained model in place.

    Args:
        model: any module; its ``nn.Conv2d`` are replaced by :class:`HSCConv2d`, :class:`SqueezedConv2d` or, for the
            methods "tucker2" and "spatial_svd", chains of plain ones. Sequential reconstruction also refits its last
            ``nn.Linear``; all else stays.
        calibration: re-iterable batches (tensor, tuple or list whose first item is the input, or dict of keywords);
            a few hundred unlabelled samples of one size.
        config: what to do and how far.
        show_progress: bars on standard error.

    Returns:
        The report; the model is changed only when all has gone well.

    Raises:
        TypeError, ValueError: for what cannot be used, with got and expected.
    """
    return apply_(model, plan(model, calibration, config, show_progress=show_progress), calibration, show_progress)


def plan(model: nn.Module, calibration: Iterable, config: Config, *, show_progress: bool = False) -> CompressionPlan:
    """Chooses regions, clusters and ranks of every layer; arguments as for :func:`compress_`."""
    if not isinstance(config, Config):
        raise TypeError(f"config: got {type(config).__name__}, expected hscc.Config")
    if config.method == "svd":
        config = replace(
            config,
            region_method="none",
            clusters=1,
            reconstruction="independent",
            search=False,
            sharing=False,
            sensitivity=False,
        )
    targets = surgery.find(model, config.skip)
    profiles = calibrate.profile(model, calibration, targets.layers, show_progress)
    for name in [name for name in targets.layers if name not in profiles]:
        targets.layers.pop(name)
        targets.skipped[name] = "did not run on the calibration data"
    machine, seconds = _times(model, calibration, targets, config, show_progress)
    others = _others(model, calibration, targets, seconds)
    if config.method in baselines.METHODS:
        seen = baselines.look(model, calibration, profiles, config, show_progress)
        limit = _limit(_sum(layer.dense for layer in seen.values()), _sum(others.values()), config)
        return CompressionPlan(config, baselines.with_ranks(seen, limit, config.budget.energy), targets, others)
    stats = _look(model, calibration, targets.layers, profiles, config, show_progress)
    if machine:
        stats = {name: replace(layer, machine=machine, dense_seconds=seconds[name]) for name, layer in stats.items()}
    images = max((layer.profile.images // layer.profile.calls for layer in stats.values()), default=0)
    found = _options(model, calibration, stats, config, show_progress)
    layers = _choose(stats, found, _sum(others.values()), config)
    return CompressionPlan(config, layers, targets, others, _warnings(images), machine)


def apply_(
    model: nn.Module, plan: CompressionPlan, calibration: Iterable | None = None, show_progress: bool = False
) -> Report:
    """Fits the planned factors and swaps them into ``model``.

    The data are needed once more by sequential reconstruction, squeezed layers, Tucker-2 and spatial SVD.
    """
    config = plan.config
    baseline, head = config.method in baselines.METHODS, {}
    sequential = config.reconstruction == "sequential" and config.factorization == "activation"
    reads = sequential or baseline or any(layer.structure.squeeze for layer in plan.layers.values())
    if reads and calibration is None:
        wanted = "the data for sequential reconstruction, squeezed layers and baselines"
        raise ValueError(f"calibration: got None, expected {wanted}")
    if baseline:
        fitted, rows = baselines.fit(model, plan.layers, plan.targets.names, calibration, show_progress)
    else:
        student, fitted = copy.deepcopy(model), {}
        rectified = rectifiers.find(model, calibration, plan.layers) if reads else {}
        for name, layer in plan.layers.items():
            if layer.stays_dense:
                continue
            if sequential or layer.structure.squeeze:
                rectifier = rectified.get(name)
                fitted[name] = reconstruct.fit(model, student, calibration, layer, rectifier, config, show_progress)
            else:
                fitted[name] = fitting.fit(layer, layer.stats.moments.total(), config)
            if sequential:
                surgery.swap_(student, plan.targets.names[name], fitted[name])
        if sequential and fitted:
            head = heads.refit(model, student, calibration, config.skip, show_progress)
        costs = {name: plan.layers[name].cost(module.plan) for name, module in fitted.items()}
        rows = [_layer_row(layer, plan.targets, costs.get(name)) for name, layer in plan.layers.items()]
    for name, module in fitted.items():
        surgery.swap_(model, plan.targets.names[name], module)
    model.load_state_dict(head, strict=False)
    surgery.channels_last_(model)
    return plan._report(rows, head)


def _times(model, calibration, targets: surgery.Targets, config: Config, show: bool):
    """(the machine's speed, seconds of all calls of each convolution), where they count."""
    if not config.timed or not targets.layers:
        return None, {}
    names = [*targets.layers, *targets.skipped]
    convs = {name: model.get_submodule(name) for name in names}
    sizes = calibrate.input_sizes(model, calibration, convs)
    machine = Machine.measured(next(iter(convs.values())).weight.detach(), config.latency_batch, show)
    return machine, machine.dense_seconds({name: (conv, sizes[name]) for name, conv in convs.items()}, show)


def _others(model, calibration, targets: surgery.Targets, seconds: Mapping[str, float]) -> dict[str, Cost]:
    """What the convolutions that cannot be compressed cost."""
    convs = {name: model.get_submodule(name) for name in targets.skipped}
    flops = calibrate.count_flops(model, calibration, convs)
    numbers = {name: sum(p.numel() for p in conv.parameters()) for name, conv in convs.items()}
    return {
        name: Cost(flops[name], numbers[name], numbers[name] * conv.weight.element_size(), seconds.get(name, 0))
        for name, conv in convs.items()
    }


def _look(model, calibration, layers: Mapping[str, nn.Conv2d], profiles, config: Config, show: bool):
    """Statistics of every layer, in the order in which they run."""
    cells, empty = {}, {}
    for name, profile in profiles.items():
        cells[name] = regions.split(profile, config.region_method, config.regions, config.seed)
        empty[name] = _halves(profile, cells[name], False)
    moments, inputs = calibrate.moments(model, calibration, {name: layers[name] for name in profiles}, empty, show)
    watched = {name: layers[name] for name in profiles}
    weighted = config.sensitivity and config.factorization == "activation" and config.budget.energy is None
    if weighted and watched:
        metrics = sensitivity.measure(model, calibration, watched, cells, config.seed, show)
    else:
        metrics = {name: sensitivity.plain(layer, cells[name]) for name, layer in watched.items()}
    return {
        name: LayerStats(name, layers[name], profile, cells[name], moments[name], *metrics[name], inputs[name])
        for name, profile in profiles.items()
    }


def _options(model, calibration, stats: Mapping[str, LayerStats], config: Config, show: bool):
    """What each layer may become, with and without squeeze."""
    several = {name: structure.structures(layer, config) for name, layer in stats.items()}
    listed = track(list(stats.items()), "structures", show)
    found = {name: structure.options(layer, several[name], config) for name, layer in listed}
    if not (config.squeeze and config.search and config.factorization == "activation") or config.budget.energy:
        return found
    squeezes = {
        name: squeeze.candidates(layer.conv, layer.inputs, layer.everything[1].root) for name, layer in stats.items()
    }
    for group in squeeze.groups(squeezes, {name: layer.cells.count for name, layer in stats.items()}):
        chosen = {name: squeezes[name] for name in group}
        empty = {name: [_halves(stats[name].profile, stats[name].cells, True) for _ in chosen[name]] for name in group}
        squeeze.moments(model, calibration, {name: stats[name].conv for name in group}, chosen, empty, show)
        for name in track(group, "squeezed structures", show):
            for own, behind in zip(chosen[name], empty[name], strict=True):
                squeezed = [replace(plain, squeeze=own) for plain in several[name]]
                found[name] += structure.options(stats[name], squeezed, config, behind)
    return found


def _choose(stats: Mapping[str, LayerStats], found, fixed: Cost, config: Config):
    """The structure and ranks of every layer within the budget."""
    if config.budget.energy is not None:
        chosen = {name: (0, option[0][1].keeping(config.budget.energy)) for name, option in found.items()}
    else:
        dense = _sum(layer.dense for layer in stats.values())
        options = {name: [option for _, option in several] for name, several in found.items()}
        chosen = search.choose(options, dense, _limit(dense, fixed, config)) if options else {}
    return {name: LayerPlan(stats[name], found[name][index][0], choice) for name, (index, choice) in chosen.items()}


def _halves(profile: Profile, cells: RegionMap, paired: bool) -> SplitMoments:
    return SplitMoments(tuple(calibrate.empty_moments(profile, cells, paired) for _ in range(2)))


def _limit(dense: Cost, fixed: Cost, config: Config) -> Cost:
    """What the budget leaves to the layers, whose dense cost is given; ``fixed`` is what cannot be compressed.

    Whatever is limited, no more numbers are stored than in the dense model.
    """
    left = []
    for name, all_dense, stays in zip(REDUCTIONS, dense, fixed, strict=True):
        reduction = getattr(config.budget, name) or (1 if name == "params" else None)
        left.append(math.inf if reduction is None else (all_dense + stays) / reduction - stays)
        if left[-1] < 0:
            raise ValueError(
                f"budget: got {name}={reduction:g}, expected at most {(all_dense + stays) / stays:.2f}: the layers "
                "that cannot be compressed need the rest"
            )
    return Cost(*left)


def _sum(costs: Iterable[Cost]) -> Cost:
    return functools.reduce(Cost.plus, costs, Cost(0, 0))


def _warnings(images: int) -> tuple[str, ...]:
    if images >= FEW_IMAGES:
        return ()
    return (f"{images} calibration images: got fewer than {FEW_IMAGES}, so regions and ranks rest on little",)


def _layer_row(layer: LayerPlan, targets: surgery.Targets, cost: Cost | None) -> LayerReport:
    """Of a layer that was looked at; ``cost`` is what its factors take, if it has any."""
    name, dense, machine = layer.stats.name, layer.stats.dense, layer.stats.machine
    if not layer.stays_dense:
        return _row(
            name,
            targets,
            dense,
            cost,
            machine,
            ranks=layer.region_ranks,
            rows=layer.choice.pool or 0,
            squeeze=layer.structure.squeeze.conv.in_channels if layer.structure.squeeze else 0,
            region_sizes=tuple(layer.structure.regions.sizes()),
            error=layer.error,
        )
    reason = "factors would not be cheaper under this budget"
    if (slower := layer.choice.slower) is not None:
        reason = f"factors would take {1e3 * slower:.3f} ms, the dense layer {1e3 * dense.seconds:.3f} ms"
    return _row(name, targets, dense, dense, machine, reason=f"stays dense: {reason}")


def _row(name: str, targets: surgery.Targets, dense: Cost, cost: Cost, machine: Machine | None, **rest) -> LayerReport:
    return LayerReport(
        name=name,
        dense_flops=dense.flops,
        flops=int(cost.flops),
        dense_parameters=dense.parameters,
        parameters=int(cost.parameters),
        dense_bytes=dense.bytes,
        bytes=int(cost.bytes),
        dense_ms=1e3 * dense.seconds if machine else None,
        ms=1e3 * cost.seconds if machine else None,
        shared_with=targets.names[name][1:],
        **rest,
    )
