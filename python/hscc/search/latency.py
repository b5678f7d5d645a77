"""How long a layer takes on this machine: seconds = sum of rate x work, the rates measured once and kept on disk.

Work adds up over the ranks, clusters and regions of a layer, so latency is one more price in the search. The rates are
fitted to times of invented layers; dense convolutions are timed as they are. Every time is a ratio to a reference call
beside it, so that a busy machine slows both alike and times of different days compare. All are kept in
``latency-<key>.json`` under ``HSCC_CACHE_DIR`` (default ``~/.cache/hscc``); without that file they are measured again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import operator
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hscc_kernels.dispatch import resolve

from .._version import __version__
from ..observe import distributed
from . import invented, stopwatch
from .work import Work

_log = logging.getLogger(__name__)
_FIT = 2  # changes with what the rates are fitted to
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
                groups, works, calls = invented.layers(like, batch)
                times = stopwatch.ratios(calls, like, "measuring this machine", show)
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
                calls = [
                    stopwatch.call(stopwatch.twin(conv), conv, size, self.key["batch"])
                    for conv, size in map(wanted.get, missing)
                ]
                times = stopwatch.ratios(calls, wanted[missing[0]][0].weight, "timing dense layers", show)
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
                    calls += [
                        stopwatch.call(module, conv, size, self.key["batch"]) for module in (stopwatch.twin(conv), new)
                    ]
                    counts.append(count)
            times = stopwatch.ratios(calls, pairs[0][0].weight, "timing dense and new layers", show)
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
