"""HTTP/1.1 by uvicorn, with what it lacks: limits on headers, in bytes, lines and seconds."""

from __future__ import annotations

import asyncio
import json
import logging

import httptools
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .limits import WebLimits

REFUSAL = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"


def server(app: Starlette, limits: WebLimits, graceful: int = 30) -> uvicorn.Server:
    """A server that listens on the sockets given to its ``serve``; it leaves signals to others."""
    config = uvicorn.Config(
        app,
        http=limited(limits),
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=int(limits.header_seconds),
        timeout_graceful_shutdown=graceful,
        log_level="warning",
    )
    logging.getLogger("uvicorn.error").addFilter(lambda record: "Invalid HTTP request" not in record.getMessage())
    return uvicorn.Server(config)


def limited(limits: WebLimits) -> type[HttpToolsProtocol]:
    """What uvicorn takes as its ``http``."""
    return type("Limited", (_Limited,), {"limits": limits})


class _Limited(HttpToolsProtocol):
    """Counts a request's head as it comes; a head that is too long or too slow ends the connection."""

    limits: WebLimits
    _head: int = 0  # bytes since the head began, or -1 while a body comes
    _message: int = 0  # bytes since the request began: chunks' heads and trailers are in nobody's body
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head >= 0:
            self._head += len(data)
            if self._waiting is None:
                self._wait()
        self._message += len(data)
        super().data_received(data)
        if self._message > self.limits.header_bytes + 2 * self.limits.body and not self.transport.is_closing():
            self._refuse(b"413 Content Too Large", f"body: got more than {self.limits.body} bytes and their frames")
        if self._head > self.limits.header_bytes and not self.transport.is_closing():
            self._refuse(b"431 Request Header Fields Too Large", f"headers: got over {self.limits.header_bytes} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._bytes, self._message = 0, 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._head = -1
        self._stop()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        many = self._head >= 0 and self.headers is not None and self._over()
        if many:
            self._refuse(b"431 Request Header Fields Too Large", "headers: got too many or too long ones")
        else:
            self._refuse(b"400 Bad Request", "request: got no HTTP/1.1, expected it")

    def _over(self) -> bool:
        return self._bytes > self.limits.header_bytes or len(self.headers) > self.limits.headers

    def _count(self, size: int) -> None:
        self._bytes += size
        if self._over():
            raise httptools.HttpParserError("head too large")

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(self.limits.header_seconds, self._late)

    def _stop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _late(self) -> None:
        if not self.transport.is_closing():
            self._refuse(b"408 Request Timeout", f"headers: got no end of them in {self.limits.header_seconds:g} s")

    def _refuse(self, status: bytes, words: str) -> None:
        body = json.dumps({"error": words}).encode()
        self.transport.write(REFUSAL % (status, len(body), body))
        self.transport.close()
