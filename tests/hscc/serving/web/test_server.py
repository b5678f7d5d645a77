"""``hscc serve`` as a process of its own: official clients, hostile connections, its death and its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from hscc.serving.engine import Engine
from hscc.serving.models import Served
from hscc.serving.web import http, rest, sockets
from hscc.serving.web.limits import WebLimits
from hscc.serving.web.service import Service

from .conftest import Server, infer_json

INFER = "/v2/models/small/infer"


def expected(model: Served, x: np.ndarray) -> np.ndarray:
    return model.module(torch.from_numpy(x)).detach().numpy()


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 1, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_http(server: Server, model: Served, binary: bool) -> None:
    client_of = pytest.importorskip("tritonclient.http")
    client = client_of.InferenceServerClient(server.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small")
    assert client.is_model_ready("small", "1")
    assert not client.is_model_ready("large")
    assert client.get_server_metadata()["name"] == "hscc"
    assert client.get_model_metadata("small")["platform"] == "hscc_dense"
    x = images(3)
    given = client_of.InferInput("input", x.shape, "FP32")
    given.set_data_from_numpy(x, binary_data=binary)
    for outputs in (None, [client_of.InferRequestedOutput("output", binary_data=binary)]):
        result = client.infer("small", [given], outputs=outputs, request_id="me", timeout=10_000_000)
        assert result.get_response()["id"] == "me"
        np.testing.assert_allclose(result.as_numpy("output"), expected(model, x), rtol=1e-4, atol=1e-5)
    with pytest.raises(client_of.InferenceServerException, match="name or version that is not served"):
        client.infer("large", [given])
    client.close()


def test_tritonclient_grpc(server: Server, model: Served) -> None:
    client_of = pytest.importorskip("tritonclient.grpc")
    client = client_of.InferenceServerClient(server.rpc)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small")
    assert client.get_server_metadata().name == "hscc"
    assert [*client.get_model_metadata("small").inputs[0].shape] == [-1, 1, 16, 16]
    x = images(3)
    given = client_of.InferInput("input", x.shape, "FP32")
    given.set_data_from_numpy(x)
    for outputs in (None, [client_of.InferRequestedOutput("output")]):
        result = client.infer("small", [given], outputs=outputs, request_id="me")
        assert result.get_response().id == "me"
        np.testing.assert_allclose(result.as_numpy("output"), expected(model, x), rtol=1e-4, atol=1e-5)
    with pytest.raises(client_of.InferenceServerException, match=r"NOT_FOUND.*name or version that is not served"):
        client.infer("../small", [given])
    client.close()


KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
url, rpc = sys.argv[1:]
x = np.random.default_rng(0).standard_normal((3, 1, 16, 16)).astype(np.float32)
async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=20))
    found = [await client.is_server_ready(url), await client.is_server_live(url)]
    found.append(await client.is_model_ready(url, "small"))
    for binary in (True, False):
        given = InferInput("input", [*x.shape], "FP32")
        given.set_data_from_numpy(x, binary_data=binary)
        answer = await client.infer(url, InferRequest("small", [given], request_id="me"), model_name="small")
        found.append([answer.id, answer.outputs[0].as_numpy().tolist()])
    client = InferenceGRPCClient(rpc)
    found += [await client.is_server_ready(), await client.is_server_live(), await client.is_model_ready("small")]
    for binary in (True, False):
        given = InferInput("input", [*x.shape], "FP32")
        given.set_data_from_numpy(x, binary_data=binary)
        answer = await client.infer(InferRequest("small", [given], request_id="me"))
        found.append([answer.id, answer.outputs[0].as_numpy().tolist()])
    print(json.dumps(found))
asyncio.run(main())
"""


def test_kserve(server: Server, model: Served) -> None:
    """In a process of its own: kserve and tritonclient register the same names with protobuf."""
    if importlib.util.find_spec("kserve") is None:
        pytest.skip("kserve is not installed: pip install --no-deps kserve, and what it imports")
    command = [sys.executable, "-c", KSERVE, server.url, server.rpc]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [one for one in found if isinstance(one, bool)] == [True] * 6
    answers = [one for one in found if isinstance(one, list)]
    assert len(answers) == 4
    for name, output in answers:
        assert name == "me"
        np.testing.assert_allclose(output, expected(model, images(3)), rtol=1e-4, atol=1e-5)


def raw(server: Server, *pieces: bytes, wait: float = 0.0) -> bytes:
    """What comes back for bytes on a connection."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(wait)
        except (BrokenPipeError, ConnectionResetError):
            pass
        found = b""
        try:
            while piece := connection.recv(65536):
                found += piece
        except ConnectionResetError:
            pass
        return found


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v2 HTTP/1.1\r\n" + b"".join(b"a%d: b\r\n" % i for i in range(100)) + b"\r\n", b"431"),
        (b"GET /v2 HTTP/1.1\r\na: " + b"b" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET /v2 HTTP/1.1\r\na: " + b"b" * 400_000, b"431"),
        (b"\x80\x04\x95\r\n\r\n", b"400"),
        (b"GET /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", b"400"),
        (b"GET /v2/../../etc/passwd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"404"),
        (b"GET //etc/passwd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"404"),
    ],
    ids=["lines", "a long line", "a long path", "an endless line", "no HTTP", "two lengths", "dots", "slashes"],
)
def test_heads_are_limited(server: Server, head: bytes, status: bytes) -> None:
    found = raw(server, head)
    assert found.split()[1] == status, found[:200]
    assert b'{"error"' in found
    assert b"passwd" not in found
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200


def test_chunks_are_counted_as_they_come(server: Server) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % INFER.encode()
    found = raw(server, head, *[b"10000\r\n" + b"x" * 65536 + b"\r\n"] * 40)
    assert found.split()[1] == b"413"
    assert b"got more than 1048576 bytes" in found


def test_what_follows_the_last_chunk_is_counted_too(server: Server) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " % INFER.encode()
    found = raw(server, head, *[b"x" * 65536] * 64)
    assert found.split()[1] == b"413"
    assert b"and their frames" in found


def test_slow_heads(engine: Engine) -> None:
    """In this process, with a shorter time."""
    limits = WebLimits(header_seconds=0.3)
    made = http.server(rest.application(Service([engine], limits)), limits)
    with sockets.listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=asyncio.run, args=(made.serve([listening]),))
        thread.start()
        with socket.create_connection(listening.getsockname(), timeout=20) as connection:
            began = time.monotonic()
            connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: ")
            found = connection.recv(65536)
            assert found.split()[1] == b"408"
            assert time.monotonic() - began < 10
            assert connection.recv(65536) == b""
        made.should_exit = True
        thread.join(20)


def test_a_body_that_ends_early(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(5):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{" % INFER.encode())
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200


def test_no_file_is_opened_for_a_request(server: Server) -> None:
    """By the process's own list: what a path in a request names is not among its files, nor has it been mapped."""
    for path in ("%2Fetc%2Fhostname", "..%2F..%2Fetc%2Fhostname"):
        httpx.get(f"{server.url}/v2/models/{path}")
        httpx.post(
            f"{server.url}/v2/models/{path}/infer", content=b"/etc/hostname", headers={"content-type": "image/png"}
        )
    opened = {os.readlink(one) for one in Path(f"/proc/{server.worker()}/fd").iterdir() if one.is_symlink()}
    assert not any("hostname" in one for one in opened)


def test_killed_under_load_it_comes_back_and_never_answers_wrongly(serve, model: Served) -> None:
    server = serve()
    started = server.wait()
    xs = [images(1, seed) for seed in range(8)]
    wanted = [expected(model, x) for x in xs]
    bodies = [json.dumps(infer_json(torch.from_numpy(x))) for x in xs]
    until = time.monotonic() + 60
    killed, back = [], []

    def load(number: int) -> tuple[int, int]:
        answered = failed = 0
        while time.monotonic() < until and not (back and answered > 20):
            i = (number + answered) % len(xs)
            try:
                response = httpx.post(f"{server.url}{INFER}", content=bodies[i], timeout=60)
            except httpx.TransportError:
                failed += 1
                continue
            if response.status_code == 503:  # starting
                time.sleep(0.05)
                continue
            assert response.status_code == 200, response.text
            found = response.json()["outputs"][0]["data"]
            np.testing.assert_allclose(found, wanted[i][0], rtol=1e-4, atol=1e-5)
            answered += 1
            if killed and server.worker() not in (killed[0], None):
                back.append(number)
        return answered, failed

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = [pool.submit(load, i) for i in range(4)]
        time.sleep(0.5)
        worker = server.worker()
        os.kill(worker, signal.SIGKILL)
        killed.append(worker)
        counts = [one.result() for one in running]
    assert back
    assert sum(answered for answered, _ in counts) > 40
    assert server.worker() != killed[0]
    assert started < 30  # cores may be shared; docs/serving.md has the time on quiet ones


def test_sigterm_answers_what_is_under_way_and_ends_with_0(serve) -> None:
    server = serve("--delay-ms", "20000", "--batch", "64")
    server.wait()
    body = json.dumps(infer_json(torch.from_numpy(images(1))))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(httpx.post, f"{server.url}{INFER}", content=body, timeout=30) for _ in range(4)]
        while 'hscc_queued_images{model="small"} 4.0' not in httpx.get(f"{server.url}/metrics").text:
            time.sleep(0.02)
        worker = server.worker()
        server.process.send_signal(signal.SIGTERM)
        assert [one.result().status_code for one in waiting] == [200] * 4
    assert server.process.wait(30) == 0
    assert not Path(f"/proc/{worker}").exists()


def test_the_worker_ends_with_its_parent(serve) -> None:
    server = serve()
    server.wait()
    worker = server.worker()
    server.process.kill()
    for _ in range(400):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.05)
    raise AssertionError("still there")
