"""How long a layer takes on this machine: seconds = sum of rate x work, the rates measured once and kept on disk.

Work adds up over the ranks, clusters and regions of a layer, so latency is one more price in the search. The rates are
fitted to times of the public op on invented layers; dense convolutions are timed as they are. Both are kept in
``latency-<key>.json`` under ``HSCC_CACHE_DIR`` (default ``~/.cache/hscc``); without that file they are measured again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors, lowrank_conv2d, project
from hscc_kernels.dispatch import resolve

from .._version import __version__
from ..observe import distributed
from ..progress import track
from .work import Work

_log = logging.getLogger(__name__)


class _Shape(NamedTuple):
    """Of an invented layer: channels in and out, square kernel, stride, height and width of the output."""

    channels: int
    outputs: int
    kernel: int
    stride: int
    side: int

    @property
    def geometry(self) -> Geometry:
        return Geometry((self.kernel,) * 2, (self.stride,) * 2, (self.kernel // 2,) * 2)


class _Kind(NamedTuple):
    """Of its plan: how many regions, clusters in each, and times fewer FLOPs."""

    regions: int
    clusters: int
    fewer: float


_SHAPES = (
    *((3, 64, 7, 2, 56), (3, 32, 3, 1, 96), (16, 32, 3, 1, 56), (32, 64, 3, 1, 56), (64, 64, 3, 1, 56)),
    *((64, 192, 5, 1, 27), (96, 96, 3, 1, 28), (128, 256, 3, 2, 14), (192, 384, 3, 1, 13), (384, 256, 3, 1, 13)),
    *((512, 512, 3, 1, 7), (64, 256, 1, 1, 28), (256, 64, 1, 1, 28), (1024, 256, 1, 1, 14), (256, 512, 1, 2, 14)),
)
_KINDS = ((1, 1, 3.0), (1, 1, 30.0), (4, 1, 5.0), (4, 2, 16.0), (8, 2, 8.0), (16, 1, 4.0))
_NEAR_CACHES = 2**23  # bytes, more than a core's own
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 8.0, 3, 40


@dataclass(frozen=True)
class Machine:
    """What calls with ``key["batch"]`` images take here.

    Args:
        key: all that the times depend on: machine, backend, threads, dtype, batch, versions.
        rates: seconds of each unit of work.
        error: median relative error of predictions for shapes that the rates were not fitted to.
        dense: seconds of a call of a dense convolution, by what it is and its input's size.
    """

    key: dict[str, object]
    rates: Work
    error: float
    dense: dict[str, float]

    @classmethod
    def measured(cls, like: Tensor, batch: int, show: bool) -> Machine:
        """For layers with weights like that tensor; from disk, or measured now and kept. The first rank's on all."""
        key = _key(like, batch)
        try:
            data = json.loads(_file(key).read_text())
            found = cls(data["key"], Work(**data["rates"]), data["error"], data["dense"])
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged
            found = None
        found = distributed.gather(found)[0]
        if found is None:
            with distributed.together(), torch.random.fork_rng(devices=[]):
                rates, error = _fit(*_time_layers(like, batch, show))
            found = distributed.gather(cls(key, rates, error, {}))[0]
            found.keep()
        return found

    def seconds(self, work: Work) -> float:
        """Of one call of a layer that does this work for each image."""
        return sum(rate * amount for rate, amount in zip(self.rates, work, strict=True))

    def dense_seconds(
        self, layers: Mapping[str, tuple[nn.Module, Sequence[Sequence[int]]]], show: bool
    ) -> dict[str, float]:
        """Of all calls of each convolution in one pass; ``layers`` has the sizes (C, ...) of the inputs of each."""
        wanted = {_text(conv, size): (conv, size) for conv, sizes in layers.values() for size in sizes}
        missing = [text for text in wanted if text not in self.dense]  # the same on all ranks
        with distributed.together(), torch.random.fork_rng(devices=[]):
            calls = [_dense_call(*wanted[text], self.key["batch"]) for text in missing]
            times = _quick_seconds(calls, "timing dense layers", show)
        self.dense.update(distributed.gather(dict(zip(missing, times, strict=True)))[0])
        if missing:
            self.keep()
        return {name: sum(self.dense[_text(conv, size)] for size in sizes) for name, (conv, sizes) in layers.items()}

    def keep(self) -> None:
        """Writes the file as a whole: an interrupt leaves the old one or none; without a place to write, nothing."""
        path = _file(self.key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
                json.dump({**asdict(self), "rates": self.rates._asdict()}, file, indent=1)
            os.replace(file.name, path)
        except OSError as error:
            _log.warning("%s is not writable, so these times last for this process only: %s", path, error)


def processor() -> str:
    """The CPU's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _key(like: Tensor, batch: int) -> dict[str, object]:
    return {
        "machine": torch.cuda.get_device_name(like.device) if like.is_cuda else processor(),
        "backend": str(resolve(like)),
        "build": torch.ops.hscc._build_info() if hasattr(torch.ops.hscc, "_build_info") else None,
        "threads": torch.get_num_threads(),
        "dtype": str(like.dtype),
        "batch": batch,
        "torch": torch.__version__,
        "hscc": __version__,
    }


def _file(key: Mapping[str, object]) -> Path:
    base = os.environ.get("HSCC_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "hscc")
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return Path(base).expanduser() / f"latency-{digest[:16]}.json"


def _text(conv: nn.Module, size: Sequence[int]) -> str:
    return f"{conv}, input {[*size]}"


def _time_layers(like: Tensor, batch: int, show: bool) -> tuple[list[int], list[Work], list[float]]:
    """Of each invented layer the number of its shape, its work, and the seconds of a call."""
    groups, works, calls = [], [], []
    for group, shape in enumerate(map(_Shape._make, _SHAPES)):
        x = _images((shape.channels, *[shape.stride * shape.side] * 2), batch, like)
        for kind in map(_Kind._make, _KINDS):
            plan = _plan(shape, kind).to(like.device, like.dtype)
            bias = torch.zeros(kind.regions, shape.outputs).to(like)
            groups.append(group)
            works.append(Work.of(plan))
            calls.append(lambda x=x, plan=plan, bias=bias: lowrank_conv2d(x, plan, bias))
        matrix = torch.randn(shape.channels, shape.outputs).to(like)
        groups.append(group)
        works.append(Work.of_pointwise(x[0, 0].numel(), shape.channels, shape.outputs))
        calls.append(lambda x=x, matrix=matrix: project(x, matrix))
    return groups, works, _quick_seconds(calls, "measuring this machine", show)


def _plan(shape: _Shape, kind: _Kind) -> PackedPlan:
    """Random factors; equal regions are level sets of a smooth field, as clustering gives them."""
    (channels, outputs, kernel, _, side), (regions, clusters, fewer) = shape, kind
    across = torch.linspace(0, 1, side)
    field = torch.sin(5 * across[:, None] + 1) * torch.cos(4 * across[None]) + 1e-3 * across
    labels = (field.flatten().argsort().argsort() * regions // side**2).view(side, side)
    patch = channels * kernel * kernel
    rank = max(round(patch * outputs / fewer / (clusters * patch + outputs)), 1)
    parts = []
    for region in range(regions):
        split = [torch.arange(k, outputs, clusters) for k in range(clusters)]
        factors = (ClusterFactors(c, k * rank, torch.randn(len(c), rank)) for k, c in enumerate(split))
        rows = torch.arange(clusters * rank) + region * clusters * rank
        parts.append(RegionFactors(rows, tuple(factors)))
    return PackedPlan.pack(torch.randn(regions * clusters * rank, patch), parts, labels, shape.geometry)


def _dense_call(conv: nn.Module, size: Sequence[int], batch: int) -> Callable[[], object]:
    """A call of a convolution as it is in a compressed model: channels last where it is two-dimensional."""
    layout = torch.channels_last if conv.weight.ndim == 4 else torch.contiguous_format
    conv, x = copy.deepcopy(conv).to(memory_format=layout), _images(size, batch, conv.weight)
    return lambda: conv(x)


def _images(size: Sequence[int], batch: int, like: Tensor) -> Tensor:
    x = torch.randn(batch, *size).relu_().to(like)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _quick_seconds(calls: Sequence[Callable[[], object]], description: str, show: bool) -> list[float]:
    """Of calls that take turns, so that drift hits all alike: the quickest tenth, for other work only adds time.

    A median would be that of other processes too, wherever a call is longer than its slice of a busy core. Before each
    call the near caches are filled with something else, as other layers do in a network.
    """
    others = torch.ones(_NEAR_CACHES // 4)

    def timed(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    times: list[list[float]] = [[] for _ in calls]
    with torch.inference_mode():
        for call in calls:
            call()
        once = sum(map(timed, calls))
        rounds = min(max(int(_SECONDS / max(3 * once, 1e-9)), _LEAST_ROUNDS), _MOST_ROUNDS) if calls else 0
        for _ in track(range(rounds), description, show and rounds > 0):
            for call, found in zip(calls, times, strict=True):
                for _ in range(2):
                    others.add_(1)
                    found.append(timed(call))
    return [statistics.quantiles(found, n=10, method="inclusive")[0] for found in times]


def _fit(groups: Sequence[int], works: Sequence[Work], seconds: Sequence[float]) -> tuple[Work, float]:
    """Rates of least relative error that are not negative, and their median error on shapes left out one by one."""
    from scipy.optimize import nnls

    share = np.array(works, dtype=np.float64) / np.array(seconds)[:, None]
    share[:, -1] = 0  # indices take no time
    scale = share.max(0).clip(1e-30)
    share /= scale

    def fit(rows: np.ndarray) -> np.ndarray:
        return nnls(share[rows], np.ones(rows.sum()))[0]

    groups, errors = np.array(groups), np.empty(len(share))
    for group in np.unique(groups):
        out = groups == group
        errors[out] = share[out] @ fit(~out) - 1
    rates = fit(np.ones(len(share), dtype=bool)) / scale
    return Work(*rates.tolist()), float(np.median(np.abs(errors)))
