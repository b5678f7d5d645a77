"""What a request may cost before it is refused."""

from __future__ import annotations

from dataclasses import dataclass, fields

MIB = 2**20


@dataclass(frozen=True)
class WebLimits:
    """Limits of the fronts; those of batches and queues are the Engine's.

    Args:
        body: bytes of a request.
        json: bytes of its JSON, which takes some ten times its size while it is read; larger tensors go as binary.
        buffered: bytes of all bodies that are held at a time.
        headers, header_bytes: how many lines, and their bytes together with the request line.
        tensors: inputs, and outputs asked for.
        pixels: of a picture, before it is decoded.
        seconds: to receive a body, then to answer it.
        header_seconds: to receive the headers, and between two requests of a connection.
        connections: at a time, and requests at a time.
    """

    body: int = 32 * MIB
    json: int = 8 * MIB
    buffered: int = 256 * MIB
    headers: int = 64
    header_bytes: int = 16 * 1024
    tensors: int = 16
    pixels: int = 64_000_000
    seconds: float = 30.0
    header_seconds: float = 10.0
    connections: int = 512

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name}: got {value}, expected more than 0")
