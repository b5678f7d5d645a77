"""What happens to requests that cannot be answered at once: refused, cancelled, too late, drained."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hscc.serving.engine import Engine
from hscc.serving.errors import Overloaded, TimedOut, Unavailable
from hscc.serving.limits import Limits
from hscc.serving.models import Served

from .stand_ins import Gate, image


@pytest.fixture
def gate() -> Gate:
    return Gate().eval()


@pytest.fixture
def engine(start, gate: Gate) -> Engine:
    """Ready, with a closed gate: the first batch holds the device."""
    made = start(Served.of(gate, image(0)), Limits(batch=2, delay_ms=0, queue=6, images=6))
    gate.close()
    return made


async def held(engine: Engine, gate: Gate) -> asyncio.Task:
    """A request that is being computed."""
    task = asyncio.create_task(engine.infer(image(0)))
    await asyncio.to_thread(gate.entered.wait, 10)
    return task


def value(engine: Engine, status: str) -> float:
    return engine.metrics.value("hscc_requests_total", status=status)


def test_a_full_queue_refuses_at_once(engine: Engine, gate: Gate) -> None:
    async def ask() -> list:
        first = await held(engine, gate)
        fit = [asyncio.create_task(engine.infer(image(i, 2))) for i in range(2)]
        await asyncio.sleep(0)
        begun = time.monotonic()
        with pytest.raises(Overloaded, match="got 3 images beside 4 that wait, expected at most 6 together") as caught:
            await engine.infer(image(9, 3))
        assert time.monotonic() - begun < 0.5
        assert caught.value.status == 429
        fit.append(asyncio.create_task(engine.infer(image(2, 2))))  # the places that are left
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="got 1 images beside 6"):
            await engine.infer(image(9))
        gate.open.set()
        return await asyncio.gather(first, *fit)

    answers = asyncio.run(ask())
    assert [answer.outputs["output"][0].item() for answer in answers] == [0, 0, 1, 2]
    assert engine.infer_sync(image(5, 6)).outputs["output"].tolist() == [[5]] * 6  # empty again
    assert (value(engine, "overloaded"), value(engine, "ok")) == (2, 5)


def test_what_is_cancelled_in_the_queue_is_not_computed(engine: Engine, gate: Gate) -> None:
    """And gives its place back at once."""

    async def ask() -> None:
        first = await held(engine, gate)
        waiting = [asyncio.create_task(engine.infer(image(i, 2))) for i in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.wait([waiting[1]])
        assert waiting[1].cancelled()
        assert engine.metrics.value("hscc_queued_images") == 4
        waiting.append(asyncio.create_task(engine.infer(image(3, 2))))
        await asyncio.sleep(0)
        gate.open.set()
        answers = await asyncio.gather(first, waiting[0], *waiting[2:])
        assert [answer.outputs["output"][0].item() for answer in answers] == [0, 0, 2, 3]

    asyncio.run(ask())
    assert gate.batches == [1, 2, 2, 2]
    assert (value(engine, "cancelled"), value(engine, "ok")) == (1, 4)


def test_a_cancelled_request_on_the_device_harms_nobody(engine: Engine, gate: Gate) -> None:
    async def ask() -> float:
        first = await held(engine, gate)
        first.cancel()
        await asyncio.wait([first])
        other = asyncio.create_task(engine.infer(image(1)))
        await asyncio.sleep(0)
        gate.open.set()
        return (await other).outputs["output"].item()

    assert asyncio.run(ask()) == 1


def test_deadlines(engine: Engine, gate: Gate) -> None:
    """In the queue and on the device; what is late is not computed, what is not is."""

    async def ask() -> None:
        first = asyncio.create_task(engine.infer(image(0), deadline=0.3))
        await asyncio.to_thread(gate.entered.wait, 10)
        late = asyncio.create_task(engine.infer(image(1), deadline=0.05))
        patient = asyncio.create_task(engine.infer(image(2), deadline=10))
        for task in (late, first):
            with pytest.raises(TimedOut, match="no answer within the request's time") as caught:
                await task
            assert caught.value.status == 504
        assert engine.metrics.value("hscc_queued_images") == 1
        gate.open.set()
        assert (await patient).outputs["output"].item() == 2
        with pytest.raises(TimedOut, match="deadline: got -1 seconds, expected more than 0"):
            await engine.infer(image(1), deadline=-1)

    asyncio.run(ask())
    assert gate.batches == [1, 1]
    assert value(engine, "timed_out") == 3


def test_deadlines_of_threads_and_of_the_limits(start, gate: Gate) -> None:
    engine = start(Served.of(gate, image(0)), Limits(batch=1, delay_ms=0, seconds=0.1))
    gate.close()
    begun = time.monotonic()
    with pytest.raises(TimedOut):
        engine.infer_sync(image(1), deadline=100)  # the limit counts
    with pytest.raises(TimedOut):
        engine.infer_sync(image(2))
    assert 0.2 <= time.monotonic() - begun < 2
    assert engine.metrics.value("hscc_queued_images") == 0
    gate.open.set()
    assert engine.infer_sync(image(3)).outputs["output"].item() == 3
    assert gate.batches == [1, 1]


def test_what_a_busy_event_loop_noticed_too_late(engine: Engine, gate: Gate) -> None:
    """The worker looks at the time by itself."""

    async def ask() -> None:
        first = await held(engine, gate)
        late = asyncio.create_task(engine.infer(image(1), deadline=0.02))
        await asyncio.sleep(0)
        time.sleep(0.05)  # nothing cancels it
        gate.open.set()
        time.sleep(0.1)
        await first
        with pytest.raises(TimedOut):
            await late

    asyncio.run(ask())
    assert gate.batches == [1]


def test_drain(engine: Engine, gate: Gate) -> None:
    """Old requests are answered, new ones refused; a second drain finds nothing to do."""

    async def ask() -> None:
        old = [await held(engine, gate), *(asyncio.create_task(engine.infer(image(i))) for i in (1, 2, 3))]
        await asyncio.sleep(0)
        draining = asyncio.create_task(engine.drain(10))
        while engine.ready:
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="the model is draining; try again later") as caught:
            await engine.infer(image(9))
        assert caught.value.status == 503
        assert engine.live
        assert not draining.done()
        gate.open.set()
        await draining
        assert [(await task).outputs["output"].item() for task in old] == [0, 1, 2, 3]
        with pytest.raises(Unavailable, match="the model is stopped"):
            await engine.infer(image(9))
        await engine.drain(0)

    asyncio.run(ask())
    assert not any(thread.name == "hscc-cpu" for thread in threading.enumerate())


def test_a_drain_that_takes_too_long_ends(engine: Engine, gate: Gate) -> None:
    """What still waits is told so; what is on the device keeps it until it is done."""

    async def ask() -> None:
        first = await held(engine, gate)
        waiting = asyncio.create_task(engine.infer(image(1)))
        await asyncio.sleep(0)
        await engine.drain(0.05)
        with pytest.raises(Unavailable, match="the model is stopped"):
            await waiting
        gate.open.set()
        assert (await first).outputs["output"].item() == 0

    asyncio.run(ask())


def test_stop_before_and_during_the_start(gate: Gate) -> None:
    served = Served.of(gate, image(0))
    unstarted = Engine(served)
    unstarted.stop(0)
    with pytest.raises(RuntimeError, match="while it is stopped"):
        unstarted.start()
    gate.close()
    engine = Engine(served)
    with ThreadPoolExecutor(1) as thread:
        starting = thread.submit(engine.start)
        assert gate.entered.wait(10)
        engine.stop(0)
        gate.open.set()
        starting.result(10)
    assert not engine.ready


PROGRAM = """
import asyncio, sys, time, torch
from hscc.serving.engine import Engine, Limits
from hscc.serving.models import Served
from hscc.serving.shutdown import on_sigterm

class Slow(torch.nn.Module):
    def forward(self, x):
        time.sleep(0.2)
        return x.mean((1, 2, 3))

async def main():
    engine = Engine(Served.of(Slow().eval(), torch.zeros(1, 1, 4, 4)), Limits(batch=1))
    engine.start()
    ended = on_sigterm([engine], lambda: print("front stopped", flush=True), timeout=20)
    tasks = [asyncio.create_task(engine.infer(torch.full((1, 1, 4, 4), float(i)))) for i in range(4)]
    await asyncio.sleep(0)
    print("asked", flush=True)
    await ended
    print([task.result().outputs["output"].item() for task in tasks], flush=True)

asyncio.run(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="event loops there handle no signals")
def test_sigterm_answers_what_was_asked() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "front stopped\n[0.0, 1.0, 2.0, 3.0]\n"
        assert process.wait(20) == 0


@pytest.mark.parametrize("again", range(3))
def test_no_worker_sleeps_while_a_batch_is_due(start, gate: Gate, again: int) -> None:
    """Two workers, two shapes: while one works, the other takes what is left."""
    served = Served.of(gate, image(0), any_size=True)
    engine = start(served, Limits(batch=4, delay_ms=100), devices=("cpu", "cpu:0"))
    gate.close()

    async def ask() -> int:
        tasks = [asyncio.create_task(engine.infer(image(size, size=size))) for size in (4, 6)]
        end = time.monotonic() + 2
        while len(gate.batches) < 2 and time.monotonic() < end:
            await asyncio.sleep(0.01)
        at_work = len(gate.batches)
        gate.open.set()
        await asyncio.gather(*tasks)
        return at_work

    assert asyncio.run(ask()) == 2
