"""``hscc serve --litserve``: the same routes on LitServe's processes."""

from __future__ import annotations

import time

import httpx
import psutil
import pytest
import torch
from hscc.serving.models import Served

from .conftest import error, infer_json

pytest.importorskip("litserve")
INFER = "/v2/models/small/infer"
KEY = "0123456789abcdef"


@pytest.mark.slow
def test_the_same_answers_a_dead_worker_comes_back_and_all_end(serve, model: Served) -> None:
    server = serve("--litserve", HSCC_API_KEY=KEY)
    server.wait(90)
    client = httpx.Client(base_url=server.url, headers={"x-api-key": KEY}, timeout=60)
    x = torch.randn(3, 1, 16, 16)

    def check() -> None:
        response = client.post(INFER, json=infer_json(x))
        assert response.status_code == 200, response.text
        found = torch.tensor(response.json()["outputs"][0]["data"]).view(3, 3)
        torch.testing.assert_close(found, model.module(x), rtol=1e-4, atol=1e-5)

    check()
    for path in ("/predict", "/small", "/info", "/health", "/shutdown"):  # LitServe's own, without key or limits
        assert client.post(path, json=infer_json(x)).status_code == 404
        assert client.get(path).status_code == 404
    assert "got FP32 (1, 1, 8, 8)" in error(client.post(INFER, json=infer_json(torch.zeros(1, 1, 8, 8))))
    assert "65 images" in error(client.post(INFER, json=infer_json(torch.zeros(65, 1, 16, 16))))  # the Engine's words
    assert httpx.get(f"{server.url}/v2").status_code == 401
    processes = psutil.Process(server.process.pid).children(recursive=True)
    (worker,) = (one for one in processes if any("spawn_main" in part for part in one.cmdline()))
    worker.kill()
    time.sleep(3)  # LitServe looks every two seconds; the dead one's hold on the queue ends after one
    check()
    processes = psutil.Process(server.process.pid).children(recursive=True)
    server.process.terminate()
    server.process.wait(60)
    assert not psutil.wait_procs(processes, 20)[1]
    told = server.process.stderr.read()
    assert "Traceback" not in told, told
