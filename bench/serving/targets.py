"""What is put under load: Engines of the example, dense and compressed, or a model behind a URL."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import hscc
import numpy as np
import torch
from hscc.serving.engine import Engine, Limits
from hscc.serving.models import Served
from torch import Tensor, nn

from ..accuracy import examples
from .load import Ask

BATCH = 32  # of the calibration
QUESTIONS = 8  # different requests, so that an answer to another one is noticed
TOLERANCE = 1e-3  # of the largest output: batches of other sizes round otherwise


class WrongAnswer(RuntimeError):
    """Not what the model gave when it was asked alone."""


@dataclass(frozen=True)
class Target:
    """``ask`` sends one request of ``images``; ``bare(seconds)`` gives images a second of the model alone."""

    name: str
    ask: Ask
    images: int
    bare: Callable[[float], float] | None = None


def example_models(data: str, reductions: list[float], calibration: int) -> dict[str, nn.Module]:
    """The dense network, and one for each FLOP reduction, all with fused batch norms and ReLUs."""
    dense, spec, _ = examples.network(data)
    pixels = examples.images(data, "calibration", calibration, 0)[0]
    batches = [spec.preprocess(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
    models = {"dense": copy.deepcopy(dense)}
    for reduction in reductions:
        models[f"{reduction:g}x"] = copy.deepcopy(dense)
        hscc.compress_(models[f"{reduction:g}x"], batches, hscc.Config(hscc.flops(reduction)), show_progress=True)
    for model in models.values():
        hscc.fuse_(model)
    return models


@torch.inference_mode()
def throughput(model: nn.Module, x: Tensor, seconds: float) -> float:
    """Images a second of the bare model, called again and again on one batch."""
    model(x)
    passes, begun = 0, time.perf_counter()
    while not passes or time.perf_counter() < begun + seconds:
        model(x)
        passes += 1
    return passes * len(x) / (time.perf_counter() - begun)


@asynccontextmanager
async def engines(
    models: dict[str, nn.Module], size: tuple[int, ...], limits: Limits, images: int
) -> AsyncIterator[list[Target]]:
    """An Engine for each model; size is (C, H, W)."""
    made, targets = [], []
    try:
        for name, model in models.items():
            served = Served.of(model, torch.zeros(1, *size), name=name)
            batch = torch.randn(limits.batch, *size).contiguous(memory_format=served.layout)
            engine = Engine(served, limits)
            made.append(engine)
            await asyncio.to_thread(engine.start)
            targets.append(Target(name, _asks(engine, model, images), images, partial(throughput, model, batch)))
        yield targets
    finally:
        for engine in made:
            await engine.drain()


def _asks(engine: Engine, model: nn.Module, images: int) -> Ask:
    """The model itself says what is right."""
    inputs = [torch.randn(images, *engine.inputs[0].shape[1:]) for _ in range(QUESTIONS)]
    with torch.inference_mode():
        expected = [model(x).numpy() for x in inputs]

    async def one(question: int) -> np.ndarray:
        (output,) = (await engine.infer(inputs[question])).outputs.values()
        return output.numpy()

    return checked(one, expected)


def checked(one: Callable[[int], Awaitable[np.ndarray]], expected: Sequence[np.ndarray]) -> Ask:
    """Asks one question after the other; raises WrongAnswer for an answer that is not as expected."""
    turn = itertools.cycle(range(len(expected)))

    async def ask() -> None:
        question = next(turn)
        found, wanted = await one(question), expected[question]
        if found.shape != wanted.shape or not np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max():
            raise WrongAnswer(f"got another answer to question {question}, expected the model's own")

    return ask


@asynccontextmanager
async def url(address: str, names: list[str], images: int, key: str | None) -> AsyncIterator[list[Target]]:
    """Models of a server of the Open Inference Protocol v2, asked by REST with binary tensors. What they answer to a
    request alone, before the load, counts as right.

    Raises ValueError where the server does not know the model or its input has no fixed size.
    """
    import aiohttp

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(
        address.rstrip("/") + "/", headers=headers, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        targets = []
        for name in names:
            async with session.get(f"v2/models/{name}") as answer:
                if answer.status != 200:
                    raise ValueError(f"url: got status {answer.status} for model {name!r}: {await answer.text()}")
                (spec,) = (await answer.json())["inputs"]
            if -1 in spec["shape"][1:]:
                raise ValueError(f"url: got shape {spec['shape']} of model {name!r}, expected a fixed (C, H, W)")
            inputs = [torch.randn(images, *spec["shape"][1:]) for _ in range(QUESTIONS)]
            requests = [binary(spec["name"], x) for x in inputs]
            one = _posts(session, f"v2/models/{name}/infer", requests)
            targets.append(Target(name, checked(one, [await one(i) for i in range(QUESTIONS)]), images))
        yield targets


def binary(name: str, x: Tensor) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with one float32 tensor, after the protocol's binary tensor data extension."""
    raw = x.contiguous().numpy().tobytes()
    tensor = {"name": name, "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    own = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
    return header + raw, own


def _posts(session, path: str, requests: Sequence[tuple[bytes, dict[str, str]]]) -> Callable[[int], Awaitable]:
    """Sends one of the requests; gives the first output."""

    async def one(question: int) -> np.ndarray:
        body, headers = requests[question]
        async with session.post(path, data=body, headers=headers) as answer:
            content = await answer.read()
            if answer.status != 200:
                raise type(f"Status{answer.status}", (RuntimeError,), {})(content[:200])
            length = int(answer.headers["Inference-Header-Content-Length"])
            output = json.loads(content[:length])["outputs"][0]
            raw = content[length : length + output["parameters"]["binary_data_size"]]
            return np.frombuffer(raw, np.float32).reshape(output["shape"])

    return one
