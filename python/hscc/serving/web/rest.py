"""The protocol's REST routes over a :class:`Service`, as a Starlette application: FastAPI's own work is half a small
model's time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from ..engine import Engine
from ..errors import BadRequest, Overloaded, Refused
from . import images, openapi, protocol
from .protocol import JSON_LENGTH, InferRequest
from .refusals import ClientGone, TooLarge, TooSlow, Unsupported, told
from .service import Service, label

TENSORS = ("application/json", "application/octet-stream", "")
HEADERS = {
    401: {"www-authenticate": "Bearer"},
    **{status: {"connection": "close"} for status in (408, 413, 415)},  # or the rest of a body would still be read
    **{status: {"retry-after": "1"} for status in (429, 503)},
}
UNROUTED = {
    404: "path: got one that is not served, expected one of /openapi.json",
    405: "method: got another one, expected one of /openapi.json",
}
SHORT = 64 * 1024  # bytes of JSON that are read without leaving the event loop
Found = dict[str, tuple[Tensor, bool]]
Endpoint = Callable[[Request], Awaitable[Response]]


def application(service: Service) -> Starlette:
    """The routes alone: who calls it starts the engines, and limits headers and connections."""
    handlers = {Exception: _refused, Refused: _refused, HTTPException: _unrouted}
    return Starlette(routes=_routes(service, _Bodies(service)), exception_handlers=handlers)


def _routes(service: Service, bodies: _Bodies) -> list[Route]:
    """By how often they are asked for."""
    document = openapi.document(images.KINDS)

    async def infer(request: Request) -> Response:
        engine = _engine(service, request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (*TENSORS, *images.KINDS):
            raise Unsupported(f"content-type: got another one, expected {[*TENSORS[:-1], *images.KINDS]}")
        async with bodies.of(request) as body:
            asked = await bodies.read(body, kind, engine, request.headers.get(JSON_LENGTH))
        found = await _unless_gone(request, service.answer(engine, asked))
        head = {"model_name": engine.model.name, "model_version": engine.model.version}
        head |= {"id": asked.id} if asked.id else {}
        text = label(engine, found) if kind in images.KINDS else None
        content, length = protocol.encode(head | ({"parameters": {"label": text}} if text else {}), found)
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={JSON_LENGTH: str(length)}, media_type="application/octet-stream")

    async def model(request: Request) -> Response:
        return JSONResponse(service.describe(_engine(service, request)))

    async def model_ready(request: Request) -> Response:
        engine = _engine(service, request)
        return JSONResponse({"name": engine.model.name, "ready": engine.ready}, 200 if engine.ready else 503)

    async def server(request: Request) -> Response:
        return JSONResponse(service.about())

    async def metrics(request: Request) -> Response:
        text, kind = await service.metrics()
        return Response(text, headers={"content-type": kind})

    async def live(request: Request) -> Response:
        return JSONResponse({"live": service.live}, 200 if service.live else 503)

    async def ready(request: Request) -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    async def described(request: Request) -> Response:
        return JSONResponse(document)

    def guarded(endpoint: Endpoint) -> Endpoint:
        async def call(request: Request) -> Response:
            service.authorise(request.headers)
            return await endpoint(request)

        return call

    routes = [
        Route(f"{path}{end}", guarded(endpoint), methods=[method])
        for end, endpoint, method in (("/infer", infer, "POST"), ("", model, "GET"), ("/ready", model_ready, "GET"))
        for path in openapi.MODEL
    ]
    routes += [Route(path, guarded(endpoint)) for path, endpoint in (("/v2", server), ("/metrics", metrics))]
    public = (("/v2/health/live", live), ("/v2/health/ready", ready), ("/openapi.json", described))
    return routes + [Route(path, endpoint) for path, endpoint in public]


def _engine(service: Service, request: Request) -> Engine:
    return service.engine(request.path_params["name"], request.path_params.get("version", ""))


async def _unless_gone(request: Request, answer: Awaitable[Found]) -> Found:
    """The answer, which is cancelled when the client goes away: then nothing of it is computed that still waits."""
    asking, watching = asyncio.ensure_future(answer), asyncio.create_task(_gone(request))
    watching.add_done_callback(lambda _: asking.cancel())
    try:
        return await asking
    except asyncio.CancelledError:
        if watching.done() and not watching.cancelled():
            raise ClientGone("connection: got its end before the answer") from None
        raise
    finally:
        watching.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Bodies:
    """Receives bodies within limits, and makes requests of them."""

    def __init__(self, service: Service) -> None:
        self.limits, self.held = service.limits, 0
        self.decoding = asyncio.Semaphore(max(1, (os.cpu_count() or 2) // 2))  # a picture takes much memory meanwhile

    @asynccontextmanager
    async def of(self, request: Request) -> AsyncIterator[bytearray]:
        """The body, counted as it comes, and among those held at a time."""
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Unsupported("content-encoding: got one, expected a body that is not compressed")
        body = bytearray()
        try:
            await asyncio.wait_for(self._receive(request, body), self.limits.seconds)
            yield body
        except asyncio.TimeoutError as error:
            raise TooSlow(f"body: got no end of it in {self.limits.seconds:g} s, expected one") from error
        except ClientDisconnect as error:
            raise BadRequest("body: got the connection's end before its own, expected all of it") from error
        finally:
            self.held -= len(body)

    async def _receive(self, request: Request, body: bytearray) -> None:
        most = self.limits.body
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared[:20]) > most:
            raise TooLarge(f"body: got {declared[:20]} bytes, expected at most {most}")
        async for chunk in request.stream():
            if len(body) + len(chunk) > most:
                raise TooLarge(f"body: got more than {most} bytes, expected at most that")
            if self.held + len(chunk) > self.limits.buffered:
                raise Overloaded("body: got too many at a time, expected fewer; ask again later")
            body += chunk
            self.held += len(chunk)

    async def read(self, body: bytearray, kind: str, engine: Engine, json_length: str | None) -> InferRequest:
        """Tensors, or a picture for the model's input."""
        if kind not in images.KINDS:
            if json_length is not None or len(body) <= SHORT:
                return protocol.decode(body, json_length, self.limits)
            return await asyncio.to_thread(protocol.decode, body, None, self.limits)
        (spec,) = engine.inputs
        if engine.model.images is None:
            raise Unsupported(f"content-type: got {kind} for a model of unknown images, expected tensors")
        async with self.decoding:
            x = await asyncio.to_thread(images.decode, body, kind, engine.model.images, self.limits.pixels)
        return InferRequest({spec.name: x.to(spec.torch_dtype)})


async def _refused(request: Request, error: Exception) -> Response:
    status, words = told(error)
    return JSONResponse({"error": words}, status, HEADERS.get(status))


async def _unrouted(request: Request, error: HTTPException) -> Response:
    words = UNROUTED.get(error.status_code, "request: got one that is not served, expected one of /openapi.json")
    return JSONResponse({"error": words}, error.status_code, error.headers)
