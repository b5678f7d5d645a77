"""The Engine's answers: what the model gives alone, each to its own caller, whatever the neighbours are."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch
from hscc.serving.engine import Engine
from hscc.serving.errors import BadRequest, Failed, Refused, Unavailable
from hscc.serving.limits import Limits
from hscc.serving.metrics import STATUSES, page
from hscc.serving.models import Served
from torch import Tensor, nn

from .stand_ins import POISON, Gate, image


def mixed(count: int, seed: int = 0) -> list[Tensor]:
    """Requests of 1 to 7 images, of three sizes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1 + i % 7, 3, 32 + 4 * (i % 3), 32) for i in range(count)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def same(outputs: Tensor, model: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(outputs, model(x), rtol=1e-4, atol=1e-5)


def test_as_the_model_alone(start, served: Served, net: nn.Module) -> None:
    """32 requests at a time, some of more images than a batch has."""
    engine, requests = start(served, Limits(batch=6, queue=1000)), mixed(128)

    async def ask() -> list:
        room = asyncio.Semaphore(32)

        async def one(x: Tensor):
            async with room:
                return await engine.infer(x)

        return await asyncio.gather(*map(one, requests))

    answers = asyncio.run(ask())
    for x, answer in zip(requests, answers, strict=True):
        same(answer.outputs["output"], net, x)
        assert (answer.guard, answer.flagged) == (None, None)
    value, images = engine.metrics.value, sum(map(len, requests))
    assert value("hscc_requests_total", status="ok") == value("hscc_requests_total") == 128
    assert value("hscc_images_total") == images == value("hscc_batch_images_sum")
    assert value("hscc_batch_images_bucket", le="6.0") == value("hscc_batch_images_count") < images
    assert value("hscc_queue_seconds_count") == 128
    assert value("hscc_queued_images") == 0


def test_from_threads(start, served: Served, net: nn.Module) -> None:
    engine, requests = start(served), mixed(32)
    with ThreadPoolExecutor(8) as threads:
        for x, answer in zip(requests, threads.map(engine.infer_sync, requests), strict=True):
            same(answer.outputs["output"], net, x)


def test_requests_share_a_batch(start) -> None:
    """Those that wait while the device works, up to a whole batch, in their order, of one shape."""
    gate = Gate()
    engine = start(Served.of(gate.eval(), image(0), any_size=True), Limits(batch=8, delay_ms=0))
    gate.close()

    async def ask() -> list:
        first = asyncio.create_task(engine.infer(image(-1)))
        await asyncio.to_thread(gate.entered.wait, 10)
        sizes = [3, 3, 3, 4, 8, 2]  # together with a whole batch, with part of one, and alone
        more = [asyncio.create_task(engine.infer(image(i, n))) for i, n in enumerate(sizes)]
        more.append(asyncio.create_task(engine.infer(image(9.0, 2, size=6))))
        await asyncio.sleep(0.05)
        assert engine.metrics.value("hscc_queued_images") == sum(sizes) + 2
        gate.open.set()
        return await asyncio.gather(first, *more)

    first, *answers, other = asyncio.run(ask())
    assert first.outputs["output"].tolist() == [[-1]]
    assert [answer.outputs["output"].tolist() for answer in answers] == [
        [[float(i)]] * n for i, n in enumerate([3, 3, 3, 4, 8, 2])
    ]
    assert other.outputs["output"].tolist() == [[9], [9]]
    assert sorted(gate.batches[1:]) == sorted([6, 7, 8, 2, 2])


def test_a_batch_waits_for_company_but_not_for_long(start) -> None:
    gate = Gate()
    engine = start(Served.of(gate.eval(), image(0)), Limits(batch=4, delay_ms=300))
    gate.batches.clear()

    async def ask(count: int) -> float:
        clock = asyncio.get_running_loop().time
        begun = clock()
        await asyncio.gather(*(engine.infer(image(i)) for i in range(count)))
        return clock() - begun

    assert asyncio.run(ask(2)) >= 0.29
    assert asyncio.run(ask(4)) < 0.25  # full at once
    assert gate.batches == [2, 4]


def test_a_poisoned_request_fails_alone(start, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    engine = start(Served.of(gate.eval(), image(0)), Limits(batch=4, delay_ms=200))

    async def ask() -> list:
        asked = (engine.infer(image(value)) for value in (1, POISON, 2, 3))
        return await asyncio.gather(*asked, return_exceptions=True)

    with caplog.at_level(logging.CRITICAL):
        first, bad, *others = asyncio.run(ask())
    assert [answer.outputs["output"].item() for answer in (first, *others)] == [1, 2, 3]
    assert isinstance(bad, Failed)
    assert bad.status == 500
    assert str(bad) == "the model failed on this request"
    assert "secret" in str(bad.__cause__)
    value = engine.metrics.value
    assert (value("hscc_failed_batches_total"), value("hscc_images_total")) == (1, 3)
    assert (value("hscc_requests_total", status="ok"), value("hscc_requests_total", status="failed")) == (3, 1)
    assert engine.ready
    assert engine.live
    assert engine.infer_sync(image(4)).outputs["output"].item() == 4


def test_a_worker_that_dies_leaves_nobody_waiting(start, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    engine = start(Served.of(gate.eval(), image(0)), Limits(batch=1, delay_ms=0))
    runner = engine._workers[0]._runner
    monkeypatch.setattr(runner, "healthy", lambda: False)
    gate.close()

    async def ask() -> list:
        tasks = [asyncio.create_task(engine.infer(image(POISON)))]
        await asyncio.to_thread(gate.entered.wait, 10)
        tasks += [asyncio.create_task(engine.infer(image(i))) for i in range(3)]
        await asyncio.sleep(0.05)
        gate.open.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(one) for one in asyncio.run(asyncio.wait_for(ask(), 10))] == [Unavailable] * 4
    assert (engine.live, engine.ready) == (False, False)
    with pytest.raises(Unavailable, match="the model is broken"):
        engine.infer_sync(image(1))


NAN, INFINITE = (
    torch.full((1, 3, 32, 32), torch.nan),
    torch.zeros(2, 3, 32, 32).index_fill(3, torch.tensor(7), torch.inf),
)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 1, 32, 32), "input: got FP32 (1, 1, 32, 32), expected FP32 (-1, 3, -1, -1)"),
        (torch.zeros(3, 32, 32), "input: got FP32 (3, 32, 32), expected FP32 (-1, 3, -1, -1)"),
        (torch.zeros(1, 3, 32, 32).double(), "input: got FP64 (1, 3, 32, 32), expected FP32 (-1, 3, -1, -1)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.cfloat), "input: got complex64 (1, 3, 32, 32), expected FP32"),
        (torch.zeros(0, 3, 32, 32), "input: got 0 images, expected 1 to 8 a request"),
        (torch.zeros(9, 3, 32, 32), "input: got 9 images, expected 1 to 8 a request"),
        (torch.zeros(1, 3, 0, 32), "input: got 0 x 32 pixels, expected 1 to 2000 an image"),
        (torch.zeros(1, 3, 50, 41), "input: got 50 x 41 pixels, expected 1 to 2000 an image"),
        (NAN, "input: got NaN or infinite values, expected finite ones"),
        (INFINITE, "input: got NaN or infinite values, expected finite ones"),
        ([[1.0]], "input: got list, expected a tensor"),
        (torch.zeros(1, 3, 32, 32).to_sparse(), "input: got a torch.sparse_coo tensor on cpu, expected FP32"),
    ],
)
def test_bad_requests(start, served: Served, x: Tensor, message: str) -> None:
    engine = start(served, Limits(images=8, pixels=2000))
    with pytest.raises(BadRequest, match="^" + re.escape(message)):
        engine.infer_sync(x)
    with pytest.raises(BadRequest, match="^" + re.escape(message)):
        asyncio.run(engine.infer(x))
    assert engine.metrics.value("hscc_requests_total", status="bad_request") == 2


def test_rows_that_are_no_images_are_no_answer(start) -> None:
    """A model that drops rows for some input would mix answers up."""

    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            means = x.mean((1, 2, 3))
            return means[means >= 0]

    engine = start(Served.of(Drops().eval(), image(0)), Limits(batch=4, delay_ms=100))

    async def ask() -> list:
        return await asyncio.gather(*(engine.infer(image(v)) for v in (1, -1, 2)), return_exceptions=True)

    first, bad, last = asyncio.run(ask())
    assert isinstance(bad, Failed)
    assert (first.outputs["output"].item(), last.outputs["output"].item()) == (1, 2)


def test_padding_of_graphs(start, served: Served, net: nn.Module) -> None:
    """CUDA graphs know the warmed sizes only; here a stand-in, as they need a GPU."""
    engine, shapes = start(served, Limits(batch=6)), []
    runner = engine._workers[0]._runner

    def graphs(x: Tensor):
        shapes.append(len(x))
        return runner._forward(x)

    runner._graphs = graphs
    for n in (1, 3, 5, 6, 9):
        x = torch.randn(n, 3, 32, 32)
        same(engine.infer_sync(x).outputs["output"], net, x)
    assert shapes == [1, 4, 6, 6, 6, 4]
    assert set(shapes) <= set(engine.limits.sizes)


def test_memory_stays_flat(start, served: Served) -> None:
    """Over thousands of requests, with refused and cancelled ones among them."""
    engine = start(served, Limits(batch=8, delay_ms=0.2, queue=64, images=8))
    good, bad = torch.randn(2, 3, 32, 32), torch.full((1, 3, 32, 32), torch.nan)

    async def some(count: int) -> Counter:
        ended: Counter = Counter()
        for i in range(count // 20):
            tasks = [asyncio.ensure_future(engine.infer(bad if k == 7 else good)) for k in range(20)]
            await asyncio.sleep(0)
            tasks[i % 7].cancel()
            ended.update(type(one).__name__ for one in await asyncio.gather(*tasks, return_exceptions=True))
        return ended

    def held() -> tuple[int, int]:
        gc.collect()
        return psutil.Process().memory_info().rss, sum(type(one) is Tensor for one in gc.get_objects())

    ended = asyncio.run(some(1500))
    before = held()
    ended += asyncio.run(some(6000))
    after = held()
    assert after[0] - before[0] < 80 * 2**20  # 6000 requests of 24 KiB are 140 MiB; of other tests' threads some come
    assert after[1] <= before[1] + 20
    value = engine.metrics.value
    counted = {status: value("hscc_requests_total", status=status) for status in STATUSES}
    names = {"ok": "Answer", "bad_request": "BadRequest", "cancelled": "CancelledError"}
    assert counted == {status: ended[names.get(status)] for status in STATUSES}
    assert sum(counted.values()) == 7500
    assert counted["bad_request"] == 375
    assert counted["cancelled"] > 100  # a late cancel finds the answer there
    assert value("hscc_queued_images") == 0


def test_an_idle_engine_holds_no_images(start, served: Served) -> None:
    """Without help by the garbage collector, which counts objects and not bytes."""
    engine, pixels = start(served), np.zeros((2, 3, 32, 32), np.float32)
    gone = weakref.ref(pixels)
    gc.disable()
    try:
        engine.infer_sync(torch.from_numpy(pixels[:1]))
        asyncio.run(engine.infer(torch.from_numpy(pixels)))
        del pixels
        end = time.monotonic() + 2
        while gone() is not None and time.monotonic() < end:
            time.sleep(0.01)
        assert gone() is None
    finally:
        gc.enable()


def test_metrics_of_several_engines_are_one_page(served: Served, net: nn.Module) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    other = Served.of(net, torch.zeros(1, 3, 32, 32), name="other")
    engines = Engine(served), Engine(other)
    for engine in engines:
        with pytest.raises(Refused):
            engine.infer_sync(torch.zeros(1, 3, 32, 32))
    text, kind = page(engine.metrics for engine in engines)
    families = {family.name: family for family in parser.text_string_to_metric_families(text.decode())}
    assert kind.startswith("text/plain")
    assert text.count(b"# TYPE hscc_requests_total counter") == 1
    counted = [s for s in families["hscc_requests"].samples if s.labels.get("status") == "unavailable" and s.value == 1]
    assert [sample.labels["model"] for sample in counted if sample.name.endswith("_total")] == ["small", "other"]
