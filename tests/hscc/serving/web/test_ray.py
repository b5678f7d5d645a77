"""``hscc serve --ray``: the same routes on Ray's replicas, on one machine. Run by ``make test-ray``."""

from __future__ import annotations

import concurrent.futures
import io
import json
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import torch
from hscc.serving.engine import Engine
from hscc.serving.models import Served
from hscc.serving.web import privacy
from hscc.serving.web.protocol import JSON_LENGTH
from hscc.serving.web.service import Service
from PIL import Image

from .conftest import SPEC, Server, error, infer_json

privacy.settle(alone=True)  # before Ray is imported, so that the tests' clusters are of this machine, too
pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
pytestmark = pytest.mark.slow
INFER, KEY = "/v2/models/small/infer", "0123456789abcdef"
FRAGILE = """
from torch import nn
import model
class Fragile(nn.Sequential):
    def forward(self, x):
        if (x > 1000).any():
            raise SystemExit  # ends the thread that computes
        return super().forward(x)
def build():
    return Fragile(*model.build())
"""


def names(client: httpx.Client) -> set[str]:
    """The replicas that tell of themselves."""
    lines = client.get("/metrics").text.splitlines()
    return {line.partition('replica="')[2].partition('"')[0] for line in lines if line.startswith("hscc_ready{")}


def check(response: httpx.Response, expected: torch.Tensor) -> None:
    assert response.status_code == 200, response.text
    found = torch.tensor(response.json()["outputs"][0]["data"]).view(expected.shape)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def until(true: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def local(serve, folder: Path) -> Server:
    """On a cluster of its own, with a model beside the small one that a request can break."""
    (folder / "fragile.py").write_text(FRAGILE)
    found = serve("fragile=w.safetensors,fragile.py:build", "--ray", "--max-body", "1", HSCC_API_KEY=KEY)
    found.wait(120)
    return found


@pytest.fixture
def client(local: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=local.url, headers={"x-api-key": KEY}, timeout=60) as made:
        yield made


def test_the_same_answers(client: httpx.Client, model: Served) -> None:
    x = torch.randn(3, 1, 16, 16)
    check(client.post(INFER, json=infer_json(x)), model.module(x))
    raw = json.dumps(infer_json(x) | {"parameters": {"binary_data_output": True}}).encode()
    response = client.post(INFER, content=raw, headers={JSON_LENGTH: str(len(raw))})
    data = np.frombuffer(response.content[int(response.headers[JSON_LENGTH]) :], np.float32)
    np.testing.assert_allclose(data.reshape(3, 3), model.module(x).detach(), rtol=1e-4, atol=1e-5)
    out, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    response = client.post(INFER, content=out.getvalue(), headers={"content-type": "image/png"})
    expected = model.module(SPEC.preprocess(pixels[None]))
    check(response, expected)
    assert response.json()["parameters"] == {"label": SPEC.classes[int(expected.argmax())]}


def test_the_same_routes_and_refusals(client: httpx.Client, model: Served) -> None:
    assert client.get("/v2").json()["models"] == ["small", "fragile"]
    assert client.get("/v2/models/small").json()["parameters"]["digest"] == model.digest
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/openapi.json").status_code == 200
    for path in ("/v2", "/v2/models/small", "/metrics"):
        response = httpx.get(f"{client.base_url}{path}")
        assert (response.status_code, error(response)[:4]) == (401, "key:")
    for path in ("/", "/docs", "/v2/models/Small", "/v2/models/..%2F..%2Fetc%2Fpasswd"):
        assert "passwd" not in error(client.get(path))
        assert client.get(path).status_code == 404
    assert "got FP32 (1, 1, 8, 8)" in error(client.post(INFER, json=infer_json(torch.zeros(1, 1, 8, 8))))
    response = client.post(INFER, content=b"x" * (2**20 + 1))
    assert (response.status_code, error(response)[:5]) == (413, "body:")
    response = client.get("/v2", headers={"a": "b" * 20_000})
    assert (response.status_code, error(response)[:8]) == (431, "headers:")


def test_every_socket_is_of_this_machine_and_there_is_no_dashboard(local: Server) -> None:
    processes = psutil.Process(local.process.pid).children(recursive=True)
    listening = [one.laddr for p in processes for one in p.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    assert int(local.url.rpartition(":")[2]) in {one.port for one in listening}
    for one in listening:
        place = ip_address(one.ip)
        assert (getattr(place, "ipv4_mapped", None) or place).is_loopback, one
    assert 8265 not in {one.port for one in listening}
    ours = [one for one in processes if "ray::Serve" in one.cmdline()[0]]
    assert len(ours) >= 2  # the controller and a replica
    assert {one.environ().get("RAY_USAGE_STATS_ENABLED") for one in ours} == {"0"}


def test_a_replica_whose_worker_died_is_replaced(client: httpx.Client, model: Served) -> None:
    (before,) = names(client)
    response = client.post("/v2/models/fragile/infer", json=infer_json(torch.full((1, 1, 16, 16), 2000.0)))
    assert (response.status_code, error(response)) == (503, "the model is broken; try again later")
    until(lambda: client.get("/v2/health/live").status_code == 200 and before not in names(client))
    x = torch.randn(1, 1, 16, 16)
    check(client.post("/v2/models/fragile/infer", json=infer_json(x)), model.module(x))


def test_without_the_head_the_server_ends(local: Server) -> None:
    """The last test of this server."""
    (raylet,) = (one for one in psutil.Process(local.process.pid).children() if one.name() == "raylet")
    raylet.kill()
    assert local.process.wait(90) == 70
    assert "the head of Ray's cluster has died" in local.process.stderr.read()


def test_sigterm_answers_what_is_under_way_and_ends_with_0(serve) -> None:
    server = serve("--ray", "--delay-ms", "4000", "--batch", "64")
    server.wait(120)
    processes = psutil.Process(server.process.pid).children(recursive=True)
    body = json.dumps(infer_json(torch.zeros(1, 1, 16, 16)))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(httpx.post, f"{server.url}{INFER}", content=body, timeout=60) for _ in range(4)]
        until(lambda: any(" 4.0" in one for one in queued(server)), 30)
        server.process.terminate()
        assert [one.result().status_code for one in waiting] == [200] * 4
    assert server.process.wait(60) == 0
    assert server.process.stderr.read() == ""
    assert not psutil.wait_procs(processes, 20)[1]


def queued(server: Server) -> list[str]:
    return [
        one for one in httpx.get(f"{server.url}/metrics").text.splitlines() if one.startswith("hscc_queued_images{")
    ]


def test_all_ends_with_its_parent(serve) -> None:
    server = serve("--ray")
    server.wait(120)
    processes = psutil.Process(server.process.pid).children(recursive=True)
    assert any("ServeReplica" in one.name() for one in processes)
    server.process.kill()
    left = psutil.wait_procs(processes, 15)[1]
    assert all("Agent" in one.name() for one in left)  # two of Ray's, which look for their parent once a minute


def test_too_many_replicas_are_refused(serve) -> None:
    server = serve("--ray", "--replicas", "1000")
    assert server.process.wait(120) == 2
    assert server.process.stderr.read().startswith("error: replicas: got 1000 with 1 CPUs each, expected at most")


def test_a_replica_that_does_not_start_is_one_line(serve, folder: Path) -> None:
    own = "import sys\nfrom model import build as own\ndef build():\n"
    own += "    assert 'default_worker.py' not in sys.argv[0], 'only here'\n    return own()\n"
    (folder / "driver_only.py").write_text(own)
    server = serve("other=w.safetensors,driver_only.py:build", "--ray")
    assert server.process.wait(120) == 2
    told = server.process.stderr.read()
    assert told == "error: replicas: got one, or a proxy, that does not start: AssertionError: only here\n"


def test_another_file_under_the_same_name_is_refused(engine: Engine) -> None:
    from hscc.serving.web.replica import Replica

    own = Replica.__mro__[1]  # as it is without Ray's wrapper
    with pytest.raises(ValueError, match=r"models: got files of SHA-256 .*, expected \['0'\]"):
        own(lambda gpu: Service([engine]), False, ["0"])


def test_the_examples_cluster_is_one_of_rays() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    yaml, jsonschema = pytest.importorskip("yaml"), pytest.importorskip("jsonschema")
    file = Path(__file__).parents[4] / "examples" / "ray" / "cluster.yaml"
    config = yaml.safe_load(file.read_text())
    util.validate_config(util.prepare_config(config))
    with pytest.raises(jsonschema.ValidationError):
        util.validate_config(util.prepare_config(config | {"head_commands": []}))
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    for command in (one for one in starts if "ray start" in one):
        assert all(f"{name}={value}" in command for name, value in privacy.ALWAYS.items())
