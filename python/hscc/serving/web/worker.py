"""The process that answers: engines behind both fronts, drained at its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence

from uvicorn import Server

from ..engine import Engine
from ..shutdown import on_sigterm
from . import http, rest
from .service import Service

log = logging.getLogger("hscc.serving")
UNUSABLE, BROKEN = 2, 70  # exit codes: the models do not run; a worker died, a new process may do better
DRAIN = 30.0  # seconds


def run(service: Service, listening: socket.socket, rpc: str | None = None, parent: int | None = None) -> int:
    """Starts the engines and serves, until SIGTERM or until the parent is gone; returns the exit code.

    Args:
        listening: where HTTP connections come in; requests get 503 until the engines are ready.
        rpc: host:port for gRPC.
        parent: a pipe's end that ends with the parent process.
    """
    server = http.server(rest.application(service), service.limits, int(DRAIN))
    loop = server.config.get_loop_factory()()
    try:
        return loop.run_until_complete(_serve(service, server, (listening, rpc, parent)))
    finally:
        loop.close()


async def _serve(service: Service, server: Server, ends: tuple[socket.socket, str | None, int | None]) -> int:
    listening, address, parent = ends
    remote = await _rpc(service, address)
    serving = asyncio.create_task(server.serve([listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)

    async def end() -> None:
        if remote is not None:
            await remote.stop(1.0)
        server.should_exit = True

    on_sigterm(service.engines, end, DRAIN)  # after uvicorn has set handlers of its own
    if parent is not None:
        asyncio.get_running_loop().add_reader(parent, _orphaned, parent)
    code = await _watch(service, server)
    await serving
    return code


async def _rpc(service: Service, address: str | None):
    if address is None:
        return None
    from . import rpc

    remote = rpc.server(service, address)
    await remote.start()
    return remote


async def _watch(service: Service, server: Server) -> int:
    """Starts the engines, then looks every second whether they live, until the server ends."""
    try:
        await asyncio.to_thread(_start, service.engines)
    except Exception:
        if not server.should_exit:
            log.exception("a model does not start")
            server.should_exit = True
        return UNUSABLE
    while not server.should_exit:
        if not service.live:
            log.error("a worker of an engine has died")
            server.should_exit = True
            return BROKEN
        await asyncio.sleep(0.2)
    return 0


def _start(engines: Sequence[Engine]) -> None:
    for engine in engines:
        engine.start()


def _orphaned(parent: int) -> None:
    asyncio.get_running_loop().remove_reader(parent)
    os.kill(os.getpid(), signal.SIGTERM)
