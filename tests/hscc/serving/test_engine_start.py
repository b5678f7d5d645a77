"""Before the first answer: limits, the warm-up, and what the Engine does not import."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
import torch
from hscc.serving.engine import Engine
from hscc.serving.errors import Unavailable
from hscc.serving.limits import Limits
from hscc.serving.models import Served

from .stand_ins import Gate, image


def test_ready_only_when_every_batch_size_has_run() -> None:
    """Who asks before is told to come back."""
    gate = Gate()
    engine = Engine(Served.of(gate.eval(), image(0)), Limits(batch=6))
    with pytest.raises(Unavailable, match="the model is not started"):
        engine.infer_sync(image(1))
    gate.close()
    starting = threading.Thread(target=engine.start)
    starting.start()
    assert gate.entered.wait(10)
    assert (engine.ready, engine.live) == (False, True)
    with pytest.raises(Unavailable, match="the model is starting") as caught:
        engine.infer_sync(image(1))
    assert caught.value.status == 503
    assert engine.metrics.value("hscc_ready") == 0
    gate.open.set()
    starting.join(10)
    assert engine.ready
    assert sorted(gate.batches) == [1, 2, 4, 6]
    assert engine.metrics.value("hscc_ready") == 1
    assert engine.infer_sync(image(1)).outputs["output"].item() == 1
    with pytest.raises(RuntimeError, match=r"got start\(\) while it is ready, expected one start"):
        engine.start()
    engine.stop()


def test_a_model_that_cannot_run_never_becomes_ready() -> None:
    gate = Gate()
    served = Served.of(gate.eval(), image(0))
    gate.register_forward_pre_hook(lambda module, args: torch.zeros(2) @ torch.zeros(3))
    engine = Engine(served)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        engine.start()
    assert not engine.ready
    with pytest.raises(Unavailable):
        engine.infer_sync(image(1))


def test_limits_are_checked() -> None:
    for options, message in (
        ({"batch": 0}, "batch: got 0, expected a positive integer"),
        ({"queue": 2.5}, "queue: got 2.5, expected a positive integer"),
        ({"delay_ms": -1}, "delay_ms: got -1, expected a finite number from 0"),
        ({"seconds": float("inf")}, "seconds: got inf, expected a finite number"),
        ({"images": 300}, "images: got 300, expected at most queue"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Limits(**options)
    assert [Limits(batch=n).sizes for n in (1, 2, 6, 16)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8, 16)]


def test_web_free() -> None:
    """The Engine's files import no web framework."""
    folder = Path(__import__("hscc.serving.engine", fromlist=["x"]).__file__).parent
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    assert not re.search(r"(fastapi|starlette|litserve|uvicorn|grpc|aiohttp|\.web)\b", text.replace("uvicorn's", ""))
