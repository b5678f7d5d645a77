"""What ``hscc serve --ray`` adds to Ray Serve's HTTP proxies, so that clients see the limits and refusals of ours."""

from __future__ import annotations

import os

import uvicorn.config
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import http
from .limits import WebLimits

CALLBACK, BODY = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "HSCC_SERVE_BODY"
AWAY = "the model is starting, draining or its replica has died; try again later"


def environment(limits: WebLimits) -> dict[str, str]:
    """For the cluster's processes: the proxies then call :func:`middlewares`."""
    return {
        CALLBACK: f"{__name__}.{middlewares.__name__}",
        BODY: str(limits.body),
        "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",  # or replicas of other nodes would have nothing to do
    }


def middlewares() -> list[Middleware]:
    """Called by Ray in each proxy, before it listens; its server has no option for limits, so they go in here."""
    limits = WebLimits(body=int(os.environ[BODY]))
    uvicorn.config.HTTP_PROTOCOLS["auto"] = http.limited(limits)
    return [Middleware(Ours)]


class Ours:
    """Answers that are Ray's own, in plain text or none at all, become 503 in JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self.app(scope, receive, send)
            return
        state = {"started": False, "theirs": False}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                kind = Headers(raw=message["headers"]).get("content-type", "")
                state["started"] = True
                state["theirs"] = message["status"] >= 400 and not kind.startswith("application/json")
            if not state["theirs"]:
                await send(message)

        await self.app(scope, receive, sending)
        if state["theirs"] or not state["started"]:
            await JSONResponse({"error": AWAY}, 503, {"retry-after": "1"})(scope, receive, send)
