"""The same routes on LitServe's processes: its HTTP processes, its queues, its workers with an Engine each.

Not the default: LitServe pickles every request and every answer into a queue of a manager process and out of it, over
local sockets. Here only arrays, numbers and texts of ours go that way, yet a process that knew the manager's key could
send anything. And a request that a dying worker holds is lost, until its time is over.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty

import litserve
import torch
from litserve.loops.base import LitLoop
from litserve.utils import LitAPIStatus, LoopResponseType, ResponseBufferItem
from torch import Tensor

from .. import errors
from ..engine import Answer, Engine, Limits
from ..metrics import Metrics
from ..models import Served
from ..shutdown import SIGNALS
from . import http, rest
from .limits import WebLimits
from .service import Service

REFUSALS = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}


@dataclass(frozen=True)
class Source:
    """Where a worker finds a model: the arguments of ``Served.load``."""

    path: str
    source: str | None
    name: str
    any_size: bool = False

    def load(self) -> Served:
        return Served.load(self.path, self.source, name=self.name, any_size=self.any_size)


class Remote:
    """Has what :class:`Service` asks of an Engine; the Engine is in a worker of LitServe's."""

    ready = live = True  # LitServe opens its port when a worker is ready, and starts dead ones again

    def __init__(self, model: Served, limits: Limits) -> None:
        self.model, self.limits, self.inputs, self.outputs = model, limits, model.inputs, model.outputs
        self.metrics = Metrics(model.name, limits.sizes, lambda: 0)  # of this process; LitServe's are several
        self.server: litserve.LitServer | None = None

    async def infer(self, x: Tensor, *, deadline: float | None = None) -> Answer:
        """As :meth:`Engine.infer`. A request whose worker dies is TimedOut."""
        self.inputs[0].check(x)
        seconds = min(deadline or self.limits.seconds, self.limits.seconds)
        server, name, done = self.server, uuid.uuid4().hex, asyncio.Event()
        server.response_buffer[name] = ResponseBufferItem(done)
        try:
            queue = server.litapi_request_queues[f"/{self.model.name}"]
            queue.put((server.app.response_queue_id, name, time.monotonic(), (x.contiguous().numpy(), seconds)))
            await asyncio.wait_for(done.wait(), seconds)
            (kind, found), _ = server.response_buffer[name].response
        except asyncio.TimeoutError as error:
            self.metrics.ended("timed_out")
            raise errors.TimedOut("no answer within the request's time") from error
        finally:
            del server.response_buffer[name]
        if kind != "ok":
            self.metrics.ended(REFUSALS[kind].kind)
            raise REFUSALS[kind](found)
        self.metrics.ended("ok")
        return Answer({name: torch.from_numpy(value) for name, value in found.items()})


class Worker(litserve.LitAPI):
    """What LitServe starts in a process: an Engine on one device."""

    def __init__(self, source: Source, limits: Limits) -> None:
        super().__init__(api_path=f"/{source.name}", loop=Loop())
        self.source, self.limits = source, limits

    def setup(self, device: str | Sequence[str]) -> None:
        device = device if isinstance(device, str) else device[0]
        self.engine = Engine(self.source.load(), self.limits, devices=[device])
        self.engine.start()

    def decode_request(self, request: object) -> object:
        return request

    def predict(self, inputs: object) -> object:
        raise NotImplementedError("the loop asks the Engine")

    def encode_response(self, output: object) -> object:
        return output


class Loop(LitLoop):
    """Hands requests of LitServe's queue to the Engine, which makes batches of them; answers as they come."""

    def __call__(self, lit_api, device, worker_id, *queues) -> None:
        request_queue, transport = queues[:2]
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        room = threading.Semaphore(2 * lit_api.limits.queue)

        async def answer(consumer: int, name: str, x: Tensor, seconds: float) -> None:
            try:
                found = await lit_api.engine.infer(x, deadline=seconds)
                result = ("ok", {key: value.numpy() for key, value in found.outputs.items()})
            except errors.Refused as error:
                result = (type(error).__name__, str(error))
            except Exception:
                result = ("Failed", "the model failed")
            finally:
                room.release()
            await asyncio.to_thread(
                self.put_response, transport, consumer, name, result, LitAPIStatus.OK, LoopResponseType.REGULAR
            )

        while True:
            try:  # a get without end would, after our death, take one request more out of the manager's queue
                consumer, name, since, payload = request_queue.get(timeout=1.0)
            except Empty:
                continue
            except (EOFError, ConnectionError, KeyboardInterrupt):  # the server ends, its manager has already
                return
            if name is None:
                return
            x, seconds = payload
            room.acquire()
            left = seconds - (time.monotonic() - since)
            asyncio.run_coroutine_threadsafe(answer(consumer, name, torch.from_numpy(x), max(left, 1e-3)), loop)


def run(sources: Sequence[Source], limits: Limits, web: WebLimits, key: str | None, address: tuple[str, int]) -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit code. Raises what loading a model does."""
    remotes = [Remote(source.load(), limits) for source in sources]
    names = replace(web, seconds=min(web.seconds, limits.seconds))
    server = litserve.LitServer([Worker(source, limits) for source in sources], restart_workers=True)
    for remote in remotes:
        remote.server = server
    app = rest.application(Service(remotes, names, key))
    server.app.router.routes.clear()  # its own have neither a key nor limits
    server.app.mount("/", app)
    host, port = address
    for number in SIGNALS:
        signal.signal(number, partial(_end, os.getpid()))
    server.run(
        host=host,
        port=port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        http=http.limited(web),
        access_log=False,
        server_header=False,
        limit_concurrency=web.connections,
    )
    return 0


def _end(main: int, number: int, frame: object) -> None:
    """LitServe ends its processes after a KeyboardInterrupt; those that inherit this handler end without a word."""
    if os.getpid() == main:
        raise KeyboardInterrupt
    sys.exit(0)
