"""The way from a dense model to a compressed one: plan (what each layer becomes), then apply (fit and swap)."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from . import baselines, calibrate, fitting, regions, search, sensitivity, squeeze, structure, surgery
from .chains import Chain
from .config import Config
from .layer import HSCConv2d
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
    other_flops: dict[str, int]
    warnings: tuple[str, ...] = ()

    def report(self) -> Report:
        """What the compressed model will hold, and the errors predicted on calibration data kept apart."""
        if self.config.method in baselines.METHODS:
            rows = [baselines.row(layer, self.targets.names) for layer in self.layers.values()]
        else:
            rows = [_planned(layer, self.targets) for layer in self.layers.values()]
        return Report(tuple(rows + self._untouched()), self.warnings)

    def _untouched(self) -> list[LayerReport]:
        """The rows of convolutions that cannot be compressed."""
        rows = []
        for name, flops in self.other_flops.items():
            parameters = self.targets.parameters[name]
            shared = self.targets.names[name][1:]
            reason = self.targets.skipped[name]
            rows.append(LayerReport(name, flops, flops, parameters, parameters, reason=reason, shared_with=shared))
        return rows


def compress_(model: nn.Module, calibration: Iterable, config: Config, *, show_progress: bool = False) -> Report:
    """Compresses a trained model in place.

    Args:
        model: any module; its ``nn.Conv2d`` are replaced by :class:`HSCConv2d` (``nn.Sequential`` for the methods
            "tucker2" and "spatial_svd"), all else stays.
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
    skipped = {name: model.get_submodule(name) for name in targets.skipped}
    targets.parameters.update({name: sum(p.numel() for p in conv.parameters()) for name, conv in skipped.items()})
    other = calibrate.count_flops(model, calibration, skipped)
    if config.method in baselines.METHODS:
        seen = baselines.look(model, calibration, profiles, config, show_progress)
        limit = _limit(_sum(layer.dense for layer in seen.values()), _fixed(targets, other), config)
        return CompressionPlan(config, baselines.with_ranks(seen, limit, config.budget.energy), targets, other)
    stats = _look(model, calibration, targets.layers, profiles, config, show_progress)
    images = max((layer.profile.images // layer.profile.calls for layer in stats.values()), default=0)
    found = _options(model, calibration, stats, config, show_progress)
    return CompressionPlan(config, _choose(stats, found, targets, other, config), targets, other, _warnings(images))


def apply_(
    model: nn.Module, plan: CompressionPlan, calibration: Iterable | None = None, show_progress: bool = False
) -> Report:
    """Fits the planned factors and swaps them into ``model``; sequential reconstruction needs the data once more."""
    config = plan.config
    baseline = config.method in baselines.METHODS
    sequential = config.reconstruction == "sequential" and config.factorization == "activation"
    if (sequential or baseline) and calibration is None:
        raise ValueError("calibration: got None, expected the data for sequential reconstruction and for baselines")
    if baseline:
        fitted, rows = baselines.fit(model, plan.layers, plan.targets.names, calibration, show_progress)
    else:
        student = copy.deepcopy(model)
        fitted = {}
        for name, layer in plan.layers.items():
            if layer.stays_dense:
                continue
            stats, names, squeezed = layer.stats, plan.targets.names[name], layer.structure.squeeze
            if squeezed:
                surgery.swap_(student, names, squeezed.module())
            if squeezed or (sequential and fitted):
                moments = calibrate.paired_moments(
                    model,
                    student,
                    calibration,
                    name,
                    stats.profile.calls,
                    calibrate.empty_moments(stats.profile, stats.cells),
                    show_progress,
                )
                fitted[name] = fitting.fit(layer, moments, config, config.ridge)
            else:
                fitted[name] = fitting.fit(layer, stats.moments.total(), config, None)
            surgery.swap_(student, names, fitted[name] if sequential else copy.deepcopy(stats.conv))
        rows = [_done(layer, fitted.get(name), plan.targets) for name, layer in plan.layers.items()]
    for name, module in fitted.items():
        surgery.swap_(model, plan.targets.names[name], module)
    surgery.channels_last_(model)
    return Report(tuple(rows + plan._untouched()), plan.warnings)


def _look(model, calibration, layers: Mapping[str, nn.Conv2d], profiles, config: Config, show: bool):
    """Statistics of every layer, in the order in which they run."""
    cells, empty = {}, {}
    for name, profile in profiles.items():
        cells[name] = regions.split(profile, config.region_method, config.regions, config.seed)
        empty[name] = _halves(profile, cells[name])
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
    found = {name: structure.options(layer, several[name], config) for name, layer in stats.items()}
    if not (config.squeeze and config.search and config.factorization == "activation") or config.budget.energy:
        return found
    squeezes = {
        name: squeeze.candidates(layer.conv, layer.inputs, layer.everything[1].root, layer.profile.calls)
        for name, layer in stats.items()
    }
    for group in squeeze.groups(squeezes, {name: layer.cells.count for name, layer in stats.items()}):
        chosen = {name: squeezes[name] for name in group}
        empty = {name: [_halves(stats[name].profile, stats[name].cells) for _ in chosen[name]] for name in group}
        squeeze.moments(model, calibration, {name: stats[name].conv for name in group}, chosen, empty, show)
        for name in group:
            for own, behind in zip(chosen[name], empty[name], strict=True):
                squeezed = [replace(plain, squeeze=own) for plain in several[name]]
                found[name] += structure.options(stats[name], squeezed, config, behind)
    return found


def _choose(stats: Mapping[str, LayerStats], found, targets: surgery.Targets, other: dict[str, int], config: Config):
    """The structure and ranks of every layer within the budget."""
    if config.budget.energy is not None:
        chosen = {name: (0, option[0][1].keeping(config.budget.energy)) for name, option in found.items()}
    else:
        dense = _sum(layer.dense for layer in stats.values())
        options = {name: [option for _, option in several] for name, several in found.items()}
        chosen = search.choose(options, dense, _limit(dense, _fixed(targets, other), config)) if options else {}
    return {name: LayerPlan(stats[name], found[name][index][0], choice) for name, (index, choice) in chosen.items()}


def _halves(profile: Profile, cells: RegionMap) -> SplitMoments:
    return SplitMoments(tuple(calibrate.empty_moments(profile, cells) for _ in range(2)))


def _fixed(targets: surgery.Targets, other: Mapping[str, int]) -> Cost:
    return Cost(sum(other.values()), sum(targets.parameters.values()))


def _limit(dense: Cost, fixed: Cost, config: Config) -> Cost:
    """What the budget leaves to the layers, whose dense cost is given; ``fixed`` is what cannot be compressed.

    A FLOPs budget alone never stores more than the dense model.
    """
    left = []
    for name, words, all_dense, stays in zip(("flops", "params"), ("FLOPs", "parameters"), dense, fixed, strict=True):
        reduction = getattr(config.budget, name) or (1 if name == "params" else None)
        left.append(math.inf if reduction is None else (all_dense + stays) / reduction - stays)
        if left[-1] < 0:
            raise ValueError(
                f"budget: got {reduction:g}x fewer {words}, expected at most {(all_dense + stays) / stays:.2f}x: "
                "the layers that cannot be compressed need the rest"
            )
    return Cost(*left)


def _sum(costs: Iterable[Cost]) -> Cost:
    return functools.reduce(Cost.plus, costs, Cost(0, 0))


def _warnings(images: int) -> tuple[str, ...]:
    if images >= FEW_IMAGES:
        return ()
    return (f"{images} calibration images: got fewer than {FEW_IMAGES}, so regions and ranks rest on little",)


def _planned(layer: LayerPlan, targets: surgery.Targets) -> LayerReport:
    stats = layer.stats
    return _row(layer, targets, int(layer.choice.cost.flops), int(layer.choice.cost.parameters), stats.dense)


def _done(layer: LayerPlan, fitted: HSCConv2d | None, targets: surgery.Targets) -> LayerReport:
    dense = layer.stats.dense
    if fitted is None:
        return _row(layer, targets, dense.flops, dense.parameters, dense)
    squeezed = layer.structure.squeeze
    flops = fitted.plan.flops() * layer.stats.profile.calls + (squeezed.cost.flops if squeezed else 0)
    return _row(layer, targets, flops, sum(p.numel() for p in fitted.parameters()), dense)


def _row(layer: LayerPlan, targets: surgery.Targets, flops: int, parameters: int, dense: Cost) -> LayerReport:
    name, stays = layer.stats.name, layer.stays_dense
    return LayerReport(
        name=name,
        dense_flops=dense.flops,
        flops=dense.flops if stays else flops,
        dense_parameters=dense.parameters,
        parameters=dense.parameters if stays else parameters,
        ranks=() if stays else layer.region_ranks,
        rows=0 if stays else layer.choice.pool or 0,
        squeeze=layer.structure.squeeze.conv.in_channels if layer.structure.squeeze else 0,
        region_sizes=() if stays else tuple(layer.structure.regions.sizes()),
        error=0.0 if stays else layer.error,
        reason="stays dense: factors would not be cheaper under this budget" if stays else None,
        shared_with=targets.names[name][1:],
    )
