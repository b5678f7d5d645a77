"""The thread that serves one device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from torch import Tensor

from .batching import Clock, Queue, Request, unavailable
from .errors import Failed, Foreign
from .metrics import Metrics
from .runner import Runner
from .signature import Answer

log = logging.getLogger("hscc.serving")


class Worker(threading.Thread):
    """Warms its runner up, which settles ``started``, then answers batches until the queue is closed and empty.

    A batch that raises is run again request by request, so that one bad request fails alone. ``died`` is called when
    the thread ends of an error that is no request's.
    """

    def __init__(self, runner: Runner, queue: Queue, metrics: Metrics, died: Callable[[], None]) -> None:
        super().__init__(name=f"hscc-{runner.device}", daemon=True)
        self.started: Future = Future()
        self.broken = False
        self._runner, self._queue, self._metrics, self._died = runner, queue, metrics, died

    def run(self) -> None:
        try:
            self._runner.warm()
        except BaseException as error:
            self.started.set_exception(error)
            return
        self.started.set_result(None)
        batch: list[Request] = []
        try:
            while batch := self._queue.take():
                self._serve(batch)
                batch = []  # or its images would stay until the next one
        except BaseException:
            log.exception("the worker of %s has died", self._runner.device)
            self.broken = True
            for request in batch:
                if not request.future.done():
                    request.future.set_exception(unavailable("broken"))
            self._died()

    def _serve(self, batch: list[Request]) -> None:
        started = Clock()
        for request in batch:
            self._metrics.queue.observe(started - request.arrived)
        try:
            self._answer(batch)
        except Exception as error:
            if not self._runner.healthy():
                raise
            if len(batch) == 1:
                self._fail(batch[0], error)
                return
            self._metrics.retried.inc()
            for request in batch:
                try:
                    self._answer([request])
                except Exception as own:
                    if not self._runner.healthy():
                        raise
                    self._fail(request, own)

    def _answer(self, batch: list[Request]) -> None:
        started = Clock()
        outputs, scores = self._runner([request.x for request in batch])
        self._metrics.compute.observe(Clock() - started)
        for images in self._runner.passes(sum(request.images for request in batch)):
            self._metrics.batch.observe(images)
        flagged = None if scores is None else self._runner.guarded.flags(scores)
        start = 0
        for request in batch:
            rows = slice(start, start + request.images)
            own = [None if one is None else one[rows] for one in (scores, flagged)]
            self._settle(request, Answer({name: one[rows] for name, one in outputs.items()}, *own))
            start = rows.stop

    def _settle(self, request: Request, answer: Answer) -> None:
        foreign = 0 if answer.flagged is None else int(answer.flagged.sum())
        self._metrics.flagged.inc(foreign)
        if foreign and self._runner.guarded.policy == "reject":
            request.future.set_exception(Foreign(_told(answer.flagged)))
            return
        self._metrics.images.inc(request.images)
        request.future.set_result(answer)

    def _fail(self, request: Request, error: Exception) -> None:
        log.error("the model failed on a request", exc_info=error)
        failed = Failed("the model failed on this request")
        failed.__cause__ = error
        request.future.set_exception(failed)


def _told(flagged: Tensor) -> str:
    which = flagged.nonzero()[:, 0].tolist()
    named = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
    return f"images: got {len(which)} unlike those the model knows (index {named}), expected images of its kind"
