"""A client that goes away."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import torch
from hscc.serving.engine import Engine, Limits
from hscc.serving.models import Served
from hscc.serving.web import http, rest, sockets
from hscc.serving.web.limits import WebLimits
from hscc.serving.web.service import Service

from ..stand_ins import Gate, image
from .conftest import infer_json

INFER = "/v2/models/gate/infer"


@pytest.fixture
def gate() -> Gate:
    return Gate().eval()


@pytest.fixture
def engine(gate: Gate) -> Iterator[Engine]:
    made = Engine(Served.of(gate, torch.zeros(1, 1, 4, 4), name="gate"), Limits(batch=1))
    made.start()
    gate.close()
    yield made
    gate.open.set()
    made.stop(5)


@pytest.fixture
def address(engine: Engine) -> Iterator[tuple[str, int]]:
    limits = WebLimits()
    made = http.server(rest.application(Service([engine], limits)), limits)
    with sockets.listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=asyncio.run, args=(made.serve([listening]),))
        thread.start()
        yield listening.getsockname()
        made.should_exit = True
        thread.join(20)


def asked(address: tuple[str, int], value: float) -> socket.socket:
    """A connection that waits for an answer."""
    body = json.dumps(infer_json(image(value))).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    connection = socket.create_connection(address, timeout=20)
    connection.sendall(head + body)
    return connection


def until(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_its_request_leaves_the_queue_and_is_not_computed(address, engine: Engine, gate: Gate, caplog) -> None:
    caplog.set_level(logging.WARNING)
    value = engine.metrics.value
    with asked(address, 1.0) as first:
        assert gate.entered.wait(20)
        with asked(address, 2.0) as second:
            gone = asked(address, 3.0)
            until(lambda: value("hscc_queued_images") == 2)
            gone.close()
            until(lambda: value("hscc_queued_images") == 1)  # while the device is still busy
            gate.open.set()
            assert all(b"200 OK" in one.recv(65536) for one in (first, second))
    until(lambda: value("hscc_requests_total", status="ok") == 2)
    assert value("hscc_requests_total", status="cancelled") == 1
    assert gate.batches == [1, 1]
    assert not caplog.records  # nobody has failed


def test_one_that_is_computed_already_harms_nobody(address, engine: Engine, gate: Gate) -> None:
    gone = asked(address, 1.0)
    assert gate.entered.wait(20)
    gone.close()
    until(lambda: engine.metrics.value("hscc_requests_total", status="cancelled") == 1)
    gate.open.set()
    response = httpx.post(f"http://{address[0]}:{address[1]}{INFER}", json=infer_json(image(2.0)), timeout=20)
    assert response.json()["outputs"][0]["data"] == [2.0]
