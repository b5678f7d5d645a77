"""A small network of known files, an application over its engine in this process, and ``hscc serve`` in another."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from hscc.data.spec import METADATA_KEY, ImageSpec
from hscc.serving.engine import Engine, Limits
from hscc.serving.models import Served
from hscc.serving.web import rest
from hscc.serving.web.limits import WebLimits
from hscc.serving.web.service import Service
from hscc.serving.web.sockets import listen
from safetensors.torch import save_file

SPEC = ImageSpec((16, 16), 1, (0.5,), (0.25,), ("bright", "dark", "dim"))
MODEL = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """With model.py and w.safetensors."""
    root = tmp_path_factory.mktemp("serve")
    (root / "model.py").write_text(MODEL)
    namespace: dict = {}
    exec(MODEL, namespace)
    torch.manual_seed(0)
    save_file(namespace["build"]().state_dict(), root / "w.safetensors", {METADATA_KEY: SPEC.to_json()})
    return root


@pytest.fixture(scope="session")
def model(folder: Path) -> Served:
    return Served.load(folder / "w.safetensors", f"{folder / 'model.py'}:build", name="small")


@pytest.fixture(scope="session")
def engine(model: Served) -> Iterator[Engine]:
    made = Engine(model, Limits(batch=8, images=8))
    made.start()
    yield made
    made.stop(5)


Ask = Callable[..., httpx.Response]


def asker(service: Service) -> Ask:
    """``ask("GET", path, **options of httpx)`` of the application in this process."""
    app = rest.application(service)

    async def send(method: str, path: str, **options) -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, **options)

    return lambda method, path, **options: asyncio.run(send(method, path, **options))


@pytest.fixture(scope="session")
def ask(engine: Engine) -> Ask:
    return asker(Service([engine], WebLimits(body=2**20, json=2**18)))


def infer_json(x: torch.Tensor, **more) -> dict:
    entry = {"name": "input", "datatype": "FP32", "shape": [*x.shape], "data": x.flatten().tolist()}
    return {"inputs": [entry | more]}


@dataclass
class Server:
    """A process of ``hscc serve``; ``worker()`` is the number of the process that answers now, None between two."""

    process: subprocess.Popen
    url: str
    rpc: str

    def worker(self) -> int | None:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return next((int(one) for one in path.read_text().split()), None)

    def wait(self, seconds: float = 60.0) -> float:
        """Until it is ready; returns the seconds."""
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            assert self.process.poll() is None, self.process.stderr.read()
            try:
                if httpx.get(f"{self.url}/v2/health/ready", timeout=2).status_code == 200:
                    return time.monotonic() - began
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("not ready")


def free_port() -> int:
    with listen("127.0.0.1", 0) as found:
        return found.getsockname()[1]


@pytest.fixture(scope="session")
def serve(folder: Path) -> Iterator[Callable[..., Server]]:
    """Starts ``hscc serve`` with the small model and these options."""
    started = []

    def start(*options: str, **environment: str) -> Server:
        port, rpc = free_port(), free_port()
        command = [sys.executable, "-m", "hscc", "serve", "small=w.safetensors", "--model", "model.py:build"]
        command += ["--port", str(port), "--threads", "1", *options]
        command += [] if {"--litserve", "--ray"} & {*options} else ["--grpc-port", str(rpc)]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        return Server(process, f"http://127.0.0.1:{port}", f"127.0.0.1:{rpc}")

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(60)
        process.stderr.close()


@pytest.fixture(scope="session")
def server(serve: Callable[..., Server]) -> Server:
    """One for all tests that leave it as it is."""
    found = serve("--max-body", "1")
    found.wait()
    return found


def error(response: httpx.Response) -> str:
    """The one sentence, which shows nothing of the inside."""
    body = response.json() if response.headers["content-type"] == "application/json" else None
    assert isinstance(body, dict), response.text
    assert body.keys() == {"error"}, response.text
    text = body["error"]
    assert "\n" not in text
    assert len(text) < 400
    assert not any(word in text for word in ("Traceback", '.py"', "site-packages", " object at 0x", "hscc.")), text
    json.dumps(text)
    return text
