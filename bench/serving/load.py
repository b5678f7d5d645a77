"""Closed and open loops of requests, and how long the answers took."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

Ask = Callable[[], Awaitable[object]]
DRAIN = 30.0  # seconds that the last answers of an open loop have


@dataclass
class Load:
    """What was asked and answered: latencies in seconds, refusals by the name of their error."""

    latencies: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __add__(self, other: Load) -> Load:
        refused, seconds = self.refused + other.refused, self.seconds + other.seconds
        return Load(self.latencies + other.latencies, refused, seconds)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentiles(self) -> dict[str, float | None]:
        """Milliseconds: half, 95 % and 99 % of the answers took no longer; None without any."""
        wanted = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}
        if not self.latencies:
            return dict.fromkeys(wanted)
        return {name: round(1e3 * float(np.percentile(self.latencies, q)), 3) for name, q in wanted.items()}

    async def note(self, ask: Ask, intended: float) -> None:
        """One request, timed from when it was to be sent."""
        try:
            await ask()
        except Exception as error:
            self.refused[type(error).__name__] += 1
        else:
            self.latencies.append(time.perf_counter() - intended)


async def closed(ask: Ask, clients: int, seconds: float) -> Load:
    """So many clients, each of which asks again as soon as it has its answer."""
    load, begun = Load(), time.perf_counter()

    async def client() -> None:
        while (now := time.perf_counter()) < begun + seconds:
            await load.note(ask, now)

    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - begun
    return load


async def opened(ask: Ask, rate: float, seconds: float, seed: int = 0) -> Load:
    """Requests that arrive at random (Poisson), so many a second on average, whatever the server does.

    Latency counts from the arrival, even if the loop was too busy to send then: a slow server hides nothing.
    """
    load, generator, tasks = Load(), random.Random(seed), []
    begun = due = time.perf_counter()
    while (due := due + generator.expovariate(rate)) < begun + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(load.note(ask, due)))
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=DRAIN)
        for task in late:
            task.cancel()
        load.refused["unanswered"] += len(late)
    load.seconds = max(seconds, time.perf_counter() - begun)
    load.refused = +load.refused
    return load
