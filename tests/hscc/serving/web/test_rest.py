"""The REST routes over an engine, in this process."""

from __future__ import annotations

import asyncio
import io
import json

import httpx
import numpy as np
import pytest
import torch
from hscc.serving import errors
from hscc.serving.engine import Answer, Engine, Limits
from hscc.serving.models import Served
from hscc.serving.web import rest
from hscc.serving.web.limits import WebLimits
from hscc.serving.web.protocol import JSON_LENGTH
from hscc.serving.web.service import Service, label
from PIL import Image

from .conftest import SPEC, Ask, asker, error, infer_json

INFER = "/v2/models/small/infer"
KEY = "0123456789abcdef"


def test_health_and_metadata(ask: Ask, model: Served) -> None:
    assert ask("GET", "/v2/health/live").json() == {"live": True}
    assert ask("GET", "/v2/health/ready").json() == {"ready": True}
    assert ask("GET", "/v2").json()["models"] == ["small"]
    for path in ("/v2/models/small", "/v2/models/small/versions/1"):
        assert ask("GET", f"{path}/ready").json() == {"name": "small", "ready": True}
        about = ask("GET", path).json()
        assert about["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 16, 16]}]
        assert about["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}]
        assert about["parameters"] == {"digest": model.digest, "labels": ["bright", "dark", "dim"]}


def test_answers_are_the_models(ask: Ask, model: Served) -> None:
    x = torch.randn(3, 1, 16, 16)
    response = ask("POST", INFER, json=infer_json(x) | {"id": "7"})
    assert response.status_code == 200
    (output,) = response.json()["outputs"]
    assert (response.json()["id"], output["shape"]) == ("7", [3, 3])
    torch.testing.assert_close(torch.tensor(output["data"]).view(3, 3), model.module(x), rtol=1e-4, atol=1e-5)
    raw = json.dumps(infer_json(x) | {"parameters": {"binary_data_output": True}}).encode()
    response = ask("POST", INFER, content=raw, headers={JSON_LENGTH: str(len(raw))})
    data = response.content[int(response.headers[JSON_LENGTH]) :]
    assert np.frombuffer(data, np.float32).tolist() == pytest.approx(output["data"], rel=1e-5)


def test_a_picture_is_answered_with_its_class(ask: Ask, model: Served) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    response = ask("POST", INFER, content=out.getvalue(), headers={"content-type": "image/png"})
    expected = model.module(SPEC.preprocess(pixels[None]))
    assert response.json()["outputs"][0]["data"] == pytest.approx(expected[0].tolist(), rel=1e-4)
    assert response.json()["parameters"] == {"label": SPEC.classes[int(expected.argmax())]}


def test_the_class_of_a_single_logit(engine: Engine, monkeypatch) -> None:
    assert label(engine, {"output": (torch.tensor([[0.3]]), False)}) == "dark"
    assert label(engine, {"output": (torch.tensor([[-0.3]]), False)}) == "bright"
    assert label(engine, {"output": (torch.zeros(1, 3, 4, 4), False)}) is None


NAMES = ["Small", "small2", "smal", "%2e%2e", "..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "w.safetensors", "small%00"]
NAMES += ["small%0a", "%ff", "x" * 5000, "small/versions/2", "small/versions/..%2F1"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_names_are_matched_exactly(ask: Ask, name: str, method: str) -> None:
    response = ask(method, f"/v2/models/{name}" + ("/infer" if method == "POST" else ""), content=b"")
    assert response.status_code == 404
    assert len(error(response)) < 200
    assert "passwd" not in response.text


X = torch.zeros(1, 1, 16, 16)
BAD = {
    "another name": (infer_json(X, name="x"), 400, "expected \\['input'\\]"),
    "another datatype": (infer_json(X, datatype="FP64"), 400, "got FP64"),
    "another size": (infer_json(torch.zeros(1, 1, 8, 8)), 400, "expected FP32 \\(-1, 1, 16, 16\\)"),
    "other dimensions": (infer_json(torch.zeros(16, 16)), 400, "expected FP32"),
    "too many images": (infer_json(torch.zeros(9, 1, 16, 16)), 400, "9 images"),
    "inf": (infer_json(X, data=[1e39] + [0.0] * 255), 400, "infinite"),
    "another output": (infer_json(X) | {"outputs": [{"name": "o"}]}, 400, "outputs: got other names"),
    "a million outputs": (infer_json(X) | {"outputs": [{"name": f"{i}"} for i in range(9000)]}, 400, "at most 16"),
    "no guard here": (infer_json(X) | {"outputs": [{"name": "guard_score"}]}, 400, "'guard_score', expected one of"),
    "too short a time": (infer_json(X) | {"parameters": {"timeout": 1}}, 504, "time"),
}


@pytest.mark.parametrize(("body", "status", "words"), BAD.values(), ids=BAD)
def test_refused(ask: Ask, body: dict, status: int, words: str) -> None:
    import re

    response = ask("POST", INFER, json=body)
    assert response.status_code == status, response.text
    assert re.search(words, error(response)), response.text


def test_bodies_of_other_kinds(ask: Ask) -> None:
    for kind in ("text/html", "application/x-pickle", "image/tiff", "multipart/form-data"):
        response = ask("POST", INFER, content=b"{}", headers={"content-type": kind})
        assert response.status_code == 415
        assert "content-type" in error(response)
    response = ask("POST", INFER, content=b"{}", headers={"content-encoding": "gzip"})
    assert response.status_code == 415
    assert "not compressed" in error(response)
    assert error(ask("POST", INFER, content=b"x" * (2**18 + 1))).startswith("body: got 262145 bytes of JSON")
    response = ask("POST", INFER, content=b"", headers={"content-length": "9" * 30})
    assert response.status_code == 413
    assert "expected at most 1048576" in error(response)


async def _stream(pieces: int, wait: float = 0.0):
    for _ in range(pieces):
        await asyncio.sleep(wait)
        yield b"x" * 2**16


def test_a_body_in_pieces_is_counted_as_it_comes(ask: Ask) -> None:
    sent = []

    async def endless():
        async for piece in _stream(10_000):
            sent.append(piece)
            yield piece

    response = ask("POST", INFER, content=endless())
    assert response.status_code == 413
    assert response.headers["connection"] == "close"


def test_slow_bodies_and_too_many_at_a_time(engine: Engine) -> None:
    ask = asker(Service([engine], WebLimits(seconds=0.2)))
    response = ask("POST", INFER, content=_stream(100, 0.05))
    assert response.status_code == 408
    assert "no end of it in 0.2 s" in error(response)
    ask = asker(Service([engine], WebLimits(buffered=2**17)))
    assert ask("POST", INFER, content=_stream(3)).status_code == 429
    assert ask("POST", INFER, json=infer_json(X)).status_code == 200, "what was refused is held no longer"


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/models/small", "/v2/models/small/ready", "/metrics", INFER, "/v2/models/x"]
)
def test_a_key_is_asked_for_everything_but_health(engine: Engine, path: str) -> None:
    ask = asker(Service([engine], key=KEY))
    method, body = ("POST", infer_json(X)) if path == INFER else ("GET", None)
    wrong = ({}, {"authorization": "Bearer no"}, {"authorization": KEY}, {"x-api-key": KEY[:-1]}, {"x-api-key": "é"},
             {"authorization": f"Basic {KEY}"})  # fmt: skip
    for headers in wrong:
        response = ask(method, path, json=body, headers={k: v.encode() for k, v in headers.items()})
        assert response.status_code == 401
        assert KEY not in response.text
        error(response)
    for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
        assert ask(method, path, json=body, headers=headers).status_code in (200, 404)
    assert ask("GET", "/v2/health/live").status_code == 200


def test_the_key_is_compared_in_constant_time_and_never_shown(engine: Engine, monkeypatch) -> None:
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    service = Service([engine], key=KEY)
    asker(service)("GET", "/v2", headers={"x-api-key": "no"})
    assert compared == [(b"no", KEY.encode())]
    assert KEY not in repr(service)
    for key in ("tiny", "line\nline" * 4, "ключ" * 8):
        with pytest.raises(ValueError, match="api-key") as caught:
            Service([engine], key=key)
        assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (errors.Overloaded("queue: full"), 429),
        (errors.Unavailable("starting"), 503),
        (errors.TimedOut("late"), 504),
        (errors.Foreign("guard: foreign"), 422),
        (errors.Failed("the model failed"), 500),
        (RuntimeError("secret of /home/me/model.py"), 500),
        (MemoryError(), 500),
    ],
)
def test_what_the_engine_raises(model: Served, raised: Exception, status: int, monkeypatch) -> None:
    engine = Engine(model)

    async def infer(*args, **options):
        raise raised

    monkeypatch.setattr(engine, "infer", infer)
    response = asker(Service([engine]))("POST", INFER, json=infer_json(X))
    assert response.status_code == status
    assert "secret" not in error(response)


def test_what_a_guard_found_is_among_the_outputs(model: Served, monkeypatch) -> None:
    engine = Engine(model)
    answer = Answer({"output": torch.zeros(2, 3)}, torch.tensor([0.5, 3.0]), torch.tensor([False, True]))

    async def infer(*args, **options):
        return answer

    monkeypatch.setattr(engine, "infer", infer)
    ask = asker(Service([engine]))
    found = {o["name"]: o for o in ask("POST", INFER, json=infer_json(X)).json()["outputs"]}
    assert found["guard_score"]["data"] == [0.5, 3.0]
    assert (found["guard_flagged"]["datatype"], found["guard_flagged"]["data"]) == ("BOOL", [False, True])
    only = ask("POST", INFER, json=infer_json(X) | {"outputs": [{"name": "guard_flagged"}]}).json()["outputs"]
    assert [one["name"] for one in only] == ["guard_flagged"]


def test_nan_of_the_model_is_no_answer(model: Served, monkeypatch) -> None:
    engine = Engine(model)

    async def infer(*args, **options):
        return Answer({"output": torch.tensor([[float("nan")] * 3])})

    monkeypatch.setattr(engine, "infer", infer)
    response = asker(Service([engine]))("POST", INFER, json=infer_json(X))
    assert response.status_code == 500
    assert "NaN or inf from the model" in error(response)


def test_not_ready_before_the_start(model: Served) -> None:
    ask = asker(Service([Engine(model)]))
    for path in ("/v2/health/ready", "/v2/models/small/ready"):
        assert ask("GET", path).status_code == 503
    assert ask("POST", INFER, json=infer_json(X)).status_code == 503
    assert ask("GET", "/v2/health/live").status_code == 200


def test_other_paths_and_methods(ask: Ask) -> None:
    assert ask("GET", "/").status_code == ask("GET", "/docs").status_code == ask("GET", "/v2/../x").status_code == 404
    response = ask("DELETE", "/v2")
    assert response.status_code == 405
    error(response)


def test_requests_at_a_time_are_not_mixed_up(engine: Engine, model: Served) -> None:
    app = rest.application(Service([engine]))
    xs = [torch.randn(1 + i % 4, 1, 16, 16) for i in range(32)]

    async def all_of_them() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await asyncio.gather(
                *(client.post(INFER, json=infer_json(x) | {"id": str(i)}) for i, x in enumerate(xs))
            )

    for i, (x, response) in enumerate(zip(xs, asyncio.run(all_of_them()), strict=True)):
        assert response.json()["id"] == str(i)
        found = torch.tensor(response.json()["outputs"][0]["data"]).view(-1, 3)
        torch.testing.assert_close(found, model.module(x), rtol=1e-4, atol=1e-5)


def test_metrics(ask: Ask) -> None:
    response = ask("GET", "/metrics")
    assert 'hscc_requests_total{model="small",status="ok"}' in response.text


def test_two_models_of_one_name(model: Served) -> None:
    with pytest.raises(ValueError, match="expected every name once"):
        Service([Engine(model, Limits()), Engine(model, Limits())])
