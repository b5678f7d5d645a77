"""The end of a serving process: SIGTERM drains the engines first."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence

from .engine import Engine

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def on_sigterm(
    engines: Sequence[Engine], then: Callable[[], Awaitable[None] | None], timeout: float = 30.0
) -> asyncio.Future:
    """From now on SIGTERM (and SIGINT) drains all engines, then calls ``then``, once; for the running event loop.

    Args:
        then: ends the front, e.g. by setting uvicorn's ``should_exit``.
        timeout: seconds that the old requests have.

    Returns:
        A future that is done after ``then``, with its error if it raised one.
    """
    loop = asyncio.get_running_loop()
    finished, tasks = loop.create_future(), []

    async def end() -> None:
        try:
            await asyncio.gather(*(engine.drain(timeout) for engine in engines))
            result = then()
            if result is not None:
                await result
            finished.set_result(None)
        except BaseException as error:
            finished.set_exception(error)

    def begin() -> None:
        if not tasks:
            tasks.append(loop.create_task(end()))  # kept, or it could be collected

    for number in SIGNALS:
        loop.add_signal_handler(number, begin)
    return finished
