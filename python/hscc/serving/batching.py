"""The queue: requests wait in it, bounded, until a worker takes a batch of one shape."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from .errors import Overloaded, TimedOut, Unavailable
from .limits import Limits

Clock = time.monotonic


@dataclass(eq=False)
class Request:
    """Images (n, C, H, W) of one caller; times are ``time.monotonic()``'s."""

    x: Tensor
    deadline: float
    arrived: float = field(default_factory=Clock)
    future: Future = field(default_factory=Future)
    waiting: bool = False  # in the queue, and counted there

    @property
    def images(self) -> int:
        return len(self.x)


class Queue:
    """A first-in first-out queue for each image shape (C, H, W); for any number of callers and workers."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._changed = threading.Condition()
        self._buckets: dict[tuple[int, ...], deque[Request]] = {}
        self._closed: str | None = None
        self.images = 0

    def put(self, request: Request) -> None:
        """Raises Overloaded at once when it is full, and Unavailable when it is closed."""
        with self._changed:
            if self._closed is not None:
                raise unavailable(self._closed)
            if self.images + request.images > self._limits.queue:
                got = f"{request.images} images beside {self.images} that wait"
                raise Overloaded(f"queue: got {got}, expected at most {self._limits.queue} together; try again later")
            request.waiting = True
            self.images += request.images
            self._buckets.setdefault(tuple(request.x.shape[1:]), deque()).append(request)
            self._changed.notify()
        weak = weakref.ref(request)  # or each request would be a cycle, and its images wait for the collector
        request.future.add_done_callback(lambda _: self._leave(weak()))  # one that is cancelled gives its place back

    def take(self) -> list[Request]:
        """Blocks until a batch is full or its oldest request has waited ``delay_ms``; empty when closed and empty.

        Its futures run: nobody can cancel them any more.
        """
        while True:
            with self._changed:
                taken = self._wait()
            now, batch = Clock(), []
            for request in taken:
                if not request.future.set_running_or_notify_cancel():
                    continue
                if now >= request.deadline:  # nobody waits for it any more
                    request.future.set_exception(TimedOut("the request waited for longer than its time"))
                else:
                    batch.append(request)
            if batch or not taken:
                return batch

    def close(self, why: str) -> None:
        """From now on ``put`` raises Unavailable, as it is e.g. "draining"; what waits is taken at once."""
        with self._changed:
            self._closed = why
            self._changed.notify_all()

    def clear(self, why: str) -> None:
        """Closes, and answers all that wait with Unavailable."""
        self.close(why)
        with self._changed:
            left = [request for bucket in self._buckets.values() for request in bucket]
            for request in left:
                self._forget(request)
            self._buckets.clear()
        for request in left:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(unavailable(why))

    def _wait(self) -> list[Request]:
        """The next batch, taken out; with the lock held."""
        while True:
            now = Clock()
            shape, due = self._next(now)
            if shape is not None and (due <= now or self._closed is not None):
                return self._pop(shape)
            if shape is None and self._closed is not None:
                return []
            self._changed.wait(None if shape is None else due - now)

    def _next(self, now: float) -> tuple[tuple[int, ...] | None, float]:
        """The bucket to be served next, and when: at once if it is full; of several the one that waits longest."""
        best, due = None, float("inf")
        for shape, bucket in self._buckets.items():
            when = bucket[0].arrived + self._limits.delay_ms / 1e3
            if when > now and self._full(bucket):
                when = now
            if when < due:
                best, due = shape, when
        return best, due

    def _full(self, bucket: deque[Request]) -> bool:
        images = 0
        for request in bucket:
            images += request.images
            if images >= self._limits.batch:
                return True
        return False

    def _pop(self, shape: tuple[int, ...]) -> list[Request]:
        """From the front as many as fit into a batch, and one at least."""
        bucket, taken, images = self._buckets[shape], [], 0
        while bucket and (not taken or images + bucket[0].images <= self._limits.batch):
            request = bucket.popleft()
            self._forget(request)
            taken.append(request)
            images += request.images
        if not bucket:
            del self._buckets[shape]
        if self._buckets:  # another worker may sleep without knowing of the rest
            self._changed.notify()
        return taken

    def _forget(self, request: Request) -> None:
        request.waiting = False
        self.images -= request.images

    def _leave(self, request: Request | None) -> None:
        """One that is done while it waits, so cancelled."""
        with self._changed:
            if request is None or not request.waiting:
                return
            self._forget(request)
            shape = tuple(request.x.shape[1:])
            self._buckets[shape].remove(request)
            if not self._buckets[shape]:
                del self._buckets[shape]


def unavailable(why: str) -> Unavailable:
    return Unavailable(f"the model is {why}; try again later")
