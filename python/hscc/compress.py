"""The way from a dense model to a compressed one: plan (what each layer becomes), then apply (fit and swap)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hscc_kernels import ClusterFactors, PackedPlan, RegionFactors

from . import calibrate, clusters, factors, ranks, regions, surgery
from .config import Config
from .factors import Spectrum
from .layer import HSCConv2d, dense_bias, weight_rows
from .regions import RegionMap
from .report import LayerReport, Report
from .stats import Profile


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one convolution: its region map, the channel clusters of each region, and their ranks.

    ``spectra`` and ``ranks`` are by region, then cluster; a rank of None is a dense cluster.
    """

    name: str
    conv: nn.Conv2d
    profile: Profile
    regions: RegionMap
    clusters: tuple[tuple[Tensor, ...], ...]
    spectra: tuple[tuple[Spectrum, ...], ...]
    ranks: tuple[tuple[int | None, ...], ...] = ()

    @property
    def patch(self) -> int:
        return self.conv.weight[0].numel()

    @property
    def dense_flops(self) -> int:
        return 2 * self.profile.calls * self.regions.labels.numel() * self.patch * self.conv.out_channels

    @property
    def stays_dense(self) -> bool:
        return all(rank is None for region in self.ranks for rank in region)

    def groups(self) -> list[ranks.Group]:
        """One a region and cluster, gains as shares of the layer's output energy."""
        sizes = self.regions.sizes()
        energy = sum(n * sum(s.energy for s in region) for n, region in zip(sizes, self.spectra, strict=True))
        groups = []
        for size, region in zip(sizes, self.spectra, strict=True):
            for spectrum in region:
                scale = size / max(energy, 1e-30)
                count = len(spectrum.target_mean)
                flops = 2 * self.profile.calls * size
                rest = max(spectrum.energy - spectrum.gains.sum().item(), 0.0)
                groups.append(
                    ranks.Group(
                        spectrum.gains * scale, rest * scale, flops * (self.patch + count), flops * self.patch * count
                    )
                )
        return groups

    def with_ranks(self, flat: list[int]) -> LayerPlan:
        """This plan with ranks in the order of :meth:`groups`."""
        chosen = iter(None if rank == ranks.DENSE else rank for rank in flat)
        return replace(self, ranks=tuple(tuple(next(chosen) for _ in region) for region in self.clusters))

    def error(self) -> float:
        """Share of the output energy that the chosen ranks miss."""
        flat = [rank for region in self.ranks for rank in region]
        kept = sum(
            group.gains[:rank].sum().item() if rank is not None else group.gains.sum().item() + group.rest
            for group, rank in zip(self.groups(), flat, strict=True)
        )
        return max(1 - kept, 0.0) if any(s.energy for region in self.spectra for s in region) else 0.0


@dataclass(frozen=True)
class CompressionPlan:
    """What :func:`apply_` will do to a model: nothing has been changed yet."""

    config: Config
    layers: dict[str, LayerPlan]
    targets: surgery.Targets
    other_flops: dict[str, int]


def compress_(model: nn.Module, calibration: Iterable, config: Config, *, show_progress: bool = False) -> Report:
    """Compresses a trained model in place.

    Args:
        model: any module; its ``nn.Conv2d`` are replaced by :class:`HSCConv2d`, all else stays.
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
    targets = surgery.find(model, config.skip)
    profiles = calibrate.profile(model, calibration, targets.layers, show_progress)
    for name in [name for name in targets.layers if name not in profiles]:
        targets.layers.pop(name)
        targets.skipped[name] = "did not run on the calibration data"
    skipped = {name: model.get_submodule(name) for name in targets.skipped}
    other_flops = calibrate.count_flops(model, calibration, skipped)
    maps, empty = {}, {}
    for name in targets.layers:
        maps[name] = regions.split(profiles[name], config.region_method, config.regions, config.seed)
        empty[name] = calibrate.empty_moments(profiles[name], maps[name])
    moments = calibrate.moments(model, calibration, targets.layers, empty, show_progress)
    layers = {
        name: _layer_plan(name, targets.layers[name], profiles[name], maps[name], moments[name], config)
        for name in profiles
    }
    layers = _with_ranks(layers, sum(other_flops.values()), config)
    return CompressionPlan(config, layers, targets, other_flops)


def apply_(
    model: nn.Module, plan: CompressionPlan, calibration: Iterable | None = None, show_progress: bool = False
) -> Report:
    """Fits the planned factors and swaps them into ``model``; sequential reconstruction needs the data once more."""
    sequential = plan.config.reconstruction == "sequential" and plan.config.factorization == "activation"
    if sequential and calibration is None:
        raise ValueError("calibration: got None, expected the data for sequential reconstruction")
    student = copy.deepcopy(model) if sequential else None
    fitted: dict[str, HSCConv2d] = {}
    reports = []
    for name, layer in plan.layers.items():
        if not layer.stays_dense:
            if sequential and fitted:
                layer = _refit(layer, model, student, calibration, plan.config, show_progress)
            fitted[name] = _factored(layer)
            if sequential:
                surgery.swap_(student, plan.targets.names[name], fitted[name])
        reports.append(_report(layer, fitted.get(name), plan.targets))
    for name, module in fitted.items():
        surgery.swap_(model, plan.targets.names[name], module)
    surgery.channels_last_(model)
    reports += [_untouched(model, name, flops, plan.targets) for name, flops in plan.other_flops.items()]
    return Report(tuple(reports))


def _layer_plan(name, conv, profile, region_map, moments, config: Config) -> LayerPlan:
    weight, bias = weight_rows(conv).double(), dense_bias(conv).double()
    parts, spectra = [], []
    for index in range(region_map.count):
        region = moments.region(index)
        split = clusters.split(region.covariance, config.clusters, config.seed)
        parts.append(tuple(part.to(weight.device) for part in split))
        spectra.append(
            tuple(
                factors.from_weight(weight, bias, channels)
                if config.factorization == "weight"
                else factors.from_activations(region, channels)
                for channels in parts[-1]
            )
        )
    return LayerPlan(name, conv, profile, region_map, tuple(parts), tuple(spectra))


def _with_ranks(layers: dict[str, LayerPlan], other_flops: int, config: Config) -> dict[str, LayerPlan]:
    groups = {name: layer.groups() for name, layer in layers.items()}
    flat = [group for part in groups.values() for group in part]
    if config.budget.energy is not None:
        chosen = ranks.by_energy(flat, config.budget.energy, config.rank_multiple)
    else:
        dense = sum(layer.dense_flops for layer in layers.values()) + other_flops
        left = dense / config.budget.flops - other_flops
        if left < 0:
            raise ValueError(
                f"budget: got {config.budget.flops}x fewer FLOPs, expected at most {dense / other_flops:.2f}x: "
                "the layers that cannot be compressed need the rest"
            )
        chosen = ranks.by_cost(flat, left, config.rank_multiple)
    chosen = iter(chosen)
    return {name: layers[name].with_ranks([next(chosen) for _ in part]) for name, part in groups.items()}


def _refit(layer: LayerPlan, dense, student, calibration, config: Config, show: bool) -> LayerPlan:
    """The same structure, with spectra fitted to the dense outputs from the student's inputs."""
    empty = calibrate.empty_moments(layer.profile, layer.regions)
    moments = calibrate.paired_moments(dense, student, calibration, layer.name, layer.profile.calls, empty, show)
    spectra = tuple(
        tuple(
            factors.from_regression(moments.region(index), channels, spectrum.energy, config.ridge)
            for channels, spectrum in zip(split, old, strict=True)
        )
        for index, (split, old) in enumerate(zip(layer.clusters, layer.spectra, strict=True))
    )
    return replace(layer, spectra=spectra)


def _factored(layer: LayerPlan) -> HSCConv2d:
    """Cuts the spectra at the chosen ranks; every region gets rows of its own."""
    weight, bias = weight_rows(layer.conv).double(), dense_bias(layer.conv).double()
    pool, biases, parts, start = [], [], [], 0
    for split, spectra, chosen in zip(layer.clusters, layer.spectra, layer.ranks, strict=True):
        region_bias, region_clusters, row = torch.empty_like(bias), [], 0
        for channels, spectrum, rank in zip(split, spectra, chosen, strict=True):
            rows = weight[channels] if rank is None else spectrum.a[:rank] @ weight
            u = None if rank is None else spectrum.u[:, :rank]
            region_bias[channels] = bias[channels] if rank is None else spectrum.bias(bias, rank)
            region_clusters.append(ClusterFactors(channels, row, u))
            pool.append(rows)
            row += len(rows)
        parts.append(RegionFactors(torch.arange(start, start + row), tuple(region_clusters)))
        biases.append(region_bias)
        start += row
    return HSCConv2d.from_conv(layer.conv, parts, torch.cat(pool), torch.stack(biases), layer.regions.labels)


def _report(layer: LayerPlan, fitted: HSCConv2d | None, targets: surgery.Targets) -> LayerReport:
    dense_parameters = sum(p.numel() for p in layer.conv.parameters())
    common = dict(
        name=layer.name,
        dense_flops=layer.dense_flops,
        dense_parameters=dense_parameters,
        shared_with=targets.names[layer.name][1:],
    )
    if fitted is None:
        reason = "stays dense: factors would not be cheaper under this budget"
        return LayerReport(flops=layer.dense_flops, parameters=dense_parameters, reason=reason, **common)
    packed: PackedPlan = fitted.plan
    return LayerReport(
        flops=packed.flops() * layer.profile.calls,
        parameters=packed.parameters(),
        ranks=layer.ranks,
        region_sizes=tuple(layer.regions.sizes()),
        error=layer.error(),
        **common,
    )


def _untouched(model: nn.Module, name: str, flops: int, targets: surgery.Targets) -> LayerReport:
    """The row of a convolution that cannot be compressed."""
    parameters = sum(p.numel() for p in model.get_submodule(name).parameters())
    shared = targets.names[name][1:]
    return LayerReport(name, flops, flops, parameters, parameters, reason=targets.skipped[name], shared_with=shared)
