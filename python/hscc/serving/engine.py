"""Answers requests in micro-batches; free of any web framework."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .batching import Clock, Queue, Request, unavailable
from .errors import BadRequest, Refused, TimedOut
from .guarding import Guarded
from .limits import Limits
from .metrics import Metrics
from .models import Served
from .runner import Runner
from .signature import Answer, TensorSpec
from .worker import Worker

__all__ = ["Answer", "Engine", "Limits", "TensorSpec"]
DEFAULT = Limits()


class Engine:
    """Answers requests in micro-batches, by one worker thread a device; thread-safe.

    Args:
        model: what is served, ``Served.load(path)`` or ``Served.of(module, example)``.
        limits: on batches, the queue and requests.
        guard: scores every image, and what follows from it.
        devices: e.g. ``("cuda:0", "cuda:1")``; by default all GPUs or else the CPU, and for a package its own.

    Attributes:
        model, limits, guard: as given; ``inputs`` and ``outputs`` are the model's.
        metrics: for ``hscc.serving.metrics.page``.

    Raises:
        ValueError: devices or a guard that do not fit the model.
        ImportError: no prometheus_client.
    """

    def __init__(
        self,
        model: Served,
        limits: Limits = DEFAULT,
        *,
        guard: Guarded | None = None,
        devices: Sequence[str | torch.device] | None = None,
    ) -> None:
        if guard is not None:
            guard.check(model)
        self.model, self.limits, self.guard = model, limits, guard
        self._queue = Queue(limits)
        self.metrics = Metrics(model.name, limits.sizes, lambda: self._queue.images)
        self._workers = [
            Worker(Runner(model, device, guard, limits), self._queue, self.metrics, self._worker_died)
            for device in _devices(model, devices)
        ]
        self._state, self._changing = "not started", threading.Lock()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.model.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.model.outputs

    @property
    def ready(self) -> bool:
        """True from the end of :meth:`start` to the beginning of a drain."""
        return self._state == "ready"

    @property
    def live(self) -> bool:
        """False only when a worker has died of an error that is no request's: restart the process."""
        return not any(worker.broken for worker in self._workers)

    def start(self) -> None:
        """Places the model on its devices and runs every batch size once; blocks until ``ready``.

        Raises RuntimeError when it was started before, and what the model raises when it cannot run.
        """
        with self._changing:
            if self._state != "not started":
                raise RuntimeError(f"engine: got start() while it is {self._state}, expected one start")
            self._state = "starting"
        for worker in self._workers:
            worker.start()
        try:
            for worker in self._workers:
                worker.started.result()
        except BaseException:
            self.stop(0)
            raise
        self._become("ready", after=("starting",))

    async def infer(self, x: Tensor, *, deadline: float | None = None) -> Answer:
        """The model's answer to x (n, C, H, W), 1 <= n <= ``limits.images``; not computed if cancelled in the queue.

        Do not write to ``x`` until the answer is there.

        Args:
            deadline: seconds from now; ``limits.seconds`` when None, and at most.

        Raises:
            BadRequest, Foreign, Overloaded, Unavailable, TimedOut, Failed: see :mod:`hscc.serving.errors`.
        """
        with self._counted():
            request = self._submit(x, deadline)
            try:
                return await asyncio.wait_for(asyncio.wrap_future(request.future), request.deadline - Clock())
            except asyncio.TimeoutError as error:
                raise _late(error) from None

    def infer_sync(self, x: Tensor, *, deadline: float | None = None) -> Answer:
        """:meth:`infer` for callers in threads."""
        with self._counted():
            request = self._submit(x, deadline)
            try:
                return request.future.result(request.deadline - Clock())
            except (TimeoutError, concurrent.futures.TimeoutError) as error:
                request.future.cancel()
                raise _late(error) from None

    async def drain(self, timeout: float = 30.0) -> None:
        """Refuses new requests, finishes the old ones within ``timeout`` seconds, then stops; may be repeated."""
        await asyncio.to_thread(self.stop, timeout)

    def stop(self, timeout: float = 30.0) -> None:
        """:meth:`drain` for callers in threads. What still waits after the time is answered with Unavailable."""
        self._become("draining", after=("not started", "starting", "ready"))
        self._queue.close("draining")
        end = Clock() + timeout
        for worker in self._workers:
            if worker.ident is not None:
                worker.join(max(0.0, end - Clock()))
        self._queue.clear("stopped")
        self._become("stopped", after=("draining",))

    def _submit(self, x: Tensor, deadline: float | None) -> Request:
        if self._state != "ready":
            raise unavailable(self._state)
        (spec,) = self.inputs
        spec.check(x)
        if not 1 <= len(x) <= self.limits.images:
            raise BadRequest(f"{spec.name}: got {len(x)} images, expected 1 to {self.limits.images} a request")
        if min(x.shape[1:]) < 1 or x.shape[2] * x.shape[3] > self.limits.pixels:
            got = f"{x.shape[2]} x {x.shape[3]} pixels"
            raise BadRequest(f"{spec.name}: got {got}, expected 1 to {self.limits.pixels} an image")
        if deadline is not None and not deadline > 0:
            raise TimedOut(f"deadline: got {deadline:g} seconds, expected more than 0")
        seconds = self.limits.seconds if deadline is None else min(deadline, self.limits.seconds)
        request = Request(x.detach(), Clock() + seconds)
        self._queue.put(request)
        return request

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Each request ends in one status."""
        try:
            yield
        except Refused as error:
            self.metrics.ended(error.kind)
            raise
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            self.metrics.ended("cancelled")
            raise
        except BaseException:
            self.metrics.ended("failed")
            raise
        self.metrics.ended("ok")

    def _become(self, state: str, after: tuple[str, ...]) -> None:
        with self._changing:
            if self._state in after:
                self._state = state
                self.metrics.ready.set(self.ready)

    def _worker_died(self) -> None:
        if all(worker.broken for worker in self._workers):
            self._become("broken", after=("starting", "ready"))
            self._queue.clear("broken")


def _devices(model: Served, wanted: Sequence[str | torch.device] | None) -> list[torch.device]:
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    usual = gpus or ["cpu"]
    if model.device is not None:
        usual = ["cuda:0"] if model.device == "cuda" else [model.device]
    devices = [torch.device(one) for one in (usual if wanted is None else wanted)]
    if not devices or len(set(devices)) < len(devices):
        raise ValueError(f"devices: got {[*map(str, devices)]}, expected each once, and one at least")
    if model.device is not None and [one.type for one in devices] != [model.device]:
        got, own = [*map(str, devices)], f"one {model.device} device"
        raise ValueError(f"devices: got {got}, expected {own}, as the {model.kind} was made for it")
    return devices


def _late(error: BaseException) -> TimedOut:
    return error if isinstance(error, TimedOut) else TimedOut("no answer within the request's time")
