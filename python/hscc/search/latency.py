"""How long a layer takes on this machine: seconds = sum of rate x work, the rates measured once and kept on disk.

Work adds up over the ranks, clusters and regions of a layer, so latency is one more price in the search. The rates are
fitted to times of the public op on invented layers; dense convolutions are timed as they are. Every time is a ratio to
a reference call beside it, so that a busy machine slows both alike and times of different days compare. All are kept in
``latency-<key>.json`` under ``HSCC_CACHE_DIR`` (default ``~/.cache/hscc``); without that file they are measured again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import operator
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hscc_kernels import ClusterFactors, Geometry, PackedPlan, RegionFactors, project
from hscc_kernels.dispatch import resolve

from .._version import __version__
from ..nn.conv2d import HSCConv2d
from ..nn.padding import SameConv2d
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


class _Times(NamedTuple):
    """How many reference calls take as long as each call; the quickest one's seconds, and their median over it."""

    ratios: list[float]
    reference: float
    spread: float


_FIT = 2  # changes with what the rates are fitted to
_SHAPES = (
    *((3, 64, 7, 2, 56), (3, 32, 3, 1, 96), (16, 32, 3, 1, 56), (32, 64, 3, 1, 56), (64, 64, 3, 1, 56)),
    *((64, 192, 5, 1, 27), (96, 96, 3, 1, 28), (128, 256, 3, 2, 14), (192, 384, 3, 1, 13), (384, 256, 3, 1, 13)),
    *((64, 64, 3, 1, 112), (128, 128, 3, 1, 112)),  # maps that no cache of a core's own holds
    *((512, 512, 3, 1, 7), (64, 256, 1, 1, 28), (256, 64, 1, 1, 28), (1024, 256, 1, 1, 14), (256, 512, 1, 2, 14)),
)
_KINDS = ((1, 1, 3.0), (1, 1, 30.0), (4, 1, 5.0), (4, 2, 16.0), (8, 2, 8.0), (16, 1, 4.0))
_NEAR_CACHES = 2**23  # bytes, more than a core's own
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS, _MOST_AGAIN = 8.0, 3, 40, 10
_MANY_SLICES = 0.03  # seconds; a process has a core for some 3 ms at a time where others wait
_TOO_BUSY = 1.5  # spread; seen: 1.07 with a thread beside six processes on two cores, 1.9 to 25 with two threads


@dataclass(frozen=True)
class Machine:
    """What calls with ``key["batch"]`` images take here.

    Args:
        key: all that the times depend on: machine, backend, threads, dtype, batch, versions.
        rates: seconds of each unit of work.
        error: median relative error of predictions for shapes that the rates were not fitted to.
        dense: seconds of a call of a dense convolution, by what it is and its input's size.
        reference: seconds of the call that all times are ratios to.
        spread: its median over its quickest, when the rates were measured.
    """

    key: dict[str, object]
    rates: Work
    error: float
    dense: dict[str, float]
    reference: float
    spread: float = 1.0

    @property
    def busy(self) -> bool:
        """Whether other work may have made the times false."""
        return self.spread > _TOO_BUSY

    @classmethod
    def measured(cls, like: Tensor, batch: int, show: bool) -> Machine:
        """For layers with weights like that tensor; from disk, or measured now and kept. The first rank's on all."""
        key = _key(like, batch)
        try:
            data = json.loads(_file(key).read_text())
            found = cls(
                data["key"], Work(**data["rates"]), data["error"], data["dense"], data["reference"], data["spread"]
            )
        except (OSError, ValueError, KeyError, TypeError):  # none yet, damaged, or without a reference
            found = None
        found = distributed.gather(found)[0]
        if found is None:
            with distributed.together(), torch.random.fork_rng(devices=[]):
                groups, works, calls = _layers(like, batch)
                times = _ratios(calls, like, "measuring this machine", show)
                rates, error = _fit(groups, works, [times.reference * ratio for ratio in times.ratios])
            found = distributed.gather(cls(key, rates, error, {}, times.reference, times.spread))[0]
            found.keep(found.spread)
        return found

    def seconds(self, work: Work) -> float:
        """Of one call of a layer that does this work for each image."""
        return sum(rate * amount for rate, amount in zip(self.rates, work, strict=True))

    def dense_seconds(
        self, layers: Mapping[str, tuple[nn.Module, Sequence[Sequence[int]]]], show: bool
    ) -> dict[str, float]:
        """Of all calls of each convolution in one pass; ``layers`` has the sizes (C, ...) of the inputs of each."""
        wanted = {_text(conv, size): (conv, size) for conv, sizes in layers.values() for size in sizes}
        known = dict(self.dense)
        if missing := [text for text in wanted if text not in known]:  # the same on all ranks
            with distributed.together(), torch.random.fork_rng(devices=[]):
                calls = [_call(_twin(conv), conv, size, self.key["batch"]) for conv, size in map(wanted.get, missing)]
                times = _ratios(calls, wanted[missing[0]][0].weight, "timing dense layers", show)
            times = distributed.gather(times)[0]
            known.update(zip(missing, [self.reference * ratio for ratio in times.ratios], strict=True))
            replace(self, dense=known).keep(times.spread)
        return {name: sum(known[_text(conv, size)] for size in sizes) for name, (conv, sizes) in layers.items()}

    def compare(
        self, pairs: Sequence[tuple[nn.Module, nn.Module, Sequence[Sequence[int]]]], show: bool
    ) -> tuple[float, float]:
        """Seconds of all calls together, of dense convolutions and of the modules in their places, timed in turn.

        Args:
            pairs: of each replaced layer the convolution, the module that takes its place, and the sizes (C, ...) of
                the inputs of its calls in one pass.
            show: a bar on standard error.
        """
        if not any(sizes for _, _, sizes in pairs):
            return 0.0, 0.0
        calls, counts = [], []
        with distributed.together(), torch.random.fork_rng(devices=[]):
            for conv, new, sizes in pairs:
                for size, count in Counter(map(tuple, sizes)).items():
                    calls += [_call(module, conv, size, self.key["batch"]) for module in (_twin(conv), new)]
                    counts.append(count)
            times = _ratios(calls, pairs[0][0].weight, "timing dense and new layers", show)
        ratios = distributed.gather(times)[0].ratios
        dense, new = (self.reference * sum(map(operator.mul, counts, ratios[which::2])) for which in (0, 1))
        return dense, new

    def keep(self, spread: float) -> None:
        """Writes the file as a whole: an interrupt leaves the old one or none; without a place to write, nothing.

        Nor are times kept whose reference spread too far, for on a quieter machine they are others.
        """
        path, spread = _file(self.key), max(self.spread, spread)
        if spread > _TOO_BUSY:
            _log.warning(
                "this machine is busy: a call takes %.1f times its quickest, so its times are not kept", spread
            )
            return
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
        "fit": _FIT,
    }


def _file(key: Mapping[str, object]) -> Path:
    base = os.environ.get("HSCC_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "hscc")
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return Path(base).expanduser() / f"latency-{digest[:16]}.json"


def _text(conv: nn.Module, size: Sequence[int]) -> str:
    return f"{conv}, input {[*size]}"


def _layers(like: Tensor, batch: int) -> tuple[list[int], list[Work], list[Callable[[], object]]]:
    """Of each invented layer the number of its shape, its work, and a call."""
    groups, works, calls = [], [], []
    for group, shape in enumerate(map(_Shape._make, _SHAPES)):
        x = _images((shape.channels, *[shape.stride * shape.side] * 2), batch, like)
        for kind in map(_Kind._make, _KINDS):
            plan = _plan(shape, kind).to(like.device, like.dtype)
            bias = torch.zeros(kind.regions, shape.outputs).to(like)
            groups.append(group)
            works.append(Work.of(plan))
            layer = HSCConv2d(plan, bias).requires_grad_(False)
            calls.append(functools.partial(layer.forward, x))  # as networks call it: its Python is cold there, too
        matrix = torch.randn(shape.channels, shape.outputs).to(like)
        groups.append(group)
        works.append(Work.of_pointwise(x[0, 0].numel(), shape.channels, shape.outputs))
        calls.append(lambda x=x, matrix=matrix: project(x, matrix))
    return groups, works, calls


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


def _twin(conv: nn.Module) -> nn.Module:
    """A convolution as it is in a compressed model: channels last where it is two-dimensional.

    Made from its options and numbers: a deep copy fails where weights are computed (weight_norm).
    """
    own = {kind.__module__ for kind in (nn.Conv2d, nn.Linear, SameConv2d)}
    kind = next(kind for kind in type(conv).__mro__ if kind.__module__ in own)
    further = set() if getattr(conv, "transposed", False) else {"output_padding"}
    options = {name: getattr(conv, name) for name in kind.__constants__ if name not in further}
    twin = kind(**options, bias=conv.bias is not None, device="meta")
    layout = torch.channels_last if conv.weight.ndim == 4 else torch.contiguous_format
    twin.weight = nn.Parameter(conv.weight.detach().to(memory_format=layout), requires_grad=False)
    if conv.bias is not None:
        twin.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    return twin


def _call(module: nn.Module, conv: nn.Module, size: Sequence[int], batch: int) -> Callable[[], object]:
    """Of that module with images for the convolution."""
    x = _images(size, batch, conv.weight)
    return functools.partial(module.forward, x.contiguous() if isinstance(conv, nn.Linear) else x)  # without hooks


def _reference(like: Tensor) -> Callable[[], object]:
    """A dense convolution of 0.5 ms on a core: shorter than a slice, longer than what a call costs, and small."""
    conv = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(like)
    return _call(_twin(conv), conv, (64, 28, 28), 1)


def _images(size: Sequence[int], batch: int, like: Tensor) -> Tensor:
    x = torch.randn(batch, *size).relu_().to(like)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _clock(like: Tensor) -> Callable[[], float]:
    """On a CPU this thread's processor time, which interrupts are no part of; on a GPU, or where it ticks, the wall's.

    With several threads too: beside an interrupted one this thread spins for some ms at most, and then sleeps.
    """
    fine = len({time.thread_time() for _ in range(100)}) > 10  # some systems count in ticks of 10 ms
    return time.thread_time if fine and not like.is_cuda else time.perf_counter


def _ratios(calls: Sequence[Callable[[], object]], like: Tensor, description: str, show: bool) -> _Times:
    """Of each call to a reference call for tensors like that one.

    They take turns, and the quickest of both are compared, as other work only adds time: even the quickest tenth was
    interrupted with two threads beside two processes. On the wall clock a reference is repeated for about as long as
    the call takes, up to some slices: whatever lasts longer than a slice of a busy core is interrupted each time, and
    both are as much. (Ratios round by round would scatter: of two within one slice, one is interrupted.) Before each
    call the near caches are filled with something else, as other layers do in a network.
    """
    reference, clock, others = _reference(like), _clock(like), torch.ones(_NEAR_CACHES // 4)
    longest = _MANY_SLICES if clock is time.perf_counter else 0.0

    def timed(call: Callable[[], object], count: int = 1) -> float:
        start = clock()
        for _ in range(count):
            call()
            if like.is_cuda:
                torch.cuda.synchronize()
        return (clock() - start) / count

    times: list[list[float]] = [[] for _ in calls]
    paces: list[list[float]] = [[] for _ in calls]  # of a reference call, beside each

    def beside(call: Callable[[], object], found: list[float], pace: list[float], again: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(again):
            others.add_(1)
            found.append(timed(call))
            reference()  # its data back into the caches
            pace.append(timed(reference, max(round(min(min(found), longest) / shortest), 1)))
        return time.perf_counter() - start

    with torch.inference_mode():
        for call in (reference, *calls):
            call()
        shortest = min(timed(reference) for _ in range(10))
        start = time.perf_counter()
        took = [*map(beside, calls, times, paces)]
        share = sum(took) / len(took)  # a call takes at least that of a turn, as short ones scatter most
        again = [min(max(int(share / seconds), 1), _MOST_AGAIN) for seconds in took]
        rounds = int(_SECONDS / sum(map(operator.mul, took, again)))
        for _ in track(range(min(max(rounds, _LEAST_ROUNDS), _MOST_ROUNDS)), description, show):
            for each in zip(calls, times, paces, again, strict=True):
                beside(*each)
            if time.perf_counter() - start > 2 * _SECONDS:
                break
    shortest = min(map(min, paces))
    spread = statistics.median(seconds for pace in paces for seconds in pace) / shortest
    return _Times([min(found) / min(pace) for found, pace in zip(times, paces, strict=True)], shortest, spread)


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
