"""What is shown of each compressed layer: regions, ranks, correlations of its channels, and the energy that is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hscc_kernels.layout import DENSE

from ...nn.conv2d import HSCConv2d
from ...nn.projection import SqueezedConv2d

IMAGES, AT_A_TIME = 32, 8  # that are looked at, and in one pass
CHANNELS, SAMPLES = 128, 1024  # of a layer's matrix at most, and of a pass
BEHIND = (nn.BatchNorm2d, nn.ReLU)


@dataclass(frozen=True)
class Layer:
    """A compressed convolution: ``labels`` (Ho, Wo) region of each position, ``ranks`` of each region's clusters (None
    is dense) and their ``totals``; ``squeeze`` is the number of channels that it reads, 0 where it reads all.

    ``order`` are the channels of its matrix, cluster after cluster, at most 128 of all its ``channels``; clusters part
    at ``bounds`` (shares of its side). They are those of ``region``: the largest with several clusters, or of all.
    Of a layer of several ``groups`` all is of the first.
    """

    name: str
    labels: np.ndarray
    ranks: tuple[tuple[int | None, ...], ...]
    totals: tuple[int, ...]
    squeeze: int
    region: int
    channels: int
    order: np.ndarray
    bounds: tuple[float, ...]
    groups: int = 1

    @classmethod
    def of(cls, name: str, module: HSCConv2d | SqueezedConv2d) -> Layer:
        plan, wide = module.plan, getattr(module, "wide", None)
        labels = plan.labels().cpu().numpy()[:, :: wide.block if wide else 1]
        items = sorted(plan.work_items(), key=lambda item: item.region)[: labels.max() + 1 if wide else None]
        clusters = [plan.cluster_items(item) for item in items]
        ranks = tuple(tuple(None if c.u_start == DENSE else c.rank for c in own) for own in clusters)
        region = max(range(len(items)), key=lambda r: (len(clusters[r]) > 1, items[r].position_count))
        channels = plan.channels[region].cpu().numpy()
        picked = np.unique(np.linspace(0, len(channels) - 1, min(len(channels), CHANNELS)).round().astype(int))
        starts = (c.channel_start for c in clusters[region][1:])
        return cls(
            name=name,
            labels=labels,
            ranks=ranks,
            totals=tuple(sum(c.rank for c in own) for own in clusters),
            squeeze=module.conv.in_channels if isinstance(module, SqueezedConv2d) else 0,
            region=region,
            channels=len(channels),
            order=channels[picked],
            bounds=tuple(float(np.searchsorted(picked, start) / len(picked)) for start in starts),
            groups=wide.groups if wide else 1,
        )


@dataclass(frozen=True)
class Seen:
    """Of a layer on calibration images: ``correlation`` (n, n) of the dense outputs of its ``order`` in its ``region``;
    ``kept`` share of the variance of the outputs in each region that the compressed network gives, and ``all_kept``."""

    correlation: np.ndarray
    kept: tuple[float, ...]
    all_kept: float


def compressed(model: nn.Module) -> dict[str, HSCConv2d | SqueezedConv2d]:
    """The layers by their first names."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, (HSCConv2d, SqueezedConv2d))}
    inner = {id(module.conv) for module in found.values() if isinstance(module, SqueezedConv2d)}
    return {name: module for name, module in found.items() if id(module) not in inner}


def look(dense: nn.Module, model: nn.Module, layers: Mapping[str, Layer], batches: Sequence[Tensor]) -> dict[str, Seen]:
    """Runs both models over the first 32 images; layers that no pass reaches, or at other sizes only, are left out.

    Outputs are compared behind the batch norm and the ReLU that follow a layer, as fitting counts on them, in both
    whole networks: what earlier layers have lost counts, too. Parts of a layer of another form are left out.
    """
    there = dict(dense.named_modules())
    layers = {name: layer for name, layer in layers.items() if name in there}
    sums = {name: _Sums(layer) for name, layer in layers.items()}
    device = next(dense.parameters()).device
    images = torch.cat([batch[:IMAGES] for batch in batches[:IMAGES]])[:IMAGES].to(device)
    with torch.inference_mode():
        ends = _ends(dense, layers, images[:1])
        back = {end: name for name, end in ends.items()}
        for part in images.split(AT_A_TIME):
            outputs: dict[str, Tensor] = {}

            def after_dense(name: str, call: int, y: Tensor, outputs=outputs) -> None:
                if name in sums:
                    sums[name].sample(y)
                if (layer := back.get((name, call))) is not None:
                    outputs[layer] = y.clone()  # what follows may write into it

            def after(name: str, call: int, y: Tensor, outputs=outputs) -> None:
                if (layer := back.get((name, call))) is not None:
                    sums[layer].compare(outputs.pop(layer), y)

            with _watched(dense, {*layers, *(name for name, _ in back)}, after_dense):
                dense(part)
            with _watched(model, {name for name, _ in back}, after):
                model(part)
    return {name: own.seen() for name, own in sums.items() if own.samples and own.count}


class _Sums:
    """What is summed over the passes for one layer."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        flat = torch.from_numpy(layer.labels).flatten()
        self.member = nn.functional.one_hot(flat, len(layer.ranks)).double()  # (positions, regions)
        self.positions = (flat == layer.region).nonzero().squeeze(1)
        self.order = torch.from_numpy(layer.order).long()
        self.samples: list[Tensor] = []
        self.count, self.first, self.second, self.missed = 0, 0, 0, 0

    def sample(self, y: Tensor) -> None:
        if tuple(y.shape[-2:]) == self.layer.labels.shape:
            chosen = y.flatten(2).cpu()[:, self.order][:, :, self.positions].movedim(1, 0).flatten(1).float()
            self.samples.append(chosen[:, :: max(chosen.shape[1] // SAMPLES, 1)])

    def compare(self, y: Tensor, other: Tensor) -> None:
        if tuple(y.shape[-2:]) == self.layer.labels.shape and y.shape == other.shape:
            y, other = (t[:, : self.layer.channels].flatten(2).cpu().double() for t in (y, other))
            self.count += len(y)
            self.first += y.sum(0) @ self.member
            self.second += y.square().sum(0) @ self.member
            self.missed += (y - other).square().sum((0, 1)) @ self.member

    def seen(self) -> Seen:
        values = torch.cat(self.samples, 1)
        values = nn.functional.normalize(values - values.mean(1, keepdim=True), dim=1)
        spread = (self.second - self.first.square() / (self.count * self.member.sum(0))).sum(0)
        kept = 1 - self.missed / spread
        return Seen((values @ values.T).numpy(), tuple(kept.tolist()), float(1 - self.missed.sum() / spread.sum()))


def _ends(model: nn.Module, layers: Mapping[str, Layer], x: Tensor) -> dict[str, tuple[str, int]]:
    """Of each layer's first call the module whose output is compared, and which of that module's calls it is."""
    owners: dict[int, str] = {}
    alive: list[Tensor] = []  # or another tensor would get the same id
    ends: dict[str, tuple[str, int]] = {}

    def after(name: str, call: int, y: Tensor, x: Tensor) -> None:
        owner = name if name in layers and name not in ends else owners.get(id(x))
        if owner is not None:
            owners[id(y)] = owner
            alive.append(y)
            ends[owner] = name, call

    names = {name for name, module in model.named_modules() if name in layers or isinstance(module, BEHIND)}
    with _watched(model, names, after, inputs=True):
        model(x)
    return ends


@contextmanager
def _watched(model: nn.Module, names: set[str], after: Callable, inputs: bool = False) -> Iterator[None]:
    """In the block ``after(name, call, y)``, or ``after(name, call, y, x)``, follows each call of these modules."""
    calls: Counter[str] = Counter()

    def hook(name: str) -> Callable:
        def call(module: nn.Module, args: tuple, y: Tensor) -> None:
            number, calls[name] = calls[name], calls[name] + 1
            if isinstance(y, Tensor) and args:
                after(name, number, y, *args[:1] * inputs)

        return call

    handles = [model.get_submodule(name).register_forward_hook(hook(name), prepend=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
