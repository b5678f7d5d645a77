"""What clients see of Ray's proxies; without Ray."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import uvicorn.config
from hscc.serving.web import proxy
from hscc.serving.web.limits import WebLimits
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .conftest import error


def ask(app, path: str = "/v2") -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(proxy.Ours(app)), base_url="http://here") as client:
            return await client.get(path)

    return asyncio.run(send())


@pytest.mark.parametrize("status", [404, 408, 429, 500, 503])
def test_refusals_of_rays_become_ours(status: int) -> None:
    response = ask(PlainTextResponse("Path '/v2' not found. Ping http://.../-/routes", status))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert error(response) == proxy.AWAY


def test_no_answer_becomes_ours() -> None:
    async def silent(scope, receive, send) -> None:
        """As Ray's proxy when a replica dies."""

    response = ask(silent)
    assert (response.status_code, error(response)) == (503, proxy.AWAY)


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"error": "model: got another one"}, 404),
        JSONResponse({"ready": False}, 503),
        Response(b"\0\1", media_type="application/octet-stream"),
        PlainTextResponse("hscc_ready 1", 200),
    ],
)
def test_all_else_goes_through(answer: Response) -> None:
    response = ask(answer)
    assert (response.status_code, response.content) == (answer.status_code, answer.body)


def test_rays_own_health_is_left_alone() -> None:
    assert ask(PlainTextResponse("unhealthy", 503), "/-/healthz").text == "unhealthy"


def test_the_proxies_limit_heads_and_bodies(monkeypatch) -> None:
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    for name, value in proxy.environment(WebLimits(body=1234)).items():
        monkeypatch.setenv(name, value)
    (found,) = proxy.middlewares()
    assert found.cls is proxy.Ours
    config = uvicorn.Config(None, http="auto")
    config.load()
    assert config.http_protocol_class.limits.body == 1234


def test_ray_calls_what_the_environment_names() -> None:
    utils = pytest.importorskip("ray._common.utils", reason="Ray is not installed: make test-ray")
    name = proxy.environment(WebLimits())[proxy.CALLBACK]
    assert utils.import_attr(name) is proxy.middlewares
