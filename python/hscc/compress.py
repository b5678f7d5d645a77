"""The way from a dense model to a compressed one: plan (what each layer becomes), then apply (fit and swap)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from .baselines import plan as baselines
from .baselines.chain import Chain
from .config import Config
from .fit import network
from .nn import surgery
from .observe import calibrate
from .observe.data import Calibration
from .report import LayerReport, Report
from .search import allocate, options, stats
from .search.cost import Cost, remaining, row, total
from .search.latency import Machine
from .search.plan import LayerPlan

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

    def _report(self, rows: list[LayerReport], refitted: Iterable[str] = ()) -> Report:
        """Of these rows and those of convolutions that cannot be compressed."""
        untouched = [
            row(name, cost, cost, self.machine is not None, reason=self.targets.skipped[name])
            for name, cost in self.others.items()
        ]
        named = tuple(replace(r, shared_with=self.targets.names[r.name][1:]) for r in rows + untouched)
        return Report(named, self.warnings, self.machine and self.machine.error, tuple(refitted))


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
    config = config.resolved
    data = Calibration.of(model, calibration, config.seed, show_progress)
    targets = surgery.find(model, config.skip)
    profiles = calibrate.profile(model, data, targets.layers)
    for name in [name for name in targets.layers if name not in profiles]:
        targets.layers.pop(name)
        targets.skipped[name] = "did not run on the calibration data"
    machine, seconds, others = _costs(model, data, targets, config)
    if config.method in baselines.METHODS:
        seen = baselines.look(model, data, profiles, config)
        most = remaining(total(layer.dense for layer in seen.values()), total(others.values()), config.budget)
        return CompressionPlan(config, baselines.with_ranks(seen, most, config.budget.energy), targets, others)
    looked = stats.look(model, data, targets.layers, profiles, config)
    if machine:
        looked = {name: replace(layer, machine=machine, dense_seconds=seconds[name]) for name, layer in looked.items()}
    found = options.find(model, data, looked, config)
    chosen = allocate.within_budget(
        {name: [option for _, option in several] for name, several in found.items()},
        total(layer.dense for layer in looked.values()),
        total(others.values()),
        config.budget,
    )
    layers = {name: LayerPlan(looked[name], found[name][index][0], choice) for name, (index, choice) in chosen.items()}
    images = max((layer.profile.images // layer.profile.calls for layer in looked.values()), default=0)
    return CompressionPlan(config, layers, targets, others, _warnings(images), machine)


def apply_(
    model: nn.Module, plan: CompressionPlan, calibration: Iterable | None = None, show_progress: bool = False
) -> Report:
    """Fits the planned factors and swaps them into ``model``.

    The data are needed once more by sequential reconstruction, squeezed layers, Tucker-2 and spatial SVD.
    """
    if plan.reads and calibration is None:
        wanted = "the data for sequential reconstruction, squeezed layers and baselines"
        raise ValueError(f"calibration: got None, expected {wanted}")
    data, head = Calibration.of(model, calibration, plan.config.seed, show_progress), {}
    if plan.config.method in baselines.METHODS:
        fitted, rows = baselines.fit(model, plan.layers, data)
    else:
        fitted, head = network.fit(model, plan.layers, plan.targets.names, data, plan.config)
        costs = {name: plan.layers[name].cost(module.plan) for name, module in fitted.items()}
        rows = [layer.row(costs.get(name, layer.stats.dense)) for name, layer in plan.layers.items()]
    for name, module in fitted.items():
        surgery.swap_(model, plan.targets.names[name], module)
    model.load_state_dict(head, strict=False)
    surgery.channels_last_(model)
    return plan._report(rows, head)


def _costs(
    model: nn.Module, data: Calibration, targets: surgery.Targets, config: Config
) -> tuple[Machine | None, Mapping[str, float], dict[str, Cost]]:
    """(the machine's speed and the seconds of all calls of each convolution, where they count; what the convolutions
    that cannot be compressed cost)."""
    timed = config.timed and targets.layers
    convs = {name: model.get_submodule(name) for name in (*(targets.layers if timed else ()), *targets.skipped)}
    calls = calibrate.calls(model, data, convs)
    machine, seconds = None, dict.fromkeys(convs, 0.0)
    if timed:
        machine = Machine.measured(next(iter(convs.values())).weight.detach(), config.latency_batch, data.show)
        sizes = {name: (conv, [call.x for call in calls[name]]) for name, conv in convs.items()}
        seconds = machine.dense_seconds(sizes, data.show)
    others = {}
    for name in targets.skipped:
        numbers = sum(p.numel() for p in convs[name].parameters())
        size = numbers * convs[name].weight.element_size()
        others[name] = Cost(sum(call.flops(convs[name]) for call in calls[name]), numbers, size, seconds[name])
    return machine, seconds, others


def _warnings(images: int) -> tuple[str, ...]:
    if images >= FEW_IMAGES:
        return ()
    return (f"{images} calibration images: got fewer than {FEW_IMAGES}, so regions and ranks rest on little",)
